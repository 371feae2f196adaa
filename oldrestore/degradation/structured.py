"""Structured damage: all its kinds in one place, and how a photo's share of it is drawn.

A photo has a few kinds of damage, not all of them, and one colour of paper. Pieces are drawn until
they cover the share of the photo that was drawn first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from oldrestore.degradation.blending import Layer
from oldrestore.degradation.blotches import sample_blotches
from oldrestore.degradation.edges import (
    MissingCorner,
    Tear,
    WornEdge,
    render_missing_corner,
    render_tear,
    render_worn_edge,
)
from oldrestore.degradation.film import sample_film
from oldrestore.degradation.folds import Crack, Crease, render_crack, render_crease
from oldrestore.degradation.holes import (
    Hole,
    Spot,
    Stain,
    render_hole,
    render_spot,
    render_stain,
)
from oldrestore.degradation.large import sample_large
from oldrestore.degradation.pieces import FEW, KINDS, Sheet, sample_textures
from oldrestore.degradation.scratches import (
    Dust,
    Hair,
    Scratch,
    render_dust,
    render_hair,
    render_scratch,
)
from oldrestore.degradation.settings import DegradationSettings
from oldrestore.degradation.textures import (
    FilmFrame,
    Sticker,
    TextureSet,
    render_film_frame,
    render_sticker,
)

StructuredStep = (
    Scratch
    | Hair
    | Dust
    | Hole
    | Spot
    | Stain
    | Crease
    | Crack
    | Tear
    | MissingCorner
    | WornEdge
    | Sticker
    | FilmFrame
)


def render(step: StructuredStep, size: tuple[int, int], textures: TextureSet | None) -> list[Layer]:
    """The layers of one step, in the order in which they are laid over the picture.

    Raises:
        ValueError: the step needs textures and none were given, or its texture is not among them.
    """
    if isinstance(step, (Sticker, FilmFrame)):
        if textures is None:
            raise ValueError(f"textures: the degradation uses {step.name!r}, got None")
        if isinstance(step, Sticker):
            return render_sticker(step, size, textures)
        return render_film_frame(step, size, textures)
    return _RENDERERS[type(step)](step, size)


_RENDERERS: dict[type, Callable[..., list[Layer]]] = {
    Scratch: render_scratch,
    Hair: render_hair,
    Dust: render_dust,
    Hole: render_hole,
    Spot: render_spot,
    Stain: render_stain,
    Crease: render_crease,
    Crack: render_crack,
    Tear: render_tear,
    MissingCorner: render_missing_corner,
    WornEdge: render_worn_edge,
}


_MOST_PIECES = 12
"""Pieces a photo has at most, at scale 1: a limit for time, not for looks."""

_KIND_SHARES = (0.35, 0.35, 0.2, 0.1)
"""Shares of photos with one, two, three and four kinds of drawn damage."""

_PAPER_LEVEL, _PAPER_WARMTH = (0.72, 1.0), (0.0, 0.2)
"""Range of the red of the paper, and of the share of blue that it lacks; green lacks a third."""

_REFERENCE_PX = 256
"""Size up to which sizes of damage do not grow."""


def sample_structured(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    is_grey: bool,
    settings: DegradationSettings,
    textures: TextureSet | None,
) -> tuple[StructuredStep, ...]:
    """Draw the structured damage of one photo.

    is_grey: only neutral colours are drawn.
    """
    scale = math.sqrt(max(1.0, _photo_px(rng, height, width, settings.photo_px) / _REFERENCE_PX))
    level = float(rng.uniform(*_PAPER_LEVEL))
    warmth = 0.0 if is_grey else float(rng.uniform(*_PAPER_WARMTH))
    paper = (level, level * (1 - warmth / 3), level * (1 - warmth))
    sheet = Sheet(rng, height, width, scale, is_grey, paper)
    # nothing is drawn for what never happens: a seed gives the same damage with and without it
    if settings.p_film and sheet.chance(settings.p_film):
        return tuple(sample_film(sheet, settings.film_coverage, textures))
    large: list[StructuredStep] = []
    if settings.p_large and sheet.chance(settings.p_large):
        large += sample_large(sheet, settings.large_width_px)
        if sheet.chance(0.5):
            return tuple(large)
    if settings.p_blotches and sheet.chance(settings.p_blotches):
        large += sample_blotches(sheet, settings.blotch_width_px)
        if sheet.chance(0.5):
            return tuple(large)
    share = settings.coverage_median * math.exp(float(rng.standard_normal()))
    share = min(max(share, settings.coverage[0]), settings.coverage[1])
    room_px = share * height * width
    steps = large
    if textures is not None and sheet.chance(settings.p_texture):
        pieces, area_px = sample_textures(sheet, room_px, textures)
        steps += pieces
        room_px -= area_px
    weights = np.array([weight for _, weight in KINDS])
    number = 1 + int(rng.choice(len(_KIND_SHARES), p=_KIND_SHARES))
    chosen = rng.choice(len(KINDS), size=number, replace=False, p=weights / weights.sum())
    kinds = [KINDS[int(index)][0] for index in chosen]
    for _ in range(int(_MOST_PIECES * scale)):
        if room_px <= 0:
            break
        kind = kinds[int(rng.integers(len(kinds)))]
        step, area_px = kind(sheet, room_px)
        steps.append(step)
        room_px -= area_px
        if kind in FEW and len(kinds) > 1:
            kinds.remove(kind)
    rng.shuffle(steps)
    return tuple(steps)


def _photo_px(
    rng: np.random.Generator, height: int, width: int, of_photo: tuple[float, float]
) -> float:
    """Shorter side of the photo: the picture's own, unless it is a part of a larger one."""
    low, high = of_photo
    drawn = low * (high / low) ** float(rng.random()) if low > 0 else 0.0
    return max(drawn, float(min(height, width)))
