"""What looks like damage and is picture: drawn into clean crops so that a detector learns both.

Lettering, frames, regular lines and rows of dots. All of it is regular where damage is not, which
is how a viewer tells them apart; a single thin line is not drawn here, as no one could tell.
"""

import string
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

OVERSAMPLING = 3  # drawn this much larger, then shrunk: soft edges, widths of parts of a pixel
_LETTERS = string.ascii_letters + string.digits + " .,-'"


def add_distractor(image: Tensor, rng: Generator) -> Tensor:
    """Draw one thing into an image.

    Args:
        image: (3, H, W) float32 in [-1, 1].
        rng: the only source of chance.

    Returns:
        A new image, like ``image``.
    """
    height, width = image.shape[1:]
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    kinds: tuple[Callable[[ImageDraw.ImageDraw, Generator], None], ...]
    kinds = (_lettering, _frame, _lines, _dots)
    kinds[rng.integers(len(kinds))](ImageDraw.Draw(canvas), rng)
    drawn = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    alpha = torch.from_numpy(drawn / 255)[None] * float(rng.uniform(0.4, 1.0))
    return image + alpha * (_tone(rng)[:, None, None] - image)


def _tone(rng: Generator) -> Tensor:
    """Mostly white or black, like damage; now and then a colour."""
    if rng.random() < 0.2:
        return torch.from_numpy(rng.uniform(-1, 1, 3)).float()
    level = rng.uniform(0.5, 1.0) if rng.random() < 0.6 else rng.uniform(-1.0, -0.6)
    return torch.full((3,), float(level))


def _size(draw: ImageDraw.ImageDraw) -> tuple[int, int]:
    """Width and height of the canvas."""
    width, height = draw.im.size
    return width, height


def _lettering(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    """One to four lines of letters."""
    width, height = _size(draw)
    size = float(rng.uniform(7, 34)) * OVERSAMPLING
    font = ImageFont.load_default(size)
    left, top = rng.uniform(-0.2, 0.6) * width, rng.uniform(0, 0.9) * height
    for row in range(int(rng.integers(1, 5))):
        count = int(rng.integers(3, 18))
        text = "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=count))
        draw.text((left, top + 1.3 * row * size), text, fill=255, font=font)


def _frame(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    """A rule round the picture, at an even distance from its border, single or double."""
    width, height = _size(draw)
    line = max(1, round(float(rng.uniform(0.6, 5)) * OVERSAMPLING))
    inset = rng.uniform(0, 0.12) * min(width, height)
    # a crop shows all of a frame, or one corner of it
    left, top = (inset if rng.random() < 0.5 else -2 * line for _ in range(2))
    right, bottom = width - inset, height - inset
    for gap in (0.0, 2.5 * line)[: int(rng.integers(1, 3))]:
        box = (left + gap, top + gap, right - gap, bottom - gap)
        draw.rectangle(box, outline=255, width=line)


def _lines(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    """Parallel lines at even distances: fences, blinds, wires, pinstripes."""
    width, height = _size(draw)
    reach = float(np.hypot(width, height))
    line = max(1, round(float(rng.uniform(0.6, 4)) * OVERSAMPLING))
    distance = line * rng.uniform(2.5, 10) + 3 * OVERSAMPLING
    angle = rng.uniform(0, np.pi)
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    # about the middle, so that more than one is in the crop: a line alone might be a scratch
    start = np.array([rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height])
    either_side = int(rng.integers(1, 7))
    for number in range(-either_side, either_side + 1):
        middle = start + number * distance * across
        ends = (*(middle - reach * along), *(middle + reach * along))
        draw.line(tuple(float(x) for x in ends), fill=255, width=line)


def _dots(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    """A row or a grid of equal discs: buttons, pearls, rivets, polka dots."""
    width, height = _size(draw)
    radius = float(rng.uniform(1, 5)) * OVERSAMPLING
    distance = radius * rng.uniform(2.5, 8)
    left, top = rng.uniform(0, 0.7) * width, rng.uniform(0, 0.7) * height
    rows = 1 if rng.random() < 0.5 else int(rng.integers(2, 8))
    slant = rng.uniform(-0.3, 0.3)
    for row in range(rows):
        for column in range(int(rng.integers(4, 12))):
            x, y = left + column * distance, top + row * distance + slant * column * distance
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
