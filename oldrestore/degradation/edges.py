"""Damage that comes from the sheet's border: tears, missing corners, worn and silvered edges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.blending import Layer, Mode, Window, layers_of
from oldrestore.degradation.fields import (
    Array,
    Color,
    generator,
    smooth_noise,
    smooth_noise_1d,
)
from oldrestore.degradation.shapes import paper, stamp, wander

_SHADOW: Color = (0.03, 0.03, 0.03)
"""Colour of the shadow that a torn edge throws."""

_JAG_PX = 5.0
"""Length over which a torn edge keeps its direction."""


@dataclass(frozen=True)
class Tear:
    """A tear from the border inwards: a jagged wedge of bare paper with a shadow on one side.

    start: row and column on or near the border, in pixels; angle_deg: heading from the x axis.
    length_px: of the tear; width_px: of the wedge at the border.
    jag_deg: how far the heading strays from one short piece to the next.
    paper: colour of the bare paper, in [0, 1].
    seed: of the path, the outline and the paper's texture.
    """

    start: tuple[float, float]
    angle_deg: float
    length_px: float
    width_px: float
    jag_deg: float
    paper: Color
    seed: int


def render_tear(tear: Tear, size: tuple[int, int]) -> list[Layer]:
    """The shadow first, the paper over it."""
    rng = generator(tear.seed)
    path = wander(
        rng,
        tear.start,
        tear.angle_deg,
        length_px=tear.length_px,
        bend_deg=tear.jag_deg,
        turn_px=_JAG_PX,
    )
    count = len(path.y)
    wedge = np.linspace(1.0, 0.12, count)
    radius = 0.5 * tear.width_px * wedge * np.exp(0.3 * smooth_noise_1d(rng, count, _JAG_PX))
    radius = radius.astype(np.float32)
    opaque = np.ones(count, dtype=np.float32)
    # the wedge opens from a straight side: the other side moves away with the width
    open_side = path.shifted(float(rng.choice([-0.5, 0.5])))
    depth = 1.0 + 0.1 * tear.width_px
    shadow = open_side.shifted(depth)
    dark = stamp(size, shadow, radius + np.float32(0.5), 0.5 * opaque, 1.0 + depth)
    layers = layers_of(dark, _SHADOW, "hole")
    bare = stamp(size, open_side, radius, opaque)
    if bare is not None:
        layers += layers_of(bare, paper(rng, bare.alpha.shape, tear.paper), "hole")
    return layers


@dataclass(frozen=True)
class MissingCorner:
    """A corner that broke off: the backing shows, along a jagged rim of torn paper.

    corner: 0 top left, 1 top right, 2 bottom right, 3 bottom left.
    size_px: how much is missing along the vertical and along the horizontal border.
    jag_px: how far the break strays from a straight line.
    rim_px: width of the torn paper along the break.
    backing, paper: colours in [0, 1].
    seed: of the break and the textures.
    """

    corner: int
    size_px: tuple[float, float]
    jag_px: float
    rim_px: float
    backing: Color
    paper: Color
    seed: int


def render_missing_corner(missing: MissingCorner, size: tuple[int, int]) -> list[Layer]:
    """The rim of paper first, the backing over it."""
    rng = generator(missing.seed)
    reach = 3 * missing.jag_px + 3 * missing.rim_px
    height, width = size
    rows = min(height, math.ceil(missing.size_px[0] + 2 * reach))
    columns = min(width, math.ceil(missing.size_px[1] + 2 * reach))
    is_bottom, is_right = missing.corner in (2, 3), missing.corner in (1, 2)
    y, x = (
        np.arange(rows, dtype=np.float32)[:, None],
        np.arange(columns, dtype=np.float32),
    )
    tall, wide = (np.float32(size) for size in missing.size_px)
    # distance from the line between the two ends, positive on the corner's side
    inside = (1.0 - y / tall - x / wide) / math.hypot(1 / float(tall), 1 / float(wide))
    inside = inside + np.float32(missing.jag_px) * smooth_noise(rng, rows, columns, 9.0)
    inside = inside + np.float32(0.4) * smooth_noise(rng, rows, columns, 2.0)
    rim = np.float32(missing.rim_px) * np.exp(0.5 * smooth_noise(rng, rows, columns, 8.0))
    if is_bottom:
        inside, rim = inside[::-1], rim[::-1]
    if is_right:
        inside, rim = inside[:, ::-1], rim[:, ::-1]
    top, left = height - rows if is_bottom else 0, width - columns if is_right else 0
    torn: Array = np.clip(inside + rim + 0.5, 0.0, 1.0)
    gone: Array = np.clip(inside + 0.5, 0.0, 1.0)
    fibres = paper(rng, (rows, columns), missing.paper)
    backing = paper(rng, (rows, columns), missing.backing)
    return [
        *layers_of(Window(top, left, torn), fibres, "hole"),
        *layers_of(Window(top, left, gone), backing, "hole"),
    ]


@dataclass(frozen=True)
class WornEdge:
    """A border that is rubbed, silvered or dark from the frame, fading inwards.

    side: 0 top, 1 right, 2 bottom, 3 left.
    width_px: how far it reaches on average.
    opacity: at the border, in [0, 1].
    patchiness: how uneven it is, in [0, 1]: 0 is an even halo, 1 is flaked.
    color: in [0, 1]; mode: as in `blend`.
    seed: of the outline and the patches.
    """

    side: int
    width_px: float
    opacity: float
    patchiness: float
    color: Color
    mode: Mode
    seed: int


def _edge_window(alpha: Array, side: int, size: tuple[int, int]) -> Window:
    """Turn a window drawn at the top border, (depth, length), to one of the four sides."""
    (height, width), depth = size, alpha.shape[0]
    if side == 0:
        return Window(0, 0, alpha)
    if side == 1:
        return Window(0, width - depth, alpha[::-1].T)
    if side == 2:
        return Window(height - depth, 0, alpha[::-1])
    return Window(0, 0, alpha.T)


def render_worn_edge(worn: WornEdge, size: tuple[int, int]) -> list[Layer]:
    """Opacity falls linearly from the border to a wavering depth, broken up by patches."""
    rng = generator(worn.seed)
    length, limit = (size[1], size[0]) if worn.side in (0, 2) else size
    waver = np.exp(0.5 * smooth_noise_1d(rng, length, 24.0))
    depth = min(limit, max(2, math.ceil(worn.width_px * float(waver.max()))))
    distance = np.arange(depth, dtype=np.float32)[:, None] / (worn.width_px * waver)[None, :]
    patches = smooth_noise(rng, depth, length, max(2.0, worn.width_px / 3))
    patches = np.clip(1.0 + np.float32(1.5 * worn.patchiness) * patches, 0.0, 1.0)
    alpha = np.float32(worn.opacity) * np.clip(1.0 - distance, 0.0, 1.0) * patches
    window = _edge_window(alpha.astype(np.float32), worn.side, size)
    return layers_of(window, worn.color, worn.mode)
