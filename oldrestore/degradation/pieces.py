"""Drawing single pieces of structured damage: where they are, how large, in what colour.

Sizes are in pixels and grow with the root of the photo's size, because a small picture is rather a
part of a photo than a small photo. Each piece is drawn within the room (in pixels) that is left of
the share of the photo that damage is to cover.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.blending import Mode
from oldrestore.degradation.edges import MissingCorner, Tear, WornEdge
from oldrestore.degradation.fields import Color, draw_seed
from oldrestore.degradation.folds import Crack, Crease
from oldrestore.degradation.holes import Hole, Spot, Stain
from oldrestore.degradation.scratches import Dust, Hair, Scratch
from oldrestore.degradation.textures import FilmFrame, Sticker, TextureSet

DrawnStep = (
    Scratch | Hair | Dust | Hole | Spot | Stain | Crease | Crack | Tear | MissingCorner | WornEdge
)


@dataclass(frozen=True)
class Sheet:
    """What the pieces of damage of one photo have in common."""

    rng: np.random.Generator
    height: int
    width: int
    scale: float  # of sizes in pixels
    is_grey: bool  # only neutral colours
    paper: Color

    def uniform(self, low: float, high: float) -> float:
        """Any value between the two."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Whether something happens."""
        return bool(self.rng.random() < probability)

    def lognormal(self, middle: float, spread: float, low: float, high: float) -> float:
        """Log-normal around ``middle``, cut to a range; all in pixels at scale 1."""
        value = middle * math.exp(spread * float(self.rng.standard_normal()))
        return min(max(value, low), high) * self.scale

    def place(self) -> tuple[float, float]:
        """Row and column of any point of the picture."""
        return self.uniform(0, self.height), self.uniform(0, self.width)

    def bright(self) -> tuple[Color, Mode]:
        """A light colour and one of the modes of Wan et al."""
        mode: Mode = ("hole", "lighten", "screen", "add")[int(self.rng.choice(4, p=_BRIGHT_MODES))]
        return self.paper, mode

    def dark(self) -> tuple[Color, Mode]:
        """The colour of dirt or of a deep scratch, and a mode that can darken."""
        level = self.uniform(0.0, 0.22)
        warmth = 0.0 if self.is_grey else self.uniform(0.0, 0.06)
        mode: Mode = "hole" if self.chance(0.6) else "multiply"
        return (level + warmth, level + warmth / 2, level), mode


_BRIGHT_MODES = (0.4, 0.25, 0.2, 0.15)
"""How often hole, lighten, screen and add are drawn for bright damage."""


Piece = tuple[DrawnStep, float]
"""A step and the number of pixels that it is expected to cover."""


def sample_scratch(sheet: Sheet, room_px: float) -> Piece:
    """A scratch: often along the height, else anywhere and bent."""
    width_px = sheet.lognormal(1.3, 0.5, 0.5, 8.0)
    longest = max(sheet.height, sheet.width)
    length = min(sheet.uniform(0.15, 1.3) * longest, 4 * room_px / width_px + 10)
    is_vertical = sheet.chance(0.55)
    angle = sheet.uniform(86, 94) if is_vertical else sheet.uniform(0, 360)
    bend = sheet.uniform(0.3, 2.5) if is_vertical else sheet.lognormal(12, 0.8, 2, 60) / sheet.scale
    color, mode = sheet.bright() if sheet.chance(0.65) else sheet.dark()
    start = (sheet.uniform(-0.3, 0.9) * sheet.height, sheet.uniform(0, sheet.width))
    if not is_vertical:
        start = sheet.place()
    gaps = max(0.0, sheet.uniform(-0.4, 0.4))
    opacity = sheet.uniform(0.3, 1.0)
    seed = draw_seed(sheet.rng)
    scratch = Scratch(start, angle, length, width_px, bend, gaps, opacity, color, mode, seed)
    return scratch, 0.5 * length * (width_px + 0.7)


def sample_hair(sheet: Sheet, room_px: float) -> Piece:
    """A hair."""
    width_px = sheet.lognormal(0.9, 0.3, 0.5, 2.0)
    length = min(sheet.lognormal(45, 0.6, 10, 160), 2 * room_px / width_px + 8)
    color, mode = sheet.bright() if sheet.chance(0.5) else sheet.dark()
    angle, curl = sheet.uniform(0, 360), sheet.uniform(15, 80)
    opacity = sheet.uniform(0.4, 1.0)
    hair = Hair(
        sheet.place(), angle, length, width_px, curl, opacity, color, mode, draw_seed(sheet.rng)
    )
    return hair, 0.9 * length * (width_px + 0.7)


