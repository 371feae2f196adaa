"""Damage of the sheet's surface: creases where it was folded, cracks of the emulsion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oldrestore.degradation.blending import Layer, layers_of
from oldrestore.degradation.fields import Color, generator, smooth_noise_1d
from oldrestore.degradation.shapes import Line, stamp, wander

_SHADOW: Color = (0.06, 0.06, 0.06)
"""Colour of the dark flank of a fold and of the depth of a crack."""

_FLANK = 0.35
"""Opacity of the dark flank as a share of the bright line's."""

_KNOT_PX = 9.0
"""Distance over which width and opacity change."""


@dataclass(frozen=True)
class Crease:
    """A fold: a bright line where the emulsion broke, a dark flank, and flakes lost beside it.

    start: row and column, in pixels; angle_deg: heading from the x axis.
    length_px, width_px: of the bright line.
    bend_deg: how far the heading strays.
    flakes_per_px: number of lost flakes per pixel of length.
    opacity: in [0, 1]; paper: colour of the broken emulsion, in [0, 1].
    seed: of the path and its variations.
    """

    start: tuple[float, float]
    angle_deg: float
    length_px: float
    width_px: float
    bend_deg: float
    flakes_per_px: float
    opacity: float
    paper: Color
    seed: int


def _draw(
    size: tuple[int, int],
    path: Line,
    radius: NDArray[np.floating],
    opacity: NDArray[np.floating],
    color: Color,
) -> list[Layer]:
    """Discs along a path in one colour, over the picture."""
    window = stamp(size, path, radius.astype(np.float32), opacity.astype(np.float32))
    return layers_of(window, color, "hole")


def render_crease(crease: Crease, size: tuple[int, int]) -> list[Layer]:
    """The dark flank first, the bright line over it, then the flakes."""
    rng = generator(crease.seed)
    path = wander(
        rng,
        crease.start,
        crease.angle_deg,
        length_px=crease.length_px,
        bend_deg=crease.bend_deg,
        turn_px=20.0,
    )
    count = len(path.y)
    strength = np.clip(0.7 + 0.4 * smooth_noise_1d(rng, count, _KNOT_PX), 0.05, 1.0)
    side = float(rng.choice([-1.0, 1.0]))
    flank = path.shifted(side * crease.width_px)
    wide = np.full(count, 0.8 * crease.width_px, dtype=np.float32)
    shade = (_FLANK * crease.opacity * strength).astype(np.float32)
    shadow = stamp(size, flank, wide, shade, softness_px=1.0 + crease.width_px)
    layers = layers_of(shadow, _SHADOW, "hole")
    radius = 0.5 * crease.width_px * np.exp(0.35 * smooth_noise_1d(rng, count, _KNOT_PX))
    layers += _draw(size, path, radius, crease.opacity * strength, crease.paper)
    flakes = rng.integers(count, size=int(crease.flakes_per_px * crease.length_px))
    if len(flakes):
        offset = rng.standard_normal((2, len(flakes))) * (0.8 * crease.width_px)
        lost = Line(
            (path.y[flakes] + offset[0]).astype(np.float32),
            (path.x[flakes] + offset[1]).astype(np.float32),
            path.heading[flakes],
        )
        radius = crease.width_px * rng.uniform(0.2, 0.8, len(flakes))
        layers += _draw(size, lost, radius, np.full(len(flakes), 0.9), crease.paper)
    return layers


@dataclass(frozen=True)
class Crack:
    """A crack of the emulsion: jagged, branching, black in places and bright in others.

    start, angle_deg, length_px, width_px, opacity, paper, seed: as in `Crease`.
    jag_deg: how far the heading strays from one short piece to the next.
    branches: side cracks, thinner and shorter.
    darkness: share of the length that is black rather than bright, in [0, 1].
    """

    start: tuple[float, float]
    angle_deg: float
    length_px: float
    width_px: float
    jag_deg: float
    branches: int
    darkness: float
    opacity: float
    paper: Color
    seed: int


_JAG_PX = 4.0
"""Length of the straight pieces of a crack."""


def render_crack(crack: Crack, size: tuple[int, int]) -> list[Layer]:
    """Each crack in a bright and a dark part, the branches starting along the main one."""
    rng = generator(crack.seed)
    jags = {"bend_deg": crack.jag_deg, "turn_px": _JAG_PX}
    main = wander(rng, crack.start, crack.angle_deg, length_px=crack.length_px, **jags)
    paths = [(main, crack.width_px)]
    for _ in range(crack.branches):
        at = int(rng.integers(len(main.y)))
        angle = crack.angle_deg + float(rng.choice([-1, 1]) * rng.uniform(25, 75))
        length = crack.length_px * float(rng.uniform(0.1, 0.4))
        start = (float(main.y[at]), float(main.x[at]))
        branch = wander(rng, start, angle, length_px=length, **jags)
        paths.append((branch, 0.6 * crack.width_px))
    layers = []
    for path, width_px in paths:
        count = len(path.y)
        radius = 0.5 * width_px * np.exp(0.5 * smooth_noise_1d(rng, count, _KNOT_PX))
        is_dark = rng.random() < crack.darkness
        patches = smooth_noise_1d(rng, count, 2 * _KNOT_PX) > (0.8 if is_dark else -0.8)
        opacity = crack.opacity * np.clip(
            0.85 + 0.3 * smooth_noise_1d(rng, count, _KNOT_PX), 0.1, 1.0
        )
        layers += _draw(size, path, radius, opacity * patches, crack.paper)
        layers += _draw(size, path, radius, opacity * ~patches, _SHADOW)
    return layers
