"""Maps of what was done to a photo, as 8-bit PNG, and the small strip that the report shows."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oldrestore.image import Photo

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
    step = slice(None, None, max(1, int(1 / scale) // OVERSAMPLED))
    pictures = [
        F.adaptive_avg_pool2d((_part(photo, step, step) + 1) / 2, size) for photo in (before, after)
    ]
    found = maps.present()
    for kind in KINDS:
        picture = torch.zeros(1, 1, *size)
        if kind in found:
            gain = PREVIEW_GAIN if kind == "change" else 1
            values = found[kind][None, None, step, step].float() * (gain / FULL)
            picture = F.adaptive_max_pool2d(values, size)
        pictures.append(picture)
    strip = torch.cat([picture.expand(1, 3, *size) for picture in pictures], dim=3)
    array = _levels(strip.clamp(0, 1), channels=3).permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(array)).save(path, "JPEG", quality=PREVIEW_QUALITY)


def _part(photo: Photo, rows: slice, columns: slice) -> Tensor:
    """Some of a photo's pixels, (1, 3, h, w) in [-1, 1]."""
    return dataclasses.replace(photo, pixels=photo.pixels[..., rows, columns]).image


def _levels(values: Tensor, channels: int = 1) -> Tensor:
    """(1, C, H, W) in [0, 1] as uint8, without the axes of length 1."""
    levels = (values * FULL).round_().to(torch.uint8).cpu()[0]
    return levels if channels > 1 else levels[0]
