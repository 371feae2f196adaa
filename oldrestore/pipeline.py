"""Restorer: the whole way of a photo, top to bottom.

    photo -> image -> mask -> fill -> old encoder -> mapping -> clean decoder -> restraint -> tone
    -> faces -> photo

The triplet domain translation of Wan et al., CVPR 2020 (arXiv:2004.09484). The `compact` networks
work at the photo's own resolution; how much of their change is taken is the user's to say; tone is
a step of its own, estimated once from a small copy. The `paper` networks are the published ones:
holes are painted white and there is no tone step.
"""

import functools
import os
import time
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.config import CompactConfig
from oldrestore.device import memory_format
from oldrestore.face.photo import FaceRows, with_faces
from oldrestore.fill import fill_holes, paint_white
from oldrestore.image import (
    Photo,
    PhotoLike,
    decode,
    decode_mask,
    encode,
    encode_mask,
    encode_pixels,
    unchanged,
)
from oldrestore.networks import Networks
from oldrestore.ops import freed_memory_kept
from oldrestore.restoration import Restoration
from oldrestore.restraint import OutsideMask, Wishes, hold_back, read_wishes
from oldrestore.tiling.plan import allowed_memory, choose_band, is_best_whole
from oldrestore.tiling.restoring import Bands
from oldrestore.tiling.sources import (
    Source,
    mask_source,
    photo_source,
    put_rows,
    tensor_source,
    write_mask_rows,
    write_rows,
)
from oldrestore.tiling.windows import WindowReader, WindowWriter
from oldrestore.tone import AppliedTone, undo_fading

FILLS_NO_HOLES = 'these weights (variant "quality") fill no holes, use weights of another variant'
NO_DETECTOR = "mask: these weights have no scratch detector; give a mask, or none"
MaskLike: TypeAlias = PhotoLike | None  # the text "auto" asks for the detector


