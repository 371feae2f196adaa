"""Restorer: the whole way of a photo, top to bottom.

    photo -> image -> mask -> fill -> old encoder -> mapping -> clean decoder -> restraint -> tone
    -> faces -> photo

The triplet domain translation of Wan et al., CVPR 2020 (arXiv:2004.09484). The `compact` networks
work at the photo's own resolution; how much of their change is taken is the user's to say; tone is
a step of its own, estimated once from a small copy. The `paper` networks are the published ones:
holes are painted white and there is no tone step.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from oldrestore.face.photo import FaceRows, with_faces
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
from oldrestore.ops import freed_memory_kept
from oldrestore.restoration import Restoration
from oldrestore.restraint import OutsideMask, Wishes, hold_back, read_wishes
from oldrestore.steps import NO_DETECTOR, Steps
from oldrestore.tiling.plan import allowed_memory, choose_band, is_best_whole
from oldrestore.tiling.restoring import Bands, Take
from oldrestore.tiling.sources import (
    mask_source,
    photo_source,
    put_rows,
    tensor_source,
    write_mask_rows,
    write_rows,
    write_share_rows,
)
from oldrestore.tiling.windows import WindowReader, WindowWriter

FILLS_NO_HOLES = 'these weights (variant "quality") fill no holes, use weights of another variant'

MaskLike: TypeAlias = PhotoLike | None  # the text "auto" asks for the detector


class Restorer(Steps):
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
                Holes are filled whole, with 1 - ``denoise`` of the grain around them. None: as much
                as patches of the photo say it needs; 1 with the published networks.
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
        wishes = self._wishes(
            threshold=threshold,
            denoise=denoise,
            outside_mask=outside_mask,
            tone=tone,
            strength=strength,
        )
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
        probability_result: WindowWriter | None = None,
        threshold: float | None = None,
        denoise: float | None = None,
        outside_mask: OutsideMask = "restore",
        tone: float | None = None,
        strength: float = 1.0,
        max_memory: str | int | None = None,
        held: int = 0,
        scratch: str | os.PathLike[str] | None = None,
    ) -> Restoration:
        """Restore a photo of any size that is read and written by windows, and held only if small.

        Args:
            photo: is read twice, from the top down, in windows of its whole width; once more first
                where faces are looked for.
            result: gets windows of the photo's type and channels, from the top down.
            mask: "auto", None, or the user's own, with values as ``image.decode_mask`` takes them.
            mask_result: gets what was taken for damage: one channel of uint8, 0 and 255.
            probability_result: gets what the detector found, if it looks: likewise, 255 = certain.
            held: bytes of ``max_memory`` that the reader and the writers take by themselves.
            scratch: a folder for what does not fit into memory; None: the system's.

        The other arguments, what is raised and the result are those of ``restore``; what is
        returned is without image and mask.
        """
        start = time.perf_counter()
        wishes = self._wishes(
            threshold=threshold,
            denoise=denoise,
            outside_mask=outside_mask,
            tone=tone,
            strength=strength,
        )
        takes = _takes(result, mask_result, probability_result)
        budget = allowed_memory(max_memory, self.device)
        asked, source = self._asked(mask), photo_source(photo)
        faces = FaceRows(self.faces, source, takes[0], wishes.face_strength, budget)
        takes = (faces.put, *takes[1:])
        if is_best_whole(self, photo.size, budget):
            found = self._restore_small(photo, asked, wishes, takes)
        else:
            if not (asked is None or _is_auto(asked)):
                asked = mask_source(asked, photo)
            folder = None if scratch is None else os.fspath(scratch)
            bands = Bands(self, source, asked, wishes, 0, folder)
            bands = choose_band(bands, budget, held + faces.held_bytes)
            found = bands.restore(*takes).restoration(0.0)
        found = faces.told_in(found)
        return dataclasses.replace(found, seconds=time.perf_counter() - start)

    def _restore_small(
        self, photo: WindowReader, mask: Any, wishes: Wishes, takes: tuple[Take, Take, Take]
    ) -> Restoration:
        """A photo that is read by windows, whole; see ``Bands.restore``."""
        take, take_mask, take_probability = takes
        decoded = decode(photo.read(0, 0, *photo.size))
        if _is_auto(mask):
            probability = self.damage_probability(decoded.image)
            take_probability(0, probability.cpu())
            mask = self.mark_damage(probability, wishes.threshold)
        elif mask is not None:
            mask = decode_mask(mask.read(0, 0, *mask.size), decoded, getattr(mask, "name", "mask"))
        if mask is not None:
            take_mask(0, mask.cpu().to(torch.uint8))
        found = self._restore_whole(0.0, decoded, mask, wishes)
        take(0, decode(found.image).pixels)
        return dataclasses.replace(found, image=None, mask=None)

    def _wishes(self, **given: Any) -> Wishes:
        """What is asked for, as ``read_wishes`` takes it, if these networks can do it."""
        wishes = read_wishes(self.config, **given)
        if given["outside_mask"] == "keep" and not self.mapping.uses_mask:
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
        restored, changed, curves, shares = [], [], [], []
        for index in range(photo.batch if wishes.strength > 0 else 0):
            one, its_damage = image[index, None], damage[index, None]
            filled = self.fill(one, its_damage)
            result = self.translate(filled, its_damage)
            share = self.denoise_of(filled) if wishes.denoise is None else wishes.denoise
            result = hold_back(one, result, its_damage, share)
            is_kept = share == 0
            shares.append(share)
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
            denoise=tuple(shares),
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
            # torch's mean would copy the whole mask in double precision
            damaged=None if mask is None else sum(one.damaged or 0.0 for one in found) / len(found),
            denoise=tuple(share for one in found for share in one.denoise),
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
        wishes = self._wishes_to_detect(threshold)
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
        held: int = 0,
    ) -> float:
        """Find damage in a photo that is read by windows; see ``restore_windows``.

        Args:
            result: gets one channel of uint8, 0 and 255 = damaged.

        Returns:
            The share of the pixels that is damaged.
        """
        if self.detector is None:
            raise ValueError(NO_DETECTOR)
        wishes = self._wishes_to_detect(threshold)
        budget = allowed_memory(max_memory, self.device)
        damaged, (height, width) = 0, photo.size

        def take(top: int, mask: Tensor) -> None:
            nonlocal damaged
            damaged += int(mask.sum())
            write_mask_rows(result, top, mask)

        if is_best_whole(self, photo.size, budget):
            image = decode(photo.read(0, 0, height, width)).image
            take(0, self.detect_tensor(image, wishes.threshold).cpu().to(torch.uint8))
        else:
            bands = Bands(self, photo_source(photo), "auto", wishes, 0)
            choose_band(bands, budget, held).detect(take)
        return damaged / (height * width)

    def _wishes_to_detect(self, threshold: float | None) -> Wishes:
        return self._wishes(
            threshold=threshold, denoise=None, outside_mask="restore", tone=0.0, strength=0.0
        )


def _takes(
    result: WindowWriter, mask: WindowWriter | None, probability: WindowWriter | None
) -> tuple[Take, Take, Take]:
    """What writes rows of the result, the mask and the probability."""

    def writer(write: Callable[..., None], to: WindowWriter | None) -> Take:
        return _forget if to is None else functools.partial(write, to)

    return (
        writer(write_rows, result),
        writer(write_mask_rows, mask),
        writer(write_share_rows, probability),
    )


def _forget(_top: int, _rows: Tensor) -> None:
    """Rows that nobody asked for."""


def _is_auto(mask: Any) -> bool:
    return isinstance(mask, str) and mask == "auto"
