"""Drawing large damage: cracks across the photo, wide tears, missing corners, pieces torn out.

It is what `pieces` draws least of, because there one piece may cover no more than the share of the
photo that was drawn for all; and it is what filling holes is hardest at. Widths are in pixels and
do not grow with the picture: a crop that a network learns from is a part of a large photo.
"""

from __future__ import annotations

import math

from oldrestore.degradation.edges import MissingCorner, Tear
from oldrestore.degradation.fields import Color, draw_seed
from oldrestore.degradation.holes import Hole
from oldrestore.degradation.pieces import Sheet
from oldrestore.degradation.settings import Range

LargeStep = Tear | MissingCorner | Hole

_MOST_OF_SIDE = 0.45
"""A hole is at most this share of the shorter side wide: most of the picture has to be left."""

_CRACK_SHARE = 0.5
"""A crack across the photo is narrower than a tear by this factor."""


def sample_large(sheet: Sheet, width_px: Range) -> list[LargeStep]:
    """One large piece of damage, or, seldom, two.

    width_px: least and greatest width; small ones are drawn more often, evenly in the logarithm.
    """
    kinds = (_crack, _tear, _corner, _hole)
    pieces: list[LargeStep] = []
    for _ in range(2 if sheet.chance(0.2) else 1):
        low, high = width_px
        high = min(high, _MOST_OF_SIDE * min(sheet.height, sheet.width))
        wide = math.exp(sheet.uniform(math.log(min(low, high)), math.log(high)))
        pieces.append(kinds[int(sheet.rng.integers(len(kinds)))](sheet, wide))
    return pieces


def _crack(sheet: Sheet, width_px: float) -> Tear:
    """From one border across to the far one, narrower on the way."""
    longest = 1.6 * max(sheet.height, sheet.width)
    return _wedge(sheet, longest, max(2.0, _CRACK_SHARE * width_px), sheet.uniform(15, 35))


def _tear(sheet: Sheet, width_px: float) -> Tear:
    """From a border inwards, to a point."""
    length = sheet.uniform(0.3, 1.1) * min(sheet.height, sheet.width)
    return _wedge(sheet, length, width_px, sheet.uniform(10, 30))


def _wedge(sheet: Sheet, length_px: float, width_px: float, jag_deg: float) -> Tear:
    side = int(sheet.rng.integers(4))
    angle = 90.0 * (side + 1) + sheet.uniform(-40, 40)
    start, color = _on_border(sheet, side), _ground(sheet)
    return Tear(start, angle, length_px, width_px, jag_deg, color, draw_seed(sheet.rng))


def _ground(sheet: Sheet) -> Color:
    """What shows through: mostly bare paper, else the dark behind it."""
    return sheet.paper if sheet.chance(0.7) else sheet.dark()[0]


def _corner(sheet: Sheet, width_px: float) -> MissingCorner:
    """A triangle whose height is about the width."""
    ratio = math.exp(0.4 * float(sheet.rng.standard_normal()))
    side_px = 1.5 * width_px
    backing = sheet.uniform(0.0, 1.0)
    return MissingCorner(
        int(sheet.rng.integers(4)),
        (side_px * ratio, side_px / ratio),
        sheet.uniform(0.5, 3.0),
        sheet.uniform(0.3, 3.0),
        (backing,) * 3,
        sheet.paper,
        draw_seed(sheet.rng),
    )


def _hole(sheet: Sheet, width_px: float) -> Hole:
    """A piece torn out, anywhere."""
    radius = 0.5 * width_px
    return Hole(
        sheet.place(),
        radius,
        sheet.uniform(0.1, 0.5),
        sheet.uniform(1.0, 1.0 + 0.1 * radius),
        1.0,
        _ground(sheet),
        draw_seed(sheet.rng),
    )


def _on_border(sheet: Sheet, side: int) -> tuple[float, float]:
    """Row and column of a point just outside: 0 top, 1 right, 2 bottom, 3 left."""
    along = sheet.uniform(0.05, 0.95)
    return (
        (-1.0, along * sheet.width),
        (along * sheet.height, sheet.width + 1.0),
        (sheet.height + 1.0, along * sheet.width),
        (along * sheet.height, -1.0),
    )[side]
