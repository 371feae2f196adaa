"""Textures of real film damage, as an optional source of structured damage.

A texture is a grey PNG, white where the film is damaged. A large one is the scan of a whole frame,
of which a window is laid over the picture; a small one is a sticker, placed anywhere at any angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from oldrestore.degradation.blending import Layer, Mode, Window, layers_of
from oldrestore.degradation.fields import Color

FRAME_PX = 1000
"""A texture whose longer side has at least this many pixels is a whole frame."""

_HASHES = 1000  # values of the hash of a name


@dataclass(frozen=True)
class TextureSet:
    """Textures in a folder, read when first used and then kept (8 bits a pixel).

    folder: where they are.
    stickers: relative names of the stickers, by their subfolder.
    frames: relative names of the whole frames.
    """

    folder: Path
    stickers: dict[str, tuple[str, ...]]
    frames: tuple[str, ...]
    _pixels: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_folder(cls, path: str | Path) -> TextureSet:
        """Find the PNG files under ``path``, at any depth.

        Raises:
            ValueError: the folder does not exist, holds no PNG, or a PNG cannot be read.
        """
        folder = Path(path)
        stickers: dict[str, list[str]] = {}
        frames = []
        for file in sorted(folder.rglob("*.png")):
            name = file.relative_to(folder).as_posix()
            try:
                with Image.open(file) as image:
                    size = max(image.size)
            except (OSError, UnidentifiedImageError) as error:
                raise ValueError(f"path: cannot read the texture {file}: {error}") from error
            if size >= FRAME_PX:
                frames.append(name)
            else:
                stickers.setdefault(Path(name).parent.as_posix(), []).append(name)
        if not stickers and not frames:
            raise ValueError(f"path: expected a folder with PNG textures, got {folder}")
        kinds = {kind: tuple(names) for kind, names in stickers.items()}
        return cls(folder, kinds, tuple(frames))

    def split(self, share: float) -> tuple[TextureSet, TextureSet]:
        """Most of the textures, and about ``share`` of them, to judge with what was never seen.

        Which is which depends on their names alone. A part that would be empty is the whole set.
        """
        parts = []
        for is_kept_back in (False, True):

            def chosen(names: tuple[str, ...], wanted: bool = is_kept_back) -> tuple[str, ...]:
                return tuple(
                    n for n in names if (crc32(n.encode()) % _HASHES < share * _HASHES) == wanted
                )

            kinds = {kind: chosen(names) for kind, names in self.stickers.items()}
            stickers = {kind: names for kind, names in kinds.items() if names}
            frames = chosen(self.frames)
            parts.append(replace(self, stickers=stickers, frames=frames))
        first, second = (part if part.stickers or part.frames else self for part in parts)
        return first, second

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """(h, w) of a texture, 255 = damage, without the empty border.

        Raises:
            ValueError: no texture of this set has the name, or it cannot be read.
        """
        if name not in self._pixels:
            known = name in self.frames or any(name in names for names in self.stickers.values())
            if not known:
                raise ValueError(f"textures: {self.folder} has no texture named {name!r}")
            try:
                with Image.open(self.folder / name) as image:
                    grey = image.convert("L")
            except OSError as error:
                raise ValueError(f"textures: cannot read {self.folder / name}: {error}") from error
            if name not in self.frames:
                grey = grey.crop(grey.getbbox())
            self._pixels[name] = np.asarray(grey)
        return self._pixels[name]

    def density(self, name: str) -> float:
        """Mean of a texture in (0, 1]: the share of its rectangle that is damage."""
        return max(float(self.pixels(name).mean()), 1.0) / 255


@dataclass(frozen=True)
class Sticker:
    """One texture laid somewhere on the picture.

    name: of the texture in its set.
    center: row and column, in pixels.
    scale: pixels of the picture per pixel of the texture.
    angle_deg: turned counter-clockwise; is_flipped: left and right are exchanged first.
    opacity: in [0, 1]; color: in [0, 1]; mode: as in `blend`.
    """

    name: str
    center: tuple[float, float]
    scale: float
    angle_deg: float
    is_flipped: bool
    opacity: float
    color: Color
    mode: Mode


def render_sticker(sticker: Sticker, size: tuple[int, int], textures: TextureSet) -> list[Layer]:
    """Flip, scale, turn, and cut to the picture."""
    pixels = textures.pixels(sticker.name)
    image = Image.fromarray(pixels[:, ::-1] if sticker.is_flipped else pixels)
    columns, rows = (max(1, round(side * sticker.scale)) for side in image.size)
    image = image.resize((columns, rows), Image.Resampling.BILINEAR)
    image = image.rotate(sticker.angle_deg, Image.Resampling.BILINEAR, expand=True)
    turned = np.asarray(image)
    height, width = size
    top = round(sticker.center[0] - turned.shape[0] / 2)
    left = round(sticker.center[1] - turned.shape[1] / 2)
    turned = turned[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    if turned.size == 0:
        return []
    alpha = turned.astype(np.float32) * np.float32(sticker.opacity / 255)
    return layers_of(Window(max(0, top), max(0, left), alpha), sticker.color, sticker.mode)


@dataclass(frozen=True)
class FilmFrame:
    """A window of a whole scanned frame laid over the whole picture.

    name: of the texture in its set.
    place: row and column of the window, each as a share of the room there is, in [0, 1].
    scale: pixels of the picture per pixel of the texture; larger if the frame is too small.
    is_flipped: left and right are exchanged; quarter_turns: counter-clockwise, after the flip.
    opacity, color, mode: as in `Sticker`.
    """

    name: str
    place: tuple[float, float]
    scale: float
    is_flipped: bool
    quarter_turns: int
    opacity: float
    color: Color
    mode: Mode


def render_film_frame(frame: FilmFrame, size: tuple[int, int], textures: TextureSet) -> list[Layer]:
    """Turn the frame, cut the window, scale it to the picture."""
    height, width = size
    pixels = textures.pixels(frame.name)
    if frame.is_flipped:
        pixels = pixels[:, ::-1]
    pixels = np.rot90(pixels, frame.quarter_turns)
    scale = max(frame.scale, height / pixels.shape[0], width / pixels.shape[1])
    rows = min(pixels.shape[0], math.ceil(height / scale))
    columns = min(pixels.shape[1], math.ceil(width / scale))
    top = round(frame.place[0] * (pixels.shape[0] - rows))
    left = round(frame.place[1] * (pixels.shape[1] - columns))
    window = np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
    image = Image.fromarray(window).resize((width, height), Image.Resampling.BILINEAR)
    alpha = np.asarray(image).astype(np.float32) * np.float32(frame.opacity / 255)
    return layers_of(Window(0, 0, alpha), frame.color, frame.mode)
