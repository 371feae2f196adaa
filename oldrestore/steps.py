"""Steps: what the networks make of tensors, one after the other; ``pipeline`` walks them.

image -> mask -> fill -> old encoder -> mapping -> clean decoder -> tone
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.config import DENOISE, CompactConfig
from oldrestore.denoise import Patches, estimate_denoise
from oldrestore.device import memory_format
from oldrestore.fill import fill_holes, paint_white
from oldrestore.networks import Networks
from oldrestore.ops import freed_memory_kept
from oldrestore.tone import AppliedTone, undo_fading

NO_DETECTOR = "mask: these weights have no scratch detector; give a mask, or none"


class Steps(Networks):
    """The networks, and what each does to an image or a part of the way; see ``Networks``."""

    def detect_tensor(self, image: Tensor, threshold: float) -> Tensor:
        """image (B, 3, H, W) -> mask (B, 1, H, W) of 0 and 1, dilated."""
        return self.mark_damage(self.damage_probability(image), threshold)

    def mark_damage(self, probability: Tensor, threshold: float) -> Tensor:
        """What ``damage_probability`` found -> mask (B, 1, H, W) of 0 and 1, dilated."""
        mask = (probability > threshold).float()
        radius = self.config.defaults.dilation_px
        return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)

    @freed_memory_kept()
    @torch.inference_mode()
    def damage_probability(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> probability of damage (B, 1, H, W); photo by photo."""
        if self.detector is None:
            raise ValueError(NO_DETECTOR)
        found = []
        for index in range(len(image)):
            one = image[index, None]
            padded = _pad(one.to(self.device), self.detector.config.align_px).to(self.dtype)
            found.append(self.detector.probability(padded)[..., : one.shape[2], : one.shape[3]])
        return torch.cat(found)

    def restore_tensor(self, image: Tensor, mask: Tensor, *, use_nonlocal: bool = True) -> Tensor:
        """Fill the holes and translate; tone is kept.

        Args:
            image: (B, 3, H, W) in [-1, 1], sides of 8 px or more.
            mask: (B, 1, H, W); 1 = damaged.
            use_nonlocal: whether holes are filled from the rest of the photo.

        Returns:
            (B, 3, H, W) float32 on the restorer's device; clamped to [-1, 1].
        """
        image, mask = image.detach().to(self.device), mask.to(self.device)
        return self.translate(self.fill(image, mask), mask, use_nonlocal=use_nonlocal)

    def fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the encoder is shown in place of holes; shapes as ``restore_tensor``."""
        if isinstance(self.config, CompactConfig):
            return fill_holes(image, mask)
        return paint_white(image, mask) if self.mapping.uses_mask else image

    @freed_memory_kept()
    @torch.inference_mode()
    def translate(self, filled: Tensor, mask: Tensor, *, use_nonlocal: bool = True) -> Tensor:
        """Old domain to clean domain: encode, map, decode. Shapes as ``restore_tensor``."""
        height, width = filled.shape[-2:]
        layout, cell_px = memory_format(self.device), self.mapping.cell_px
        operands = [_pad(x, cell_px).to(self.dtype, memory_format=layout) for x in (filled, mask)]
        self.mapping.use_nonlocal = use_nonlocal
        run = self._run if use_nonlocal else self._through_networks
        return run(*operands)[..., :height, :width].float().clamp(-1, 1)

    def denoise_of(self, filled: Tensor) -> float:
        """How much of the networks' change is taken of a photo unless told otherwise, 0 to 1.

        Args:
            filled: (1, 3, H, W) in [-1, 1], its holes filled.
        """
        if self.denoise_head is None:
            return DENOISE[self.config.preset]
        whole = Patches(*filled.shape[2:])
        whole.add(0, filled)
        return estimate_denoise(self.denoise_head, whole.patches())

    @torch.inference_mode()
    def undo_fading(
        self, image: Tensor, filled: Tensor, strength: float
    ) -> tuple[Tensor, AppliedTone]:
        """Estimate the tone curve of one photo from ``filled`` and apply it to ``image``.

        Args:
            image, filled: (1, 3, H, W) in [-1, 1].
            strength: 0 to 1; nothing is applied to a photo that is not taken for faded.

        Raises:
            ValueError: the weights have no tone head.
        """
        if self.tone_head is None:
            raise ValueError("strength: these weights have no tone head")
        least = self.config.defaults.faded_probability
        return undo_fading(self.tone_head, image, filled, strength, faded_probability=least)


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
