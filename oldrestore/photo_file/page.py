"""A page: the pixels of one picture of a file, upright and read by windows."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from oldrestore.photo_file.metadata import Metadata

Array: TypeAlias = np.ndarray[Any, Any]

# orientation -> whether rows and columns change places, and whether rows, then columns, are
# reversed after that (EXIF 2.32, 4.6.4)
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Layout:
    """How a TIFF lays out a page, in TIFF's own numbers; a page written like it gets the same.

    tile: height and width; None for strips. rows: of a strip. extra_sample: meaning of the channel
    beside grey or RGB. is_white_zero: grey is stored inverted.
    """

    order: str = "<"
    is_big: bool = False
    tile: tuple[int, int] | None = None
    rows: int = 0
    compression: int = 8
    predictor: int = 2
    extra_sample: int = 2
    is_white_zero: bool = False


class Page(ABC):
    """One picture of a file, upright.

    name: what messages call it. size: height and width. channels: 1 (grey), 2 (grey and another,
    as a rule alpha), 3 (RGB) or 4. dtype: uint8 or uint16. notes: what reading changed without
    loss, to be told to the user. layout: of a TIFF page. is_lossless_webp: such files stay such.
    """

    name: str
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    metadata: Metadata
    notes: tuple[str, ...] = ()
    layout: Layout | None = None
    is_lossless_webp = False

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.size[0] * self.size[1] * self.channels * self.dtype.itemsize

    @property
    def held_bytes(self) -> int:
        """What the process holds of it at most, beside the windows that are read."""
        return self.nbytes

    @abstractmethod
    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """A window of the photo, (height, width, channels).

        Raises:
            ValueError: it does not lie inside the photo.
            PhotoError: the file is damaged there.
        """

    def read_all(self) -> Array:
        """The whole photo, (H, W, channels)."""
        return self.read(0, 0, *self.size)

    def tell_notes(self) -> None:
        """Warn of what reading changed."""
        for note in self.notes:
            warnings.warn(f"{self.name}: {note}", stacklevel=3)

    def check_window(self, top: int, left: int, height: int, width: int) -> None:
        """Refuse a window that does not lie inside the photo."""
        rows, columns = self.size
        is_inside = min(top, left, height, width) >= 0
        if not is_inside or top + height > rows or left + width > columns:
            window = (top, left, height, width)
            raise ValueError(f"window: expected one inside {rows} x {columns} px, got {window}")


class ArrayPage(Page):
    """A page that was decoded whole.

    Args:
        array: (H, W, C) as stored.
        metadata: as stored; tells how to turn the array upright.
    """

    def __init__(
        self,
        name: str,
        array: Array,
        metadata: Metadata,
        notes: tuple[str, ...] = (),
        *,
        is_lossless_webp: bool = False,
    ) -> None:
        self.name = name
        self.pixels: Array = turned(array, metadata.orientation)
        self.size = self.pixels.shape[0], self.pixels.shape[1]
        self.channels = self.pixels.shape[2]
        self.dtype = self.pixels.dtype
        self.metadata = metadata.upright()
        self.notes = notes
        self.is_lossless_webp = is_lossless_webp

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        self.check_window(top, left, height, width)
        return np.array(self.pixels[top : top + height, left : left + width])


def turned(array: Array, orientation: int) -> Array:
    """A view of a stored array (H, W, C), upright."""
    transposes, reverses_rows, reverses_columns = TURNS[orientation]
    array = array.swapaxes(0, 1) if transposes else array
    array = array[::-1] if reverses_rows else array
    return array[:, ::-1] if reverses_columns else array


def stored_window(
    orientation: int, size: tuple[int, int], window: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Where a window (top, left, height, width) of an upright photo of this size is stored."""
    top, left, height, width = window
    transposes, reverses_rows, reverses_columns = TURNS[orientation]
    top = size[0] - top - height if reverses_rows else top
    left = size[1] - left - width if reverses_columns else left
    return (left, top, width, height) if transposes else (top, left, height, width)


def widened(pixels: Array, bits: int) -> Array:
    """Values of ``bits`` bits, 1 to 16, scaled to 8 or 16; distinct values stay distinct."""
    full = 8 if bits <= 8 else 16
    if bits == full:
        return pixels
    top, most = (1 << full) - 1, (1 << bits) - 1
    scaled: Array = (pixels.astype(np.uint32) * top + most // 2) // most
    return scaled.astype(np.uint8 if full == 8 else np.uint16)
