"""How damage is laid over a picture, and which pixels it damages.

The modes are those of Wan et al. (CVPR 2020), section 3: layer addition, lighten-only, screen, and
holes through which the paper shows; "multiply" is added for stains and dirt, which darken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oldrestore.degradation.fields import Array, Color, per_channel

Mode = Literal["add", "lighten", "screen", "multiply", "hole"]

Bools = NDArray[np.bool_]

TOUCHED = 2 / 127.5
"""A pixel is damaged when a channel moves by more than this, two levels of 8 bits, on [-1, 1]."""

SEEN = 6 / 127.5
"""Six levels of 8 bits, on [-1, 1]: what a viewer who compares both pictures can see."""

VISIBLE = 12 / 127.5
"""Twelve levels of 8 bits, on [-1, 1], a twentieth of the range: damage that shows by itself. What
changes a picture by less is all but lost in its texture, grain and compression."""

COVERED = 0.5
"""A hole more opaque than this damages the pixel even where the paper has the picture's tone."""


@dataclass(frozen=True)
class Window:
    """A part of the picture: its first row and column, and the opacity there, (h, w) in [0, 1]."""

    top: int
    left: int
    alpha: Array


@dataclass(frozen=True)
class Layer:
    """A piece of damage, ready to lay over the picture.

    window: where it lies and how opaque it is.
    color: (3, 1, 1) or (3, h, w), in [0, 1].
    mode: how colour and picture meet.
    """

    window: Window
    color: Array
    mode: Mode


def layers_of(window: Window | None, color: Color | Array, mode: Mode) -> list[Layer]:
    """A window in one colour or in (3, h, w) colours; no layer if it misses the picture."""
    if window is None:
        return []
    return [Layer(window, per_channel(color) if isinstance(color, tuple) else color, mode)]


def blend(picture: Array, color: Array, alpha: Array, mode: Mode) -> Array:
    """Lay ``color`` over ``picture`` with opacity ``alpha``; all are in [0, 1], shapes broadcast.

    add       p + a c
    lighten   p + a (max(p, c) - p)
    screen    p + a ((1 - (1 - p) (1 - c)) - p)
    multiply  p + a (p c - p)
    hole      p + a (c - p)
    """
    change: Array
    if mode == "add":
        change = np.broadcast_to(color, picture.shape)
    elif mode == "lighten":
        change = np.maximum(picture, color) - picture
    elif mode == "screen":
        change = color * (1.0 - picture)
    elif mode == "multiply":
        change = picture * (color - 1.0)
    elif mode == "hole":
        change = color - picture
    else:
        raise ValueError(f"mode: expected add, lighten, screen, multiply or hole, got {mode!r}")
    blended: Array = np.clip(picture + alpha * change, 0.0, 1.0)
    return blended


def lay_over(picture: Array, layer: Layer, mask: Bools) -> None:
    """Lay one layer over ``picture`` (3, H, W) in [-1, 1] and add it to ``mask`` (H, W), in place.

    Pixels that the layer does not damage keep their value bit for bit.
    """
    top, left, alpha = layer.window.top, layer.window.left, layer.window.alpha
    rows, columns = np.nonzero(alpha)  # thin damage covers little of its window
    opacity = alpha[rows, columns]  # (K,)
    color = np.broadcast_to(layer.color, (3, *alpha.shape))[:, rows, columns]  # (3, K)
    rows, columns = rows + top, columns + left
    before = picture[:, rows, columns]  # (3, K)
    after = blend(before * np.float32(0.5) + np.float32(0.5), color, opacity, layer.mode)
    after = after * np.float32(2.0) - np.float32(1.0)
    damaged = np.abs(after - before).max(axis=0) > TOUCHED
    if layer.mode == "hole":
        damaged |= opacity > COVERED
    rows, columns = rows[damaged], columns[damaged]
    picture[:, rows, columns] = after[:, damaged]
    mask[rows, columns] = True


def dilate(mask: Bools, radius_px: int) -> Bools:
    """Grow a (H, W) mask by a square of ``radius_px`` pixels to each side."""
    grown = mask
    for axis in (0, 1):
        source = grown
        grown = source.copy()
        for offset in range(1, min(radius_px, source.shape[axis] - 1) + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(offset, None), slice(None, -offset)
            grown[tuple(ahead)] |= source[tuple(behind)]
            grown[tuple(behind)] |= source[tuple(ahead)]
    return grown
