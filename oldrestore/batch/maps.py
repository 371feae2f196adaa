"""Maps of what was done to a photo, as 8-bit PNG, and the small strip that the report shows."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oldrestore.image import Photo

Pixels: TypeAlias = "np.ndarray[Any, Any]"

KINDS = ("change", "mask", "probability")
PREVIEW_PX = 384  # longer side of each picture in the strip
PREVIEW_QUALITY = 80
PREVIEW_GAIN = 4  # of the change in the strip: most of it is a few levels
OVERSAMPLED = 4  # pixels a side from which each of the strip is averaged, at least
FAST_PNG = 1  # maps are smooth: a higher level takes several times as long for a tenth less
ROWS = 256  # of a photo that are floats at a time
FULL = 255


@dataclass(frozen=True)
class Maps:
    """What was done to one photo; each (H, W) uint8, 255 = all.

    change: the largest change of a channel, of its range; rounded up, so 0 is no change at all.
    mask: what was taken for damaged; None if no mask was asked for.
    probability: the scratch detector's; None if it was not asked.
    mean_change: the exact mean, of the range.
    """

    change: Tensor
    mask: Tensor | None
    probability: Tensor | None
    mean_change: float

    def present(self) -> dict[str, Tensor]:
        """Those that there are, by kind."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: values for kind, values in found.items() if values is not None}


def make_maps(before: Photo, after: Photo, mask: Tensor | None, probability: Tensor | None) -> Maps:
    """Compare a photo with its restoration.

    Args:
        before, after: of one size.
        mask, probability: (1, 1, H, W) in [0, 1], on any device.
    """
    height, width = before.size
    change = torch.empty(height, width, dtype=torch.uint8)
    total = 0.0
    for top in range(0, height, ROWS):
        rows = slice(top, top + ROWS)
        pair = [_part(photo, rows, slice(None)) for photo in (after, before)]
        largest = (pair[0] - pair[1]).abs_().amax(dim=1)[0] / 2
        total += float(largest.double().sum())
        # what rounding in float leaves over a whole level is no change
        change[rows] = (largest * FULL - 1e-3).ceil().to(torch.uint8)
    return Maps(
        change,
        None if mask is None else _levels(mask),
        None if probability is None else _levels(probability),
        total / (height * width),
    )


def write_map(values: Tensor, path: Path) -> None:
    """A map (H, W) uint8 as PNG."""
    Image.fromarray(values.numpy()).save(path, "PNG", compress_level=FAST_PNG)


def write_preview(before: Photo, after: Photo, maps: Maps, path: Path) -> None:
    """One JPEG of equal pictures side by side: before, after, change, mask, probability.

    A map that there is none of is black; the change is shown four times as strong. ``PREVIEW_PX``
    bounds the longer side of each.
    """
    height, width = before.size
    scale = min(1.0, PREVIEW_PX / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = [_small(photo, size) for photo in (before, after)]
    found = maps.present()
    for kind in KINDS:
        picture = np.zeros(size, np.uint8)
        if kind in found:
            gain = PREVIEW_GAIN if kind == "change" else 1
            values = _largest(_largest(found[kind].numpy(), size[0], 0), size[1], 1)
            picture = np.minimum(values.astype(np.uint16) * gain, FULL).astype(np.uint8)
        pictures.append(np.broadcast_to(picture[:, :, None], (*size, 3)))
    strip = Image.fromarray(np.concatenate(pictures, axis=1))
    strip.save(path, "JPEG", quality=PREVIEW_QUALITY)


def _small(photo: Photo, size: tuple[int, int]) -> Pixels:
    """A small copy of a photo, (height, width, 3)."""
    step = slice(None, None, max(1, min(photo.size) // min(size) // OVERSAMPLED))
    if photo.pixels.dtype == torch.uint8 and photo.pixels.shape[1] == 3:  # most photos
        levels = photo.pixels[0, :, step, step]
    else:
        levels = ((_part(photo, step, step)[0] + 1) * (FULL / 2)).round_().to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))


def _largest(values: Pixels, count: int, axis: int) -> Pixels:
    """The largest of each of ``count`` equal parts: a single marked pixel stays seen."""
    starts = np.arange(count) * values.shape[axis] // count
    return np.asarray(np.maximum.reduceat(values, starts, axis=axis))


def _part(photo: Photo, rows: slice, columns: slice) -> Tensor:
    """Some of a photo's pixels, (1, 3, h, w) in [-1, 1]."""
    return dataclasses.replace(photo, pixels=photo.pixels[..., rows, columns]).image


def _levels(values: Tensor) -> Tensor:
    """(1, 1, H, W) in [0, 1] as (H, W) uint8."""
    return (values * FULL).round_().to(torch.uint8).cpu()[0, 0]
