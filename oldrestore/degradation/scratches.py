"""Thin damage: scratches, hairs and dust."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.blending import Layer, Mode, layers_of
from oldrestore.degradation.fields import Color, generator, smooth_noise_1d
from oldrestore.degradation.shapes import Line, stamp, wander

_KNOT_PX = 12.0
"""Distance over which the width and the opacity of a line change."""


@dataclass(frozen=True)
class Scratch:
    """A scratch: an almost straight or a bent line of varying width, here and there interrupted.

    start: row and column, in pixels; angle_deg: heading from the x axis, 90 is downwards.
    length_px, width_px: of the line.
    bend_deg: how far the heading strays.
    gaps: share of the line that is missing, in [0, 1).
    opacity: in [0, 1]; color: in [0, 1]; mode: as in `blend`.
    seed: of the path and its variations.
    """

    start: tuple[float, float]
    angle_deg: float
    length_px: float
    width_px: float
    bend_deg: float
    gaps: float
    opacity: float
    color: Color
    mode: Mode
    seed: int


def render_scratch(scratch: Scratch, size: tuple[int, int]) -> list[Layer]:
    """Lay discs along the path."""
    rng = generator(scratch.seed)
    path = wander(
        rng,
        scratch.start,
        scratch.angle_deg,
        length_px=scratch.length_px,
        bend_deg=scratch.bend_deg,
        turn_px=max(16.0, scratch.length_px / 4),
    )
    count = len(path.y)
    radius = 0.5 * scratch.width_px * np.exp(0.3 * smooth_noise_1d(rng, count, _KNOT_PX))
    strength = np.clip(0.8 + 0.3 * smooth_noise_1d(rng, count, _KNOT_PX), 0.15, 1.0)
    is_there = smooth_noise_1d(rng, count, 2 * _KNOT_PX) > _quantile(scratch.gaps)
    opacity = (scratch.opacity * strength * is_there).astype(np.float32)
    window = stamp(size, path, radius.astype(np.float32), opacity)
    return layers_of(window, scratch.color, scratch.mode)


def _quantile(share: float) -> float:
    """Below which value lies this share of a standard normal; logistic approximation."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share)) / 1.702


@dataclass(frozen=True)
class Hair:
    """A hair or a thread of lint on the print or in the scanner: thin, curled, tapered.

    start, angle_deg, length_px, width_px, opacity, color, mode, seed: as in `Scratch`.
    curl_deg: how far the heading strays over a fifth of the length.
    """

    start: tuple[float, float]
    angle_deg: float
    length_px: float
    width_px: float
    curl_deg: float
    opacity: float
    color: Color
    mode: Mode
    seed: int


def render_hair(hair: Hair, size: tuple[int, int]) -> list[Layer]:
    """Lay discs along the path, thinner towards both ends."""
    rng = generator(hair.seed)
    path = wander(
        rng,
        hair.start,
        hair.angle_deg,
        length_px=hair.length_px,
        bend_deg=hair.curl_deg,
        turn_px=max(6.0, hair.length_px / 5),
    )
    count = len(path.y)
    taper = np.sqrt(np.sin(np.linspace(0.15, math.pi - 0.15, count)))
    radius = (0.5 * hair.width_px * taper).astype(np.float32)
    opacity = np.full(count, hair.opacity, dtype=np.float32)
    window = stamp(size, path, radius, opacity)
    return layers_of(window, hair.color, hair.mode)


@dataclass(frozen=True)
class Dust:
    """Specks of dust and small losses, some of them in clusters.

    count: specks; size_px: their median diameter.
    clustering: share of the specks that lie in clusters, in [0, 1].
    opacity, color, mode, seed: as in `Scratch`.
    """

    count: int
    size_px: float
    clustering: float
    opacity: float
    color: Color
    mode: Mode
    seed: int


_DISCS = 3
"""Discs of a speck: overlapping, they make it other than round."""

_SPECK_SPREAD, _LARGEST_SPECK = 0.45, 3.0
"""Standard deviation of the log diameter of specks, and the largest over the median."""


def render_dust(dust: Dust, size: tuple[int, int]) -> list[Layer]:
    """Lay a few discs, close together, for each speck."""
    rng = generator(dust.seed)
    place = rng.random((2, dust.count))
    hubs = rng.random((2, 1 + dust.count // 12))
    hub = rng.integers(hubs.shape[1], size=dust.count)
    near = hubs[:, hub] + 0.08 * rng.standard_normal((2, dust.count))
    place = np.where(rng.random(dust.count) < dust.clustering, near, place)
    size_px = dust.size_px * np.exp(_SPECK_SPREAD * rng.standard_normal(dust.count))
    size_px = np.minimum(size_px, _LARGEST_SPECK * dust.size_px)
    opacity = np.repeat(dust.opacity * rng.uniform(0.5, 1.0, dust.count), _DISCS)
    offset = rng.standard_normal((2, dust.count, _DISCS)) * (0.4 * size_px[:, None])
    y = (place[0] * size[0])[:, None] + offset[0]
    x = (place[1] * size[1])[:, None] + offset[1]
    radius = 0.4 * size_px[:, None] * rng.uniform(0.5, 1.1, y.shape)
    discs = Line(*(values.ravel().astype(np.float32) for values in (y, x, np.zeros_like(y))))
    window = stamp(size, discs, radius.ravel().astype(np.float32), opacity.astype(np.float32))
    return layers_of(window, dust.color, dust.mode)