def sample_dust(sheet: Sheet, room_px: float) -> Piece:
    """Dust over the whole picture."""
    size_px = sheet.lognormal(1.5, 0.4, 0.7, 4.0)
    area = 1.2 * size_px**2 + 1
    density = sheet.uniform(2e-4, 2.5e-3) / sheet.scale**2
    count = int(min(density * sheet.height * sheet.width, room_px / area)) + 2
    color, mode = sheet.bright() if sheet.chance(0.65) else sheet.dark()
    clustering, opacity = sheet.uniform(0, 0.8), sheet.uniform(0.5, 1.0)
    dust = Dust(count, size_px, clustering, opacity, color, mode, draw_seed(sheet.rng))
    return dust, count * area


def _sample_hole(sheet: Sheet, room_px: float) -> Piece:
    largest = math.sqrt(room_px * sheet.uniform(0.3, 1.0) / math.pi) / sheet.scale
    radius = (
        min(max(sheet.lognormal(9, 0.6, 3, 30) / sheet.scale, 3), max(3, largest)) * sheet.scale
    )
    feather = sheet.uniform(1.0, 1.0 + 0.25 * radius)
    opacity = 1.0 if sheet.chance(0.75) else sheet.uniform(0.6, 1.0)
    rough = sheet.uniform(0.1, 0.5)
    seed = draw_seed(sheet.rng)
    hole = Hole(sheet.place(), radius, rough, feather, opacity, sheet.paper, seed)
    return hole, 3 * radius**2


def sample_spot(sheet: Sheet, room_px: float) -> Piece:
    """A spot."""
    largest = math.sqrt(room_px / math.pi) + 1
    radius = min(sheet.lognormal(3.0, 0.6, 1.0, 14.0), largest)
    color, mode = sheet.bright() if sheet.chance(0.5) else sheet.dark()
    rough, feather = sheet.uniform(0.05, 0.35), sheet.uniform(1.0, 1.0 + 0.5 * radius)
    opacity = sheet.uniform(0.4, 1.0)
    seed = draw_seed(sheet.rng)
    spot = Spot(sheet.place(), radius, rough, feather, opacity, color, mode, seed)
    return spot, 3.2 * radius**2


def _sample_stain(sheet: Sheet, room_px: float) -> Piece:
    largest = math.sqrt(room_px / math.pi) + 3
    radius = min(sheet.lognormal(18, 0.5, 6, 60), largest)
    is_bleach = sheet.chance(0.3)
    if is_bleach:
        color: Color = sheet.paper
        mode: Mode = "screen"
    else:
        level = sheet.uniform(0.25, 0.6)
        tint = (1.0, 1.0, 1.0) if sheet.is_grey else (1.0, sheet.uniform(0.8, 0.95), 0.6)
        color, mode = (level * tint[0], level * tint[1], level * tint[2]), "multiply"
    opacity = sheet.uniform(0.3, 0.8)
    rough, feather, tide = sheet.uniform(0.1, 0.4), sheet.uniform(1, 4), sheet.uniform(0.2, 0.9)
    seed = draw_seed(sheet.rng)
    stain = Stain(sheet.place(), radius, rough, feather, tide, opacity, color, mode, seed)
    return stain, 3.2 * radius**2


def _sample_crease(sheet: Sheet, room_px: float) -> Piece:
    width_px = sheet.lognormal(1.2, 0.4, 0.6, 4.0)
    longest = max(sheet.height, sheet.width)
    length = min(sheet.uniform(0.3, 1.4) * longest, room_px / width_px + 15)
    angle = sheet.rng.choice([0.0, 90.0, 45.0, 135.0]) + sheet.uniform(-15, 15)
    bend, flakes = sheet.uniform(2, 9), max(0.0, sheet.uniform(-0.05, 0.15)) / sheet.scale
    opacity = sheet.uniform(0.4, 1.0)
    crease = Crease(
        sheet.place(),
        float(angle),
        length,
        width_px,
        bend,
        flakes,
        opacity,
        sheet.paper,
        draw_seed(sheet.rng),
    )
    return crease, 1.5 * length * (width_px + 0.5)


def _sample_crack(sheet: Sheet, room_px: float) -> Piece:
    width_px = sheet.lognormal(1.2, 0.4, 0.6, 4.0)
    longest = max(sheet.height, sheet.width)
    length = min(sheet.uniform(0.15, 0.9) * longest, room_px / width_px + 10)
    angle, jag = sheet.uniform(0, 360), sheet.uniform(15, 45)
    branches, darkness = int(sheet.rng.integers(0, 4)), sheet.uniform(0, 0.8)
    opacity = sheet.uniform(0.5, 1.0)
    crack = Crack(
        sheet.place(),
        angle,
        length,
        width_px,
        jag,
        branches,
        darkness,
        opacity,
        sheet.paper,
        draw_seed(sheet.rng),
    )
    return crack, length * (width_px + 0.7) * (1 + 0.2 * branches)