class Restorer(Networks):
    """The networks (``Networks``) and the way through them; the same photo, the same result."""

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
        max_memory: str | int | None = None,
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
            max_memory: what restoring may take, photo and result included, beside Python and the
                networks: such as "2GiB", or bytes. None: three quarters of what is free. The result
                does not depend on it.

        Returns:
            Restoration; a list of them for a list. Each photo is worked on by itself: what else is
            in its list or batch changes nothing.

        Raises:
            ValueError: a photo or mask that cannot be used (``PhotoError``), a number out of range,
                a mask, detector or tone that these weights do not have, ``outside_mask="keep"``
                with a ``denoise`` or ``tone`` above 0, or with weights that fill no holes, or too
                little memory.
            TypeError: a photo or a mask of an unknown kind.
        """
        wishes = self._wishes(threshold, denoise, outside_mask, tone, strength)
        budget = allowed_memory(max_memory, self.device)
        if not isinstance(photo, (list, tuple)):
            return self._restore(cast("PhotoLike", photo), mask, wishes, budget)
        masks = mask if isinstance(mask, (list, tuple)) else [mask] * len(photo)
        if len(masks) != len(photo):
            raise ValueError(f"mask: expected {len(photo)} to match photo, got {len(masks)}")
        pairs = zip(photo, masks, strict=True)
        return [self._restore(one, its_mask, wishes, budget) for one, its_mask in pairs]

    @freed_memory_kept()
    def restore_windows(
        self,
        photo: WindowReader,
        result: WindowWriter,
        *,
        mask: WindowReader | str | None = "auto",
        mask_result: WindowWriter | None = None,
        threshold: float | None = None,
        denoise: float | None = None,
        outside_mask: OutsideMask = "restore",
        tone: float | None = None,
        strength: float = 1.0,
        max_memory: str | int | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> Restoration:
        """Restore a photo of any size that is read and written by windows, and never held.

        Args:
            photo: is read twice, from the top down, in windows of its whole width; once more first
                where faces are looked for.
            result: gets windows of the photo's type and channels, from the top down.
            mask: "auto", None, or the user's own: one channel, where anything but 0 is damaged.
            mask_result: gets what was taken for damage: one channel of uint8, 0 and 255.
            scratch: a folder for what does not fit into memory; None: the system's.

        The other arguments, what is raised and the result are those of ``restore``; what is
        returned is without image and mask.
        """
        start = time.perf_counter()
        wishes = self._wishes(threshold, denoise, outside_mask, tone, strength)
        asked: Source | str | None = None
        if isinstance(mask, str) or mask is None:
            asked = self._asked(mask)
        elif self._asked("own") is not None:
            asked = mask_source(mask, photo)
        folder = None if scratch is None else os.fspath(scratch)
        bands = Bands(self, photo_source(photo), asked, wishes, 0, folder)
        budget, write = (
            allowed_memory(max_memory, self.device),
            functools.partial(write_rows, result),
        )
        faces = FaceRows(self.faces, bands.source, write, wishes.face_strength, budget)
        bands = choose_band(bands, budget, faces.held_bytes)
        found = bands.restore(
            faces.put,
            None if mask_result is None else functools.partial(write_mask_rows, mask_result),
        )
        return faces.told_in(found.restoration(time.perf_counter() - start))

    def _wishes(
        self,
        threshold: float | None,
        denoise: float | None,
        outside_mask: OutsideMask,
        tone: float | None,
        strength: float,
    ) -> Wishes:
        """What is asked for, if these networks can do it."""
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
        return wishes

    def _asked(self, mask: Any) -> Any:
        """The mask that is worked with, if these networks can: "auto", None, or what was given."""
        if not self.mapping.uses_mask:
            if not (_is_auto(mask) or mask is None):
                raise ValueError(f"mask: expected none; {FILLS_NO_HOLES}")
            return None
        if _is_auto(mask) and self.detector is None:
            raise ValueError(NO_DETECTOR)
        return mask

    def _restore(
        self, photo: PhotoLike | Photo, mask: Any, wishes: Wishes, budget: int
    ) -> Restoration:
        """The way of one photo, or of one batch of one size."""
        start = time.perf_counter()
        decoded = decode(photo)
        mask = self._asked(mask)
        if not (mask is None or _is_auto(mask)):
            mask = decode_mask(mask, decoded)
        if is_best_whole(self, decoded.size, budget):
            found = self._restore_whole(start, decoded, mask, wishes)
        else:
            found = self._restore_bands(start, decoded, mask, wishes, budget)
        return with_faces(self.faces, decoded, found, wishes.face_strength)

    def _restore_whole(
        self, start: float, photo: Photo, mask: Tensor | str | None, wishes: Wishes
    ) -> Restoration:
        """All of a photo at once: the way in its plainest form."""
        image = photo.image.to(self.device)
        if mask is None:
            damage = image.new_zeros(photo.batch, 1, *photo.size)
        elif isinstance(mask, str):
            damage = self.detect_tensor(image, wishes.threshold)
        else:
            damage = mask.to(self.device)
        restored, changed, curves = [], [], []
        for index in range(photo.batch if wishes.strength > 0 else 0):
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
            result = encode(photo, torch.cat(restored), torch.cat(changed))
        else:
            result = unchanged(photo)
        return Restoration(
            image=result,
            mask=None if mask is None else encode_mask(photo, damage),
            tone=tuple(curves),
            seconds=time.perf_counter() - start,
            damaged=None if mask is None else float(damage.mean(dtype=torch.float64)),
        )

    def _restore_bands(
        self, start: float, photo: Photo, mask: Tensor | str | None, wishes: Wishes, budget: int
    ) -> Restoration:
        """The same, with the same bits, in bands of rows."""
        pixels = photo.pixels
        restored = torch.empty_like(pixels)
        damage = torch.zeros(photo.batch, 1, *photo.size, dtype=torch.uint8)
        held, found = 2 * pixels.nbytes + damage.nbytes, []
        for index in range(photo.batch):
            asked = tensor_source(mask[index].to(torch.uint8)) if isinstance(mask, Tensor) else mask
            bands = Bands(self, tensor_source(pixels[index]), asked, wishes, 0)
            bands = choose_band(bands, budget, held, there=pixels.nbytes)
            put = functools.partial(put_rows, restored[index])
            survey = bands.restore(put, functools.partial(put_rows, damage[index]))
            found.append(survey.restoration(0.0))
        return Restoration(
            image=encode_pixels(photo, restored) if wishes.strength > 0 else unchanged(photo),
            mask=None if mask is None else encode_mask(photo, damage),
            tone=tuple(curve for one in found for curve in one.tone),
            seconds=time.perf_counter() - start,
            damaged=None if mask is None else float(damage.mean(dtype=torch.float64)),
        )

    def detect(
        self,
        photo: PhotoLike,
        *,
        threshold: float | None = None,
        max_memory: str | int | None = None,
    ) -> Any:
        """Find scratches, spots and tears; the arguments are those of ``restore``.

        Returns:
            The mask, 1 (or 255) = damaged, of the kind of the photo; see ``image.encode_mask``.
        """
        decoded = decode(photo)
        if self.detector is None:
            raise ValueError(NO_DETECTOR)
        wishes = self._wishes(threshold, None, "restore", 0.0, strength=0.0)
        budget = allowed_memory(max_memory, self.device)
        if is_best_whole(self, decoded.size, budget):
            return encode_mask(decoded, self.detect_tensor(decoded.image, wishes.threshold))
        damage = torch.zeros(decoded.batch, 1, *decoded.size, dtype=torch.uint8)
        for index, pixels in enumerate(decoded.pixels):
            bands = Bands(self, tensor_source(pixels), "auto", wishes, 0)
            bands = choose_band(bands, budget, decoded.pixels.nbytes + damage.nbytes)
            bands.detect(functools.partial(put_rows, damage[index]))
        return encode_mask(decoded, damage)

    def detect_windows(
        self,
        photo: WindowReader,
        result: WindowWriter,
        *,
        threshold: float | None = None,
        max_memory: str | int | None = None,
    ) -> None:
        """Find damage in a photo that is read by windows; see ``restore_windows``.

        Args:
            result: gets one channel of uint8, 0 and 255 = damaged.
        """
        if self.detector is None:
            raise ValueError(NO_DETECTOR)
        wishes = self._wishes(threshold, None, "restore", 0.0, strength=0.0)
        bands = Bands(self, photo_source(photo), "auto", wishes, 0)
        bands = choose_band(bands, allowed_memory(max_memory, self.device), 0)
        bands.detect(functools.partial(write_mask_rows, result))

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
