"""Patches of damage: holes through which the paper shows, spots and stains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.blending import Layer, Mode, Window, layers_of
from oldrestore.degradation.fields import Color, draw_seed, generator, smooth_noise
from oldrestore.degradation.shapes import blob, paper


@dataclass(frozen=True)
class Hole:
    """Emulsion that is gone: paper shows through an irregular patch with feathered edges.

    center: row and column, in pixels; radius_px: mean radius.
    roughness: how far the outline strays from an oval, as a share of the radius.
    feather_px: width of the soft edge; opacity: in [0, 1].
    paper: colour of the paper, in [0, 1].
    seed: of the outline and the paper's texture.
    """

    center: tuple[float, float]
    radius_px: float
    roughness: float
    feather_px: float
    opacity: float
    paper: Color
    seed: int


def render_hole(hole: Hole, size: tuple[int, int]) -> list[Layer]:
    """Paper inside a blob."""
    rng = generator(hole.seed)
    patch = blob(
        rng,
        size,
        hole.center,
        radius_px=hole.radius_px,
        roughness=hole.roughness,
        feather_px=hole.feather_px,
    )
    if patch is None:
        return []
    color = paper(rng, patch.alpha.shape, hole.paper)
    window = Window(patch.top, patch.left, patch.alpha * np.float32(hole.opacity))
    return layers_of(window, color, "hole")


@dataclass(frozen=True)
class Spot:
    """A drop, a mould spot, a bubble of the emulsion: small, one colour.

    center, radius_px, roughness, feather_px, opacity, seed: as in `Hole`.
    color: in [0, 1]; mode: as in `blend`.
    """

    center: tuple[float, float]
    radius_px: float
    roughness: float
    feather_px: float
    opacity: float
    color: Color
    mode: Mode
    seed: int


def render_spot(spot: Spot, size: tuple[int, int]) -> list[Layer]:
    """One colour inside a blob."""
    rng = generator(spot.seed)
    patch = blob(
        rng,
        size,
        spot.center,
        radius_px=spot.radius_px,
        roughness=spot.roughness,
        feather_px=spot.feather_px,
    )
    if patch is None:
        return []
    window = Window(patch.top, patch.left, patch.alpha * np.float32(spot.opacity))
    return layers_of(window, spot.color, spot.mode)


@dataclass(frozen=True)
class Stain:
    """A dried liquid: a tinted, cloudy veil that is densest along its tide line.

    center, radius_px, roughness, feather_px, opacity, seed: as in `Hole`.
    tide: how much denser the rim is than the middle, in [0, 1].
    color: in [0, 1]; mode: as in `blend`.
    """

    center: tuple[float, float]
    radius_px: float
    roughness: float
    feather_px: float
    tide: float
    opacity: float
    color: Color
    mode: Mode
    seed: int


def render_stain(stain: Stain, size: tuple[int, int]) -> list[Layer]:
    """A blob whose opacity falls from the rim inwards, times a cloudy field."""
    rng = generator(stain.seed)
    outline = draw_seed(rng)
    outer, inner = (
        blob(
            generator(outline),
            size,
            stain.center,
            radius_px=stain.radius_px,
            roughness=stain.roughness,
            feather_px=feather,
        )
        for feather in (
            stain.feather_px,
            max(stain.feather_px * 4, stain.radius_px * 0.7),
        )
    )
    if outer is None or inner is None:
        return []
    # the wider feather reaches further: cut its window down to the outer one
    top, left = outer.top - inner.top, outer.left - inner.left
    rows, columns = outer.alpha.shape
    middle = inner.alpha[top : top + rows, left : left + columns]
    cloud = smooth_noise(rng, rows, columns, max(3.0, stain.radius_px / 3))
    density = (1.0 - np.float32(stain.tide) * middle) * np.clip(1.0 + 0.25 * cloud, 0.3, 1.5)
    alpha = np.clip(np.float32(stain.opacity) * outer.alpha * density, 0.0, 1.0)
    return layers_of(Window(outer.top, outer.left, alpha), stain.color, stain.mode)
