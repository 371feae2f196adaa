"""The hole fill from the top down: ``fill.fill_holes`` in bands of rows.

Every level of its pyramid is a map of rows. How far the levels look up and down follows from their
sweeps; the levels wait for each other, so that the result is that of the whole photo to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oldrestore.fill import COARSE_SWEEPS, LEVELS, SWEEPS, diffuse, double, mix, pull, spread
from oldrestore.tiling.rows import Rows, cell_by_cell, cropped, extended, next_from

_SWEPT = -(-SWEEPS // 2) * 2  # rows that sweeps reach, to whole rows of the next coarser level
_COLOURS = 3


def filled_rows(pixels: Rows, mask: Rows, image_of: Callable[[Tensor], Tensor]) -> Rows:
    """Replace what the mask covers by a smooth continuation of what it does not.

    Args:
        pixels: what ``image_of`` makes an image (1, 3, h, W) of; kept until the fill has come to
            it, so best as compact as it came.
        mask: (1, 1, H, W) uint8, 1 = damaged.
        image_of: of some rows.
    """

    def known() -> Rows:
        def stack(damage: Tensor, some: Tensor) -> Tensor:
            image = image_of(some)
            return torch.cat([image, (damage <= 0).to(image)], dim=1)

        seen = cell_by_cell([mask, pixels], stack)
        return extended(seen, 2**LEVELS, padding="constant")

    # the finest level is made twice, when the pyramid goes up and when it comes down: between, it
    # would have to be kept in full precision
    levels = [known()]
    for _ in range(LEVELS):
        levels.append(cell_by_cell([levels[-1]], _pulled, scale=0.5))
    coarse = _spread_rows(levels[-1])
    for fine in [*levels[-2:0:-1], known()]:
        coarse = _pushed(coarse, fine)

    def put(filled: Tensor, damage: Tensor, some: Tensor) -> Tensor:
        return mix(image_of(some), filled, damage.to(filled))

    return cell_by_cell([cropped(coarse, pixels.height, pixels.width), mask, pixels], put)


def _pulled(level: Tensor) -> Tensor:
    return torch.cat(pull(*_parts(level)), dim=1)


def _parts(level: Tensor) -> tuple[Tensor, Tensor]:
    """Colour and weight."""
    return level[:, :_COLOURS], level[:, _COLOURS:]


def _spread_rows(level: Rows) -> Rows:
    cursor = level.cursor()

    def make(top: int, bottom: int) -> Tensor:
        first, last = max(0, top - COARSE_SWEEPS), min(level.height, bottom + COARSE_SWEEPS)
        keep_from = next_from(bottom, COARSE_SWEEPS, level.height)
        window = cursor.window(first, last, keep_from)
        return spread(*_parts(window)).narrow(2, top - first, bottom - top)

    return Rows(level.height, level.width, make, band=level.band, ledger=level.ledger)


def _pushed(coarse: Rows, fine: Rows) -> Rows:
    """The fill at a level from that at the next coarser one."""
    coarser, finer = coarse.cursor(), fine.cursor()

    def make(top: int, bottom: int) -> Tensor:
        first, last = max(0, top - _SWEPT), min(fine.height, bottom + _SWEPT)
        keep_from = next_from(bottom, _SWEPT, fine.height)
        above = max(0, first // 2 - 1)  # doubling looks one row up and down
        below = min(coarse.height, last // 2 + 1)
        smooth = double(coarser.window(above, below, keep_from // 2 - 1))
        smooth = smooth.narrow(2, first - 2 * above, last - first)
        known = finer.window(first, last, keep_from)
        out = diffuse(smooth, *_parts(known))
        fine.ledger.work(smooth.nbytes + known.nbytes + 3 * out.nbytes)
        return out.narrow(2, top - first, bottom - top)

    return Rows(fine.height, fine.width, make, band=fine.band, ledger=fine.ledger, step=2)
