"""Rows of pixels as tensors, from and to what photos are: tensors in memory, windows of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oldrestore.image import ARRAY_TYPES, CHANNELS, mask_scale, mask_values
from oldrestore.photo_file import PhotoError, check_size
from oldrestore.tiling.windows import WindowReader, WindowWriter

MASK_ROWS = 256  # of a user's mask that are looked at together
FULL = 255


@dataclass(frozen=True)
class Source:
    """A photo, or a mask, of which rows are read: from the top down, once a pass.

    read: gives rows [top, bottom) as (1, C, h, W), values as a photo's are.
    """

    height: int
    width: int
    channels: int
    read: Callable[[int, int], Tensor]


def tensor_source(pixels: Tensor) -> Source:
    """Pixels (C, H, W) in memory."""

    def read(top: int, bottom: int) -> Tensor:
        return pixels[None, :, top:bottom].contiguous()

    channels, height, width = pixels.shape
    return Source(height, width, channels, read)


def photo_source(reader: WindowReader) -> Source:
    """A photo that is read by windows.

    Raises:
        PhotoError: it has a type, channels, a size or, when it is read, values that no photo has.
    """
    height, width = reader.size
    check_size(width, height, "photo")
    dtype = np.dtype(reader.dtype).newbyteorder("=")
    if dtype not in ARRAY_TYPES or reader.channels not in CHANNELS:
        raise PhotoError(
            "photo: expected uint8, uint16 or floating values of 1 to 4 channels, "
            f"got {reader.dtype} of {reader.channels}"
        )

    def read(top: int, bottom: int) -> Tensor:
        rows = _rows(reader, top, bottom)
        if rows.is_floating_point() and not ((rows >= 0) & (rows <= 1)).all():  # NaN is neither
            raise PhotoError("photo: expected floating values in [0, 1], got others, or NaN")
        return rows

    return Source(height, width, reader.channels, read)


def mask_source(mask: WindowReader, photo: WindowReader) -> Source:
    """A mask that is read by windows, as ``image.decode_mask`` reads one; gone through once here.

    Raises:
        PhotoError: it has another size than its photo, or its channels or values are no mask's.
    """
    name = str(getattr(mask, "name", "mask"))
    if tuple(mask.size) != tuple(photo.size):
        size = tuple(photo.size)
        raise PhotoError(f"{name}: expected {size} to match photo, got {tuple(mask.size)}")
    height, largest = mask.size[0], 0.0
    for top in range(0, height, MASK_ROWS):
        rows = _rows(mask, top, min(height, top + MASK_ROWS))
        largest = max(largest, float(mask_values(rows, name).max()))
    half = mask_scale(largest, name) / 2

    def read(top: int, bottom: int) -> Tensor:
        return (mask_values(_rows(mask, top, bottom), name) >= half).to(torch.uint8)

    return Source(*mask.size, 1, read)


def _rows(reader: WindowReader, top: int, bottom: int) -> Tensor:
    """(1, C, h, W) of the windows' values."""
    window = reader.read(top, 0, bottom - top, reader.size[1])
    native = np.ascontiguousarray(window, dtype=window.dtype.newbyteorder("="))
    return torch.from_numpy(native).permute(2, 0, 1)[None].contiguous()


def put_rows(pixels: Tensor, top: int, rows: Tensor) -> None:
    """Put rows (1, C, h, W) into pixels (C, H, W)."""
    pixels[:, top : top + rows.shape[2]] = rows[0].to(pixels.device)


def write_rows(writer: WindowWriter, top: int, rows: Tensor) -> None:
    """Write rows (1, C, h, W) as a window."""
    writer.write(top, 0, np.ascontiguousarray(rows[0].permute(1, 2, 0).numpy()))


def write_mask_rows(writer: WindowWriter, top: int, mask: Tensor) -> None:
    """Write rows (1, 1, h, W) of 0 and 1 as a window of 0 and 255."""
    write_rows(writer, top, mask * FULL)


def write_share_rows(writer: WindowWriter, top: int, shares: Tensor) -> None:
    """Write rows (1, 1, h, W) of values in [0, 1] as a window of uint8."""
    write_rows(writer, top, (shares.float() * FULL).round_().to(torch.uint8))
