"""The detector over a photo in bands of rows.

The photo is gone through twice: its mirror image first, of which the logits are kept in a scratch
file. Both side by side would hold twice the maps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.mask import (
    PaperDetector,
    ScratchDetector,
    agreed,
    halved,
    joined,
    steady_sigmoid,
)
from oldrestore.tiling.rows import Rows, cell_by_cell, cropped, extended
from oldrestore.tiling.scratch import StoredMap
from oldrestore.tiling.through import logits_of, refined, twice


def detected(
    detector: ScratchDetector | PaperDetector,
    pixels: Rows,
    again: Callable[[], Rows],
    image_of: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    *,
    scratch: str | None = None,
) -> Rows:
    """The probability of damage at each pixel of a photo.

    The published detector sees the whole photo, small, before the first row of it is given; ours
    sees all of its mirror image.

    Args:
        detector: the network.
        pixels: what ``image_of`` makes an image (1, 3, h, W) in [-1, 1] of; some hundred rows are
            kept, so best as compact as they came.
        again: gives the same once more, read for itself: for the mirror image, and for what looks
            much farther ahead, where what was read in between need not be kept.
        image_of: of some rows.
        dtype: that the network computes in.
        scratch: folder of scratch files; None: the system's.

    Raises:
        OSError: there is no room for the logits of the mirror image, two bytes a pixel.
    """
    if isinstance(detector, PaperDetector):
        return _judged_small(detector, cell_by_cell([again()], image_of), dtype)

    def ready(some: Rows) -> Rows:
        image = cell_by_cell([some], lambda rows: image_of(rows).to(dtype))
        return extended(image, detector.config.align_px)

    def mirrored(some: Rows) -> Rows:
        return cell_by_cell([ready(some)], lambda image: image.flip(-1))

    of_mirrored = _kept(_at_two_scales(detector, again(), again(), mirrored), scratch)
    logits = _at_two_scales(detector, again(), pixels, ready)
    both = cell_by_cell([logits, of_mirrored], agreed)
    if detector.refiner is not None:
        both = refined(detector.refiner, ready(again()), logits, of_mirrored, both)
    return cropped(cell_by_cell([both], steady_sigmoid), pixels.height, pixels.width)


def _at_two_scales(
    detector: ScratchDetector, ahead: Rows, pixels: Rows, view: Callable[[Rows], Rows]
) -> Rows:
    """``detector.at_two_scales`` of a ``view`` of a map that is given twice, as to ``logits_of``.

    Every user has a view of its own: rows wait for the slowest as compact as they came.
    """

    def small(some: Rows) -> Rows:
        return cell_by_cell([view(some)], halved, scale=0.5)

    coarse = logits_of(detector, small(ahead), small(pixels))
    return cell_by_cell([twice(coarse), logits_of(detector, view(pixels), view(pixels))], joined)


def _kept(logits: Rows, scratch: str | None) -> Rows:
    """All rows of a map (1, 1, H, W), made now; in a file until the last of them is read."""
    height, width, band = logits.height, logits.width, logits.band
    stored = StoredMap(1, height, width, in_memory=False, folder=scratch, dtype=np.float16)
    cursor = logits.cursor()
    device = torch.device("cpu")
    for top in range(0, height, band):
        rows = cursor.window(top, min(height, top + band))
        device = rows.device
        stored.put(top, rows)

    def make(top: int, bottom: int) -> Tensor:
        rows = stored.get(top, bottom).to(device)
        if bottom == height:
            stored.free()
        return rows

    return Rows(height, width, make, band=band, ledger=logits.ledger)


def _judged_small(detector: PaperDetector, image: Rows, dtype: torch.dtype) -> Rows:
    height, width = image.height, image.width
    size = detector.small_size(height, width)
    # between the two nearest rows, as bilinear interpolation without corners aligned does
    place = ((torch.arange(size[0]) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    above = place.long().clamp(max=height - 1)
    below = (above + 1).clamp(max=height - 1)
    share = place - above
    cursor, rows = image.cursor(), []
    for first, last, part in zip(above.tolist(), below.tolist(), share.tolist(), strict=True):
        window = cursor.window(first, last + 1, first)
        rows.append(window[:, :, :1].lerp(window[:, :, -1:], part))
    small = F.interpolate(
        torch.cat(rows, dim=2), (size[0], size[1]), mode="bilinear", align_corners=False
    )
    cursor.window(height - 1, height)  # the rest is not needed
    probability: Tensor = detector(small.to(dtype)).sigmoid()

    def make(top: int, bottom: int) -> Tensor:
        nearest = (torch.arange(top, bottom) * size[0] // height).to(probability.device)
        wide = F.interpolate(probability, (size[0], width), mode="nearest")
        return wide.index_select(2, nearest)

    return Rows(height, width, make, band=image.band, ledger=image.ledger)
