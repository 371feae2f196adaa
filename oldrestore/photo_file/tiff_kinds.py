"""Which kinds of TIFF page are restored, and how their values become grey or RGB."""

from collections.abc import Callable
from typing import Any

import numpy as np

from oldrestore.photo_file.directory import Directory
from oldrestore.photo_file.errors import PhotoError, check_windowed_size
from oldrestore.photo_file.page import Array, widened
from oldrestore.photo_file.tags import (
    BITS_TAG,
    BLACK_IS_ZERO,
    COLOURS_TAG,
    DEPTH_TAG,
    FORMAT_TAG,
    HEIGHT_TAG,
    PALETTE,
    PHOTOMETRIC_TAG,
    RGB,
    SAMPLES_TAG,
    WHITE_IS_ZERO,
    WIDTH_TAG,
    YCBCR,
)

REFUSED = {
    4: "a transparency mask",
    5: "CMYK",
    8: "Lab",
    9: "Lab",
    10: "Lab",
    32803: "raw camera data",
    34892: "raw camera data",
    32844: "high dynamic range (LogL)",
    32845: "high dynamic range (LogLuv)",
}


def check_kind(directory: Directory, name: str) -> None:
    """Refuse a page that is not restored."""
    width, height = directory.number(WIDTH_TAG), directory.number(HEIGHT_TAG)
    check_windowed_size(width, height, name)
    photometric = directory.number(PHOTOMETRIC_TAG, BLACK_IS_ZERO)
    if photometric in REFUSED:
        raise PhotoError(f"{name}: holds {REFUSED[photometric]}; convert it to RGB or grey first")
    formats = set(directory.numbers(FORMAT_TAG)) or {1}
    bits = directory.numbers(BITS_TAG) or (1,)
    if formats & {3, 6}:
        raise PhotoError(f"{name}: holds floating-point values (HDR); convert it to 16 bits first")
    if not formats <= {1, 4} or len(set(bits)) != 1 or not 1 <= bits[0] <= 16:
        raise PhotoError(f"{name}: expected 1 to 16 unsigned bits a sample, got {bits[:5]}")
    if directory.number(DEPTH_TAG, 1) != 1:
        raise PhotoError(f"{name}: holds a volume, not a photo")
    samples = directory.number(SAMPLES_TAG, 1)
    allowed = {RGB: (3, 4), YCBCR: (3,), PALETTE: (1,)}.get(photometric, (1, 2))
    known = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR)
    if not known or samples not in allowed:
        what = f"photometric {photometric} with {samples} samples a pixel"
        raise PhotoError(f"{name}: expected grey or RGB and at most one more channel, got {what}")


def decoded_bytes(directory: Directory) -> int:
    samples = max(1, directory.number(SAMPLES_TAG, 1))
    sample_bytes = -(-directory.number(BITS_TAG, 1) // 8)
    return directory.number(WIDTH_TAG) * directory.number(HEIGHT_TAG) * samples * sample_bytes


def conversion(
    directory: Directory, name: str
) -> tuple[Callable[[Array], Array], int, "np.dtype[Any]", tuple[str, ...]]:
    """How stored values become ours: the function, channels, type, and what to tell the user."""
    bits = directory.number(BITS_TAG, 1)
    dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    channels = directory.number(SAMPLES_TAG, 1)
    photometric = directory.number(PHOTOMETRIC_TAG)
    if photometric == PALETTE:
        colours = np.array(directory.numbers(COLOURS_TAG), np.uint16)
        if len(colours) != 3 << bits:
            raise PhotoError(f"{name}: is damaged: its palette has {len(colours)} values")
        table = colours.reshape(3, -1).T
        # 8-bit colours are stored times 256 or times 257
        is_8_bit = not (table % 256).any() or bool((table % 257 == 0).all())
        table = (table >> 8).astype(np.uint8) if is_8_bit else table
        note = "palette colours are written as RGB"
        return lambda pixels: table[pixels[:, :, 0]], 3, table.dtype, (note,)
    most = np.array((1 << bits) - 1, dtype)
    is_inverted = photometric == WHITE_IS_ZERO

    def convert(pixels: Array) -> Array:
        if is_inverted:
            grey = slice(0, 1)
            pixels[:, :, grey] = most - pixels[:, :, grey]
        return widened(pixels, bits)

    note = f"{bits} bits a sample are written as {dtype.itemsize * 8}"
    return convert, channels, dtype, () if bits in (8, 16) else (note,)
