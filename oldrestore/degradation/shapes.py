"""Shapes of damage as opacities: wandering lines, stamped discs, blobs, and the look of paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.blending import Window
from oldrestore.degradation.fields import Array, Color, per_channel, smooth_noise, smooth_noise_1d

_STEP_PX = 0.7
"""Distance of the points of a line: close enough that discs of any radius merge into a ribbon."""

_CHUNK = 1 << 18
"""Pixels of discs that are worked on at once; it bounds memory, the result is the same."""

_STRETCH = 0.25
"""Standard deviation of the log of a blob's length over its mean diameter."""

_RAGGED_PX, _RAGGED_SIZE_PX = 0.5, 2.5
"""How far, and over what distance, the fine field moves the border of a blob."""

_FIELD_LIMIT = 1.8
"""The fields are cut at this many standard deviations, so that a blob is bounded."""


@dataclass(frozen=True)
class Line:
    """Points along a line: rows, columns and headings (radians from the x axis), each (K,)."""

    y: Array
    x: Array
    heading: Array

    def shifted(self, distance_px: float) -> Line:
        """The line moved to its left by ``distance_px``."""
        return Line(
            self.y + np.float32(distance_px) * np.cos(self.heading),
            self.x - np.float32(distance_px) * np.sin(self.heading),
            self.heading,
        )


def wander(
    rng: np.random.Generator,
    start: tuple[float, float],
    angle_deg: float,
    *,
    length_px: float,
    bend_deg: float,
    turn_px: float,
) -> Line:
    """A line from ``start`` (row, column) whose heading strays by about ``bend_deg``.

    turn_px: the distance over which the heading changes; short is jagged, long is a curve.
    """
    count = max(2, math.ceil(length_px / _STEP_PX))
    stray = smooth_noise_1d(rng, count, turn_px / _STEP_PX) * np.float32(math.radians(bend_deg))
    heading = np.float32(math.radians(angle_deg)) + stray
    y = np.float32(start[0]) + np.cumsum(np.sin(heading)) * np.float32(_STEP_PX)
    x = np.float32(start[1]) + np.cumsum(np.cos(heading)) * np.float32(_STEP_PX)
    return Line(y.astype(np.float32), x.astype(np.float32), heading.astype(np.float32))


def stamp(
    size: tuple[int, int], line: Line, radius_px: Array, opacity: Array, softness_px: float = 1.0
) -> Window | None:
    """Discs at the points of a line, with radii and opacities (K,); the most opaque wins.

    size: height and width of the picture; None is returned if no disc reaches into it.
    softness_px: width of the fading rim, at least 1, which also smooths the stairs of the pixels.
    """
    height, width = size
    reach = math.ceil(float(radius_px.max(initial=0.0)) + 0.5 * softness_px)
    inside = (line.y > -reach) & (line.y < height + reach)
    inside &= (line.x > -reach) & (line.x < width + reach) & (opacity > 0)
    if not inside.any():
        return None
    y, x, radius_px, opacity = line.y[inside], line.x[inside], radius_px[inside], opacity[inside]
    # one pixel more than the discs reach, and the parts outside the picture cut off at the end
    top, left = math.floor(y.min()) - reach, math.floor(x.min()) - reach
    rows, columns = math.floor(y.max()) + reach + 1 - top, math.floor(x.max()) + reach + 1 - left
    alpha = np.zeros(rows * columns, dtype=np.float32)
    offsets = np.arange(-reach, reach + 1)
    chunk = max(1, _CHUNK // len(offsets) ** 2)
    for start in range(0, len(y), chunk):
        part = slice(start, start + chunk)
        row = np.floor(y[part]).astype(np.int64)[:, None] + offsets  # (K, P)
        column = np.floor(x[part]).astype(np.int64)[:, None] + offsets  # (K, P)
        down, right = row - y[part, None], column - x[part, None]
        distance = np.sqrt((down * down)[:, :, None] + (right * right)[:, None, :])  # (K, P, P)
        # thinner than a pixel, a line is fainter rather than narrower
        radius = np.maximum(radius_px[part], 0.5)[:, None, None]
        faint = (np.minimum(2 * radius_px[part], 1.0) * opacity[part])[:, None, None]
        disc = np.clip((radius + 0.5 * softness_px - distance) / softness_px, 0.0, 1.0) * faint
        index = ((row - top) * columns)[:, :, None] + (column - left)[:, None, :]
        is_there = disc > 0
        np.maximum.at(alpha, index[is_there], disc[is_there].astype(np.float32))
    plane = alpha.reshape(rows, columns)
    plane = plane[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return Window(max(0, top), max(0, left), plane) if plane.size else None


def blob(
    rng: np.random.Generator,
    size: tuple[int, int],
    center: tuple[float, float],
    *,
    radius_px: float,
    roughness: float,
    feather_px: float,
) -> Window | None:
    """An irregular patch with a feathered edge; None if it misses the picture.

    A stretched disc whose border is moved by a coarse and a fine smooth field, so that islands
    break off where the fields are strong.

    size: height and width of the picture.
    roughness: how far the coarse field moves the border, as a share of the radius.
    """
    height, width = size
    stretch = math.exp(_STRETCH * float(rng.standard_normal()))
    turn = float(rng.uniform(0, math.pi))
    swing = _FIELD_LIMIT * roughness * radius_px + _FIELD_LIMIT * _RAGGED_PX + feather_px
    reach = radius_px * max(stretch, 1 / stretch) + swing * max(stretch, 1 / stretch)
    top, bottom = max(0, math.floor(center[0] - reach)), min(height, math.ceil(center[0] + reach))
    left, right = max(0, math.floor(center[1] - reach)), min(width, math.ceil(center[1] + reach))
    if bottom <= top or right <= left:
        return None
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(center[0])
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(center[1])
    along = (x * math.cos(turn) + y * math.sin(turn)) / stretch
    across = (y * math.cos(turn) - x * math.sin(turn)) * stretch
    coarse = smooth_noise(rng, bottom - top, right - left, max(2.0, 0.7 * radius_px))
    fine = smooth_noise(rng, bottom - top, right - left, _RAGGED_SIZE_PX)
    border = radius_px * (1 + roughness * np.clip(coarse, -_FIELD_LIMIT, _FIELD_LIMIT))
    border += _RAGGED_PX * np.clip(fine, -_FIELD_LIMIT, _FIELD_LIMIT)
    alpha = np.clip((border - np.hypot(along, across)) / max(1.0, feather_px) + 0.5, 0.0, 1.0)
    return Window(top, left, alpha.astype(np.float32))


_CLOUD, _FIBRE = 0.025, 0.02
"""Standard deviations of the blotches and of the fibres of paper, on [0, 1]."""

_CLOUD_PX = 7.0
"""Width of the blotches of paper."""


def paper(rng: np.random.Generator, size: tuple[int, ...], color: Color) -> Array:
    """(3, *size) bare paper of a colour: faint blotches and short level fibres."""
    height, width = size
    fibres = rng.standard_normal((height, width + 2), dtype=np.float32)
    relief = np.float32(_FIBRE) * (fibres[:, :-2] + fibres[:, 1:-1] + fibres[:, 2:])
    relief += np.float32(_CLOUD) * smooth_noise(rng, height, width, _CLOUD_PX)
    textured: Array = np.clip(per_channel(color) + relief, 0.0, 1.0)
    return textured
