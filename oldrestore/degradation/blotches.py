"""Drawing blotches: the round, mostly black spots of glass plates and films, some of them large.

Where emulsion bubbled, came off or was eaten by mould, a negative is bare and its print is black;
`pieces` draws few spots wider than some pixels, since most damage of prints is smaller. Widths do
not grow with the picture, as those of `large`.
"""

from __future__ import annotations

import math

from oldrestore.degradation.fields import draw_seed
from oldrestore.degradation.holes import Spot
from oldrestore.degradation.pieces import Sheet
from oldrestore.degradation.settings import Range

_MORE = 0.6
"""After each blotch, the probability that there is another."""

_MOST = 8
"""Blotches at most."""


def sample_blotches(sheet: Sheet, width_px: Range) -> list[Spot]:
    """One to eight blotches of one cause: alike in size, colour and edge.

    width_px: least and greatest width; small ones are drawn more often, evenly in the logarithm.
    """
    low, high = width_px
    usual_px = math.exp(sheet.uniform(math.log(low), math.log(high)))
    color, mode = sheet.dark() if sheet.chance(0.75) else sheet.bright()
    softness = sheet.uniform(0.0, 0.8)
    opacity = sheet.uniform(0.6, 1.0)
    blotches: list[Spot] = []
    while not blotches or (len(blotches) < _MOST and sheet.chance(_MORE)):
        wide = min(max(usual_px * math.exp(sheet.uniform(-0.5, 0.5)), low), high)
        radius = wide / 2
        rough, feather = sheet.uniform(0.03, 0.4), 1.0 + softness * radius
        seed = draw_seed(sheet.rng)
        blotches.append(Spot(sheet.place(), radius, rough, feather, opacity, color, mode, seed))
    return blotches
