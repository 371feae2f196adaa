"""Restorer: the whole way of a photo, top to bottom.

    photo -> image -> mask -> fill -> old encoder -> mapping -> clean decoder -> restraint -> tone
    -> photo

The triplet domain translation of Wan et al., CVPR 2020 (arXiv:2004.09484). The `compact` networks
work at the photo's own resolution; how much of their change is taken is the user's to say; tone is
a step of its own, estimated once from a small copy. The `paper` networks are the published ones:
holes are painted white and there is no tone step.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.checkpoint import load_strictly, read_checkpoint, write_checkpoint
from oldrestore.config import CompactConfig, PaperConfig, RestorerConfig, restorer_config
from oldrestore.device import Graphs, choose_device, choose_dtype, memory_format
from oldrestore.fill import fill_holes, paint_white
from oldrestore.image import Photo, PhotoLike, decode, decode_mask, encode, encode_mask, unchanged
from oldrestore.layers import choose_backend
from oldrestore.mapping import make_mapping
from oldrestore.mask import make_detector
from oldrestore.ops import freed_memory_kept
from oldrestore.restraint import OutsideMask, Wishes, fraction, hold_back, read_wishes
from oldrestore.tone import AppliedTone, ToneHead, undo_fading
from oldrestore.vae import VAE, make_decoder, make_encoder

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"

VAES = ("vae_old", "vae_clean")
FILLS_NO_HOLES = 'these weights (variant "quality") fill no holes, use weights of another variant'

MaskLike: TypeAlias = PhotoLike | None  # the text "auto" asks for the detector


@dataclass(frozen=True)
class Restoration:
    """What came of a photo.

    image: the restored photo, of the kind that came in (a file gives a PIL image).
    mask: what was taken for structured damage, as ``image.encode_mask`` gives it; None if no mask
        was asked for.
    tone: one curve for each photo of the batch; empty if tone was off.
    seconds: wall time, reading included.
    """

    image: Any
    mask: Any
    tone: tuple[AppliedTone, ...]
    seconds: float


class Restorer:
    """The networks and their settings; reusable, and the same photo always gives the same result.

    Args:
        config: layout of the networks, which start untrained; ``load`` fills them from a file.
        about: what the weights file says about itself.
        device: None or "auto": CUDA if there is one, else the CPU.
        dtype: of the convolutions. None: float32; "auto": float16 on CUDA, float32 elsewhere.
        backend: of the operations, see ``ops.available``; None: the fastest.
        cuda_graphs: on CUDA, replay each size of photo from a graph; pays for many photos of few
            sizes.

    Raises:
        ValueError: this machine has no such device, or cannot do what is asked for on it.
    """

    def __init__(
        self,
        config: RestorerConfig,
        *,
        about: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        if config.vae.latent_channels != config.mapping.latent_channels:
            both = f"{config.vae.latent_channels} and {config.mapping.latent_channels}"
            raise ValueError(f"config: vae and mapping differ in latent_channels: {both}")
        self.config = config
        self.about = dict(about or {})
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.vae_old_encoder = make_encoder(config.vae)
        self.mapping = make_mapping(config.mapping)
        self.vae_clean_decoder = make_decoder(config.vae)
        self.tone_head = None if config.tone is None else ToneHead(config.tone)
        self.detector = None if config.mask is None else make_detector(config.mask)
        for name, network in self.networks().items():
            # the tone head is tiny, and its curve goes over every pixel: always in full precision
            precision = torch.float32 if name == "tone" else self.dtype
            network.to(self.device, precision)
            network.to(memory_format=memory_format(self.device))  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
        choose_backend(self.networks().values(), backend, self.device)
        if cuda_graphs and self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: needs a CUDA device, not {self.device}")
        self._run = Graphs(self._through_networks) if cuda_graphs else self._through_networks

    @classmethod
    def load(
        cls,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
    ) -> "Restorer":
        """Build the networks of a weights file; None: the file shipped with the package.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a whole checkpoint of this package; the message says why.
        """
        path = DEFAULT_WEIGHTS if weights is None else Path(weights)
        checkpoint = read_checkpoint(path)
        config = restorer_config(checkpoint.config, f"{path}: config")
        try:
            restorer = cls(
                config,
                about=checkpoint.about,
                device=device,
                dtype=dtype,
                backend=backend,
                cuda_graphs=cuda_graphs,
            )
        except RuntimeError as error:  # torch's, of sizes that no layer can have
            raise ValueError(f"{path}: config: no network can be built of it: {error}") from error
        networks = restorer.networks()
        with torch.device("meta"):  # a file may hold all of both VAEs, to be trained further
            whole = {f"{vae}.{key}" for vae in VAES for key in VAE(config.vae).state_dict()}
        for name in checkpoint.tensors:
            if name not in whole and not name.startswith(tuple(f"{part}." for part in networks)):
                raise ValueError(f"{path}: unknown key {name}")
        for prefix, network in networks.items():
            load_strictly(network, checkpoint.tensors, prefix, path)
        return restorer

    def save(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Write a weights file that ``load`` reads: all that restoring uses and no more."""
        tensors = {
            f"{prefix}.{name}": tensor
            for prefix, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        write_checkpoint(path, tensors, dataclasses.asdict(self.config), about)

    def networks(self) -> dict[str, nn.Module]:
        """The networks under the names that their keys start with in the weights file."""
        named = {
            "vae_old.encoder": self.vae_old_encoder,
            "mapping": self.mapping,
            "vae_clean.decoder": self.vae_clean_decoder,
            "tone": self.tone_head,
            "mask": self.detector,
        }
        return {name: network for name, network in named.items() if network is not None}

    @property
    def align_px(self) -> int:
        """Tiles start at multiples of this: the largest grid of the networks."""
        if isinstance(self.config, PaperConfig):
            return self.mapping.cell_px
        return self.config.mapping.align_px

    @property
    def context_px(self) -> int | None:
        """How far a pixel can influence ``translate``, rounded up to ``align_px``.

        The overlap that makes tiles equal the whole; None if every pixel can influence every other,
        as in the published networks. The detector and the hole fill have their own.
        """
        if isinstance(self.config, PaperConfig):
            return None
        reach = 2 * self.config.vae.context_px + self.config.mapping.context_px
        reach += self.mapping.cell_px - 1  # a cell speaks for its farthest pixel
        return -(-reach // self.align_px) * self.align_px

    @freed_memory_kept()
    def restore(
        self,
        photo: PhotoLike | Photo | Sequence[PhotoLike],
        *,
        mask: MaskLike | Sequence[MaskLike] = "auto",
        threshold: float | None = None,
        denoise: float | None = None,
        outside_mask: OutsideMask = "restore",
        tone: float | None = None,
        strength: float = 1.0,
    ) -> Any:
        """Restore a photo, a batch of them in one tensor, or a list of photos of any kinds.

        Args:
            photo: see ``image.decode``; or what that gave.
            mask: "auto": the detector's, if these networks use one; None: nothing is taken for
                damaged, grain and blur are still mended; or the user's own, see
                ``image.decode_mask``. A list for a list.
            threshold: of the detector, 0 to 1. None: the weights file's.
            denoise: how much of what the networks change outside holes is taken, 0 to 1:
                ``photo + denoise * (restored - photo)``. 0 leaves the photo's own grain and noise,
                and values to the bit where no fading is undone; 1 takes the networks' whole result.
                Holes are filled whole, with 1 - ``denoise`` of the grain around them. None: 0.75;
                1 with the published networks.
            outside_mask: "keep" changes nothing but the holes, to the bit, and gives them the grain
                of their surroundings: as ``denoise=0, tone=0``.
            tone: how much of a fading found is undone, 0 to 1. None: the weights file's.
            strength: 0 (the photo as it came, to the bit) to 1 (all of the restoration).

        Returns:
            Restoration; a list of them for a list. Each photo is worked on by itself: what else is
            in its list or batch changes nothing.

        Raises:
            ValueError: a photo or mask that cannot be used (``PhotoError``), a number out of range,
                a mask, detector or tone that these weights do not have, or ``outside_mask="keep"``
                with a ``denoise`` or ``tone`` above 0, or with weights that fill no holes.
            TypeError: a photo or a mask of an unknown kind.
        """
        wishes = read_wishes(
            self.config,
            threshold=threshold,
            denoise=denoise,
            outside_mask=outside_mask,
            tone=tone,
            strength=strength,
        )
        if outside_mask == "keep" and not self.mapping.uses_mask:
            raise ValueError(f'outside_mask: expected "restore"; {FILLS_NO_HOLES}')
        if wishes.tone > 0 and self.tone_head is None:
            raise ValueError("tone: these weights have no tone head; leave it out, or give 0")
        if not isinstance(photo, (list, tuple)):
            return self._restore(cast("PhotoLike", photo), mask, wishes)
        masks = mask if isinstance(mask, (list, tuple)) else [mask] * len(photo)
        if len(masks) != len(photo):
            raise ValueError(f"mask: expected {len(photo)} to match photo, got {len(masks)}")
        pairs = zip(photo, masks, strict=True)
        return [self._restore(one, its_mask, wishes) for one, its_mask in pairs]

    def _restore(self, photo: PhotoLike | Photo, mask: Any, wishes: Wishes) -> Restoration:
        """The way of one photo, or of one batch of one size."""
        start = time.perf_counter()
        decoded = decode(photo)
        image = decoded.image.to(self.device)
        damage, is_masked = self._damage(decoded, image, mask, wishes.threshold)
        restored, changed, curves = [], [], []
        for index in range(decoded.batch if wishes.strength > 0 else 0):
            one, its_damage = image[index, None], damage[index, None]
            filled = self.fill(one, its_damage)
            result = self.translate(filled, its_damage)
            result = hold_back(one, result, its_damage, wishes.denoise)
            is_kept = wishes.denoise == 0
            if wishes.tone > 0:
                result, curve = self.undo_fading(result, filled, wishes.tone)
                curves.append(curve)
                is_kept &= curve.strength == 0
            restored.append(one.lerp(result, wishes.strength))
            changed.append(its_damage if is_kept else torch.ones_like(its_damage))
        if restored:
            result = encode(decoded, torch.cat(restored), torch.cat(changed))
        else:
            result = unchanged(decoded)
        return Restoration(
            image=result,
            mask=encode_mask(decoded, damage) if is_masked else None,
            tone=tuple(curves),
            seconds=time.perf_counter() - start,
        )

    def _damage(
        self, photo: Photo, image: Tensor, mask: Any, threshold: float
    ) -> tuple[Tensor, bool]:
        """The mask (B, 1, H, W) that is worked with, and whether one was asked for."""
        if not self.mapping.uses_mask:
            if not (_is_auto(mask) or mask is None):
                raise ValueError(f"mask: expected none; {FILLS_NO_HOLES}")
            mask = None
        if mask is None:
            return image.new_zeros(photo.batch, 1, *photo.size), False
        if _is_auto(mask):
            return self.detect_tensor(image, threshold), True
        return decode_mask(mask, photo).to(self.device), True

    def detect(self, photo: PhotoLike, *, threshold: float | None = None) -> Any:
        """Find scratches, spots and tears.

        Returns:
            The mask, 1 (or 255) = damaged, of the kind of the photo; see ``image.encode_mask``.
        """
        decoded = decode(photo)
        threshold = self.config.defaults.threshold if threshold is None else threshold
        damage = self.detect_tensor(decoded.image, fraction("threshold", threshold))
        return encode_mask(decoded, damage)

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
            raise ValueError("mask: these weights have no scratch detector; give a mask, or none")
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

    def _through_networks(self, filled: Tensor, mask: Tensor) -> Tensor:
        restored: Tensor = self.vae_clean_decoder(self.mapping(self.vae_old_encoder(filled), mask))
        return restored

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


def _is_auto(mask: Any) -> bool:
    return isinstance(mask, str) and mask == "auto"