def _sample_tear(sheet: Sheet, room_px: float) -> Piece:
    width_px = min(sheet.lognormal(4, 0.5, 2, 12), math.sqrt(room_px) / 3 + 2)
    side = int(sheet.rng.integers(4))
    along = sheet.uniform(0.05, 0.95)
    start = (
        (-1.0, along * sheet.width),
        (along * sheet.height, sheet.width + 1.0),
        (sheet.height + 1.0, along * sheet.width),
        (along * sheet.height, -1.0),
    )[side]
    angle = 90.0 * (side + 1) + sheet.uniform(-40, 40)
    length = min(sheet.uniform(0.1, 0.7) * min(sheet.height, sheet.width), room_px / width_px + 10)
    jag = sheet.uniform(10, 40)
    tear = Tear(start, angle, length, width_px, jag, sheet.paper, draw_seed(sheet.rng))
    return tear, length * (width_px + 2)


def _sample_missing_corner(sheet: Sheet, room_px: float) -> Piece:
    side_px = min(sheet.lognormal(22, 0.5, 6, 70), math.sqrt(2 * room_px) + 4)
    ratio = math.exp(0.4 * float(sheet.rng.standard_normal()))
    level = (sheet.uniform(0.0, 0.15), sheet.uniform(0.85, 1.0), sheet.uniform(0.3, 0.7))
    backing = level[int(sheet.rng.integers(3))]
    jag, rim = sheet.uniform(0.5, 3.0), sheet.uniform(0.3, 3.0)
    corner, seed = int(sheet.rng.integers(4)), draw_seed(sheet.rng)
    missing = MissingCorner(
        corner, (side_px * ratio, side_px / ratio), jag, rim, (backing,) * 3, sheet.paper, seed
    )
    return missing, 0.6 * side_px**2


def _sample_worn_edge(sheet: Sheet, room_px: float) -> Piece:
    side = int(sheet.rng.integers(4))
    length = sheet.width if side in (0, 2) else sheet.height
    width_px = min(sheet.lognormal(6, 0.5, 2, 25), 1.2 * room_px / length + 1)
    if sheet.chance(0.35):  # silvering: a faint bluish mirror over the shadows
        blue = 0.0 if sheet.is_grey else 0.08
        color: Color = (0.62, 0.62 + blue / 2, 0.62 + blue)
        mode: Mode = "lighten"
        patchiness, opacity = sheet.uniform(0, 0.3), sheet.uniform(0.3, 0.8)
    else:
        color, mode = sheet.bright() if sheet.chance(0.6) else sheet.dark()
        patchiness, opacity = sheet.uniform(0.2, 1), sheet.uniform(0.5, 1)
    worn = WornEdge(side, width_px, opacity, patchiness, color, mode, draw_seed(sheet.rng))
    return worn, 0.9 * length * width_px


KINDS: tuple[tuple[Callable[[Sheet, float], Piece], float], ...] = (
    (sample_scratch, 0.22),
    (sample_hair, 0.10),
    (sample_dust, 0.18),
    (sample_spot, 0.12),
    (_sample_hole, 0.13),
    (_sample_crack, 0.07),
    (_sample_crease, 0.07),
    (_sample_stain, 0.04),
    (_sample_tear, 0.03),
    (_sample_missing_corner, 0.02),
    (_sample_worn_edge, 0.02),
)
"""The kinds and how often each is among those of a photo."""

FEW = (_sample_stain, _sample_tear, _sample_missing_corner, _sample_worn_edge)
"""Kinds of which a photo has one or two pieces."""


def sample_textures(
    sheet: Sheet, room_px: float, textures: TextureSet
) -> tuple[list[Sticker | FilmFrame], float]:
    """One window of a frame, or a few stickers of one or two kinds; and the pixels they cover."""
    rng = sheet.rng
    color, mode = sheet.bright() if sheet.chance(0.65) else sheet.dark()
    opacity = sheet.uniform(0.4, 1.0)
    if textures.frames and (not textures.stickers or sheet.chance(0.35)):
        name = textures.frames[int(rng.integers(len(textures.frames)))]
        place = (sheet.uniform(0, 1), sheet.uniform(0, 1))
        scale = sheet.uniform(0.3, 0.8) * sheet.scale
        is_flipped, turns = sheet.chance(0.5), int(rng.integers(4))
        frame = FilmFrame(name, place, scale, is_flipped, turns, opacity, color, mode)
        return [frame], textures.density(name) * sheet.height * sheet.width
    steps: list[Sticker | FilmFrame] = []
    covered_px = 0.0
    kinds = sorted(textures.stickers)
    for kind in rng.choice(len(kinds), size=int(rng.integers(1, 3))):
        names = textures.stickers[kinds[int(kind)]]
        for _ in range(int(rng.integers(1, 4))):
            name = names[int(rng.integers(len(names)))]
            whole_px = textures.density(name) * textures.pixels(name).size
            scale = min(sheet.uniform(0.15, 0.6) * sheet.scale, math.sqrt(room_px / whole_px))
            angle, is_flipped = sheet.uniform(0, 360), sheet.chance(0.5)
            steps.append(
                Sticker(name, sheet.place(), scale, angle, is_flipped, opacity, color, mode)
            )
            covered_px += whole_px * scale**2
            if covered_px >= room_px:
                return steps, covered_px
    return steps, covered_px
