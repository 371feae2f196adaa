"""Drawing the damage of a film: a little dust, a few hairs, thin scratches along the film.

Of a scanned frame some three pixels in a thousand are damaged, and all of it is small and thin.
"""

from __future__ import annotations

import math

import numpy as np

from oldrestore.degradation.blending import Mode
from oldrestore.degradation.fields import Color
from oldrestore.degradation.pieces import (
    DrawnStep,
    Sheet,
    sample_dust,
    sample_hair,
    sample_scratch,
    sample_spot,
)
from oldrestore.degradation.settings import Range
from oldrestore.degradation.textures import FilmFrame, Sticker, TextureSet, render_film_frame

_KINDS = (sample_dust, sample_hair, sample_scratch, sample_spot)
_SHARES = (0.35, 0.3, 0.25, 0.1)
"""The drawn kinds and how often each is among the pieces."""

_MOST_PIECES = 8
"""Drawn pieces, and again stickers, at most: a limit for time."""

_WINDOWS = 4
"""Windows of frames of which the one nearest to the wanted share is taken."""

_TOUCHED = 0.05
"""Opacity above which a window damages a pixel."""

_WIDENED = 1.5
"""How much more a shrunk sticker covers than its share: its thin parts get soft edges."""

_STICKER_SCALE = (0.1, 0.4)
"""Pixels of the picture per pixel of a sticker: hairs one to three pixels wide."""


def sample_film(
    sheet: Sheet, coverage: Range, textures: TextureSet | None
) -> list[DrawnStep | Sticker | FilmFrame]:
    """The damage of one frame.

    coverage: least and greatest share of the pixels; evenly drawn in the logarithm.
    """
    low, high = coverage
    share = math.exp(sheet.uniform(math.log(low), math.log(high)))
    room_px = share * sheet.height * sheet.width
    steps: list[DrawnStep | Sticker | FilmFrame] = []
    if textures is not None and sheet.chance(0.6):
        stickers, area_px = _sample_stickers(sheet, room_px, textures)
        steps += stickers
        room_px -= area_px
    for _ in range(_MOST_PIECES):
        if room_px <= 0:
            break
        kind = _KINDS[int(sheet.rng.choice(len(_KINDS), p=_SHARES))]
        step, area_px = kind(sheet, room_px)
        steps.append(step)
        room_px -= area_px
    return steps


def _sample_stickers(
    sheet: Sheet, room_px: float, textures: TextureSet
) -> tuple[list[Sticker | FilmFrame], float]:
    """Single pieces of real dust and hair in one colour, or a sparse window of a whole frame."""
    color, mode = sheet.bright() if sheet.chance(0.65) else sheet.dark()
    opacity, rng = sheet.uniform(0.5, 1.0), sheet.rng
    if textures.frames and (not textures.stickers or sheet.chance(0.3)):
        frames = [_draw_frame(sheet, textures, opacity, color, mode) for _ in range(_WINDOWS)]
        areas = [_damaged_px(sheet, frame, textures) for frame in frames]
        best = int(np.argmin([abs(area - room_px) for area in areas]))
        return [frames[best]], areas[best]
    covered_px, steps = 0.0, list[Sticker | FilmFrame]()
    kinds = sorted(textures.stickers)
    for _ in range(_MOST_PIECES):
        names = textures.stickers[kinds[int(rng.integers(len(kinds)))]]
        name = names[int(rng.integers(len(names)))]
        whole_px = _WIDENED * textures.density(name) * textures.pixels(name).size
        left_px = room_px - covered_px
        if whole_px * _STICKER_SCALE[0] ** 2 > left_px:
            continue
        scale = min(sheet.uniform(*_STICKER_SCALE), math.sqrt(left_px / whole_px))
        angle, is_flipped = sheet.uniform(0, 360), sheet.chance(0.5)
        steps.append(Sticker(name, sheet.place(), scale, angle, is_flipped, opacity, color, mode))
        covered_px += whole_px * scale**2
    return steps, covered_px


def _draw_frame(
    sheet: Sheet, textures: TextureSet, opacity: float, color: Color, mode: Mode
) -> FilmFrame:
    """Any window of any frame."""
    name = textures.frames[int(sheet.rng.integers(len(textures.frames)))]
    place = (sheet.uniform(0, 1), sheet.uniform(0, 1))
    scale, is_flipped = sheet.uniform(0.3, 0.8), sheet.chance(0.5)
    turns = int(sheet.rng.integers(4))
    return FilmFrame(name, place, scale, is_flipped, turns, opacity, color, mode)


def _damaged_px(sheet: Sheet, frame: FilmFrame, textures: TextureSet) -> float:
    """Pixels of the picture that a window damages."""
    layers = render_film_frame(frame, (sheet.height, sheet.width), textures)
    return sum(float((layer.window.alpha > _TOUCHED).sum()) for layer in layers)
