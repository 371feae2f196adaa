"""Photos that are read and written by windows, and never held: what files and arrays offer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]


class WindowReader(Protocol):
    """A photo, or a mask, of which windows are read: from the top down, more than once.

    size: height and width in pixels. channels: 1 (grey; a mask), 2 (grey, alpha), 3 or 4.
    dtype: uint8, uint16, or floating with values in [0, 1].
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """Pixels (height, width, channels) of a window that lies within the photo."""
        ...


class WindowWriter(Protocol):
    """Where a photo, or a mask, is written to, window by window from the top down."""

    def write(self, top: int, left: int, pixels: Pixels) -> None:
        """Take pixels (h, w, channels), from row ``top`` and column ``left`` on."""
        ...


class ArrayWindows:
    """An array (H, W[, C]) as reader and writer; memory-mapped ones too.

    Args:
        array: uint8, uint16 or floating in [0, 1].
    """

    def __init__(self, array: Pixels) -> None:
        self._array = array if array.ndim == 3 else array[:, :, None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self._array.shape[:2]
        return height, width

    @property
    def channels(self) -> int:
        """Of a pixel."""
        return int(self._array.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self._array.dtype

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """A copy of a window."""
        return np.array(self._array[top : top + height, left : left + width])

    def write(self, top: int, left: int, pixels: Pixels) -> None:
        """Put pixels (h, w, C) into the array."""
        self._array[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
