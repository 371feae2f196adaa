"""Pixels of a TIFF page as they are stored, by windows: strips and tiles decoded on demand.

tifffile and imagecodecs decode a strip or tile; what is kept of them is bounded. Rows of a page
that is not compressed are read where they stand, however long its strips are.
"""

import struct
import tempfile
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from oldrestore.photo_file.errors import (
    MAX_DECODED_BYTES,
    PhotoError,
    check_expansion,
    no_codecs,
    reading,
)
from oldrestore.photo_file.page import Array
from oldrestore.photo_file.source import Source
from oldrestore.photo_file.tags import JPEG, PLANES

# Of decoded strips and tiles: two rows of them, as a photo is read at two places in turn, and no
# more than two rows of tiles of 512 px across 30,000 px of 16-bit RGB.
CACHE_ROWS = 2
CACHE_BYTES = 192 << 20
JPEG_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


class Stored(Protocol):
    """Pixels in the order of the file. held_bytes: the most that is kept of them."""

    @property
    def held_bytes(self) -> int: ...

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """A window (height, width, channels)."""


class Segments:
    """Strips or tiles of a page, decoded when they are asked for.

    Args:
        source: the file.
        page: tifffile's page.
        name: what messages call it.
    """

    def __init__(self, source: Source, page: Any, name: str) -> None:
        self._source, self._page, self._name = source, page, name
        self._planes = page.samplesperpixel if page.planarconfig == PLANES else 1
        self._channels = page.samplesperpixel
        rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        columns = page.tilewidth if page.is_tiled else page.imagewidth
        if min(rows, columns) < 1:
            raise PhotoError(f"{name}: is damaged: its strips or tiles are {rows} x {columns} px")
        self.shape = rows, columns
        self._across, self._down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
        # of one bit a sample tifffile makes truth values
        self._dtype = np.dtype(np.uint8 if page.dtype == bool else page.dtype.newbyteorder("="))
        number = self._across * self._down * self._planes
        self._offsets, self._counts = places(page, number, name)
        samples = self._channels // self._planes
        self._decoded_bytes: int = rows * columns * samples * self._dtype.itemsize
        if self._decoded_bytes > MAX_DECODED_BYTES:
            raise PhotoError(
                f"{name}: has strips or tiles of {self._decoded_bytes} bytes, and "
                f"{MAX_DECODED_BYTES} is the most; write it anew in tiles (tiffcp -t)"
            )
        kept = min(CACHE_ROWS * self._across * self._planes, CACHE_BYTES // self._decoded_bytes)
        self._kept: int = max(1, kept)
        self._cache: OrderedDict[int, Array] = OrderedDict()
        self._jpeg_tables = page.jpegtables

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """A window (height, width, channels)."""
        out = np.empty((height, width, self._channels), self._dtype)
        if not out.size:
            return out
        rows, columns = self.shape
        for row in range(top // rows, (top + height - 1) // rows + 1):
            for column in range(left // columns, (left + width - 1) // columns + 1):
                y0, y1 = max(top, row * rows), min(top + height, (row + 1) * rows)
                x0, x1 = max(left, column * columns), min(left + width, (column + 1) * columns)
                for plane in range(self._planes):
                    index = (plane * self._down + row) * self._across + column
                    segment = self._segment(index)[
                        y0 - row * rows : y1 - row * rows,
                        x0 - column * columns : x1 - column * columns,
                    ]
                    channels = slice(plane, plane + 1) if self._planes > 1 else slice(None)
                    place = out[y0 - top : y1 - top, x0 - left : x1 - left, channels]
                    if place.shape != segment.shape:
                        raise PhotoError(
                            f"{self._name}: is damaged: strip or tile {index} is short"
                        )
                    place[...] = segment
        return out

    @property
    def held_bytes(self) -> int:
        """The most that is kept of what was decoded."""
        return self._kept * self._decoded_bytes

    def _segment(self, index: int) -> Array:
        """A decoded strip or tile (rows, columns, samples)."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        data = self._data(index)
        try:
            with reading(self._name):
                decoded = self._page.decode(data, index, jpegtables=self._jpeg_tables)[0]
        except ImportError as error:  # imagecodecs' own, of a codec that it was built without
            raise no_codecs(self._name, f"compression {self._page.compression}") from error
        segment: Array = decoded[0]
        while len(self._cache) >= self._kept:
            self._cache.popitem(last=False)
        self._cache[index] = segment
        return segment

    def _data(self, index: int) -> bytes:
        """Encoded bytes of a strip or tile."""
        count = self._counts[index]
        data = self._source.read_at(self._offsets[index], count)
        if not count or len(data) < count:
            message = f"strip or tile {index} lies beyond the end" if count else f"{index} is empty"
            raise PhotoError(f"{self._name}: is damaged or cut short: {message}")
        check_expansion(self._decoded_bytes, len(data), self._name)
        if self._page.compression == JPEG and (size := _jpeg_size(data)) is not None:
            rows, columns = self.shape
            if size[0] > rows or size[1] > columns:
                raise PhotoError(
                    f"{self._name}: is damaged: strip or tile {index} holds {size[0]} x {size[1]} "
                    f"px, expected at most {rows} x {columns}"
                )
        return data


class RawRows:
    """Rows that stand in a file as they are.

    Args:
        source: the file.
        offsets: where each strip starts.
        rows: of a strip.
        shape: (H, W, C) of the page.
        dtype: with the file's byte order.
    """

    held_bytes = 0

    def __init__(
        self,
        source: Source,
        offsets: tuple[int, ...],
        rows: int,
        shape: tuple[int, int, int],
        dtype: "np.dtype[Any]",
        name: str,
    ) -> None:
        self._source, self._offsets, self._rows, self._name = source, offsets, rows, name
        self._shape, self._dtype = shape, dtype
        self._row_bytes = shape[1] * shape[2] * dtype.itemsize

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """A window (height, width, channels)."""
        channels = self._shape[2]
        out = np.empty((height, width, channels), self._dtype.newbyteorder("="))
        is_whole_row, row = width == self._shape[1], top
        while row < top + height:
            strip = row // self._rows
            end = min(top + height, (strip + 1) * self._rows) if is_whole_row else row + 1
            offset = self._offsets[strip] + (row - strip * self._rows) * self._row_bytes
            offset += left * channels * self._dtype.itemsize
            count = (end - row) * width * channels * self._dtype.itemsize
            data = self._source.read_at(offset, count)
            if len(data) < count:
                missing = row + len(data) // self._row_bytes
                raise PhotoError(f"{self._name}: is damaged or cut short: row {missing} is missing")
            rows = np.frombuffer(data, self._dtype).reshape(end - row, width, channels)
            out[row - top : end - top] = rows
            row = end
        return out


class Spooled:
    """Stored pixels decoded once into a temporary file, for reading them by columns.

    Args:
        stored: what is decoded.
        shape: (H, W, C) of the page.
        rows: to decode at a time.
    """

    def __init__(
        self, stored: Stored, shape: tuple[int, int, int], dtype: "np.dtype[Any]", rows: int
    ) -> None:
        self._stored, self._shape, self._dtype, self._rows = stored, shape, dtype, rows
        self._file: Any = None

    @property
    def held_bytes(self) -> int:
        return self._stored.held_bytes

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """A window (height, width, channels)."""
        if self._file is None:
            self._file = self._decoded()
        _, columns, channels = self._shape
        out = np.empty((height, width, channels), self._dtype)
        for row in range(height):
            pixel = (top + row) * columns + left
            self._file.seek(pixel * channels * self._dtype.itemsize)
            data = self._file.read(width * channels * self._dtype.itemsize)
            out[row] = np.frombuffer(data, self._dtype).reshape(width, channels)
        return out

    def _decoded(self) -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this page)
        for top in range(0, self._shape[0], self._rows):
            height = min(self._rows, self._shape[0] - top)
            file.write(self._stored.read(top, 0, height, self._shape[1]).tobytes())
        file.flush()
        return file


def places(page: Any, number: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and bytes of so many strips or tiles of a tifffile page."""
    offsets, counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    if min(len(offsets), len(counts)) < number:
        found = min(len(offsets), len(counts))
        raise PhotoError(f"{name}: is damaged: has {found} strips or tiles of {number}")
    if not all(isinstance(value, int) and value >= 0 for value in (*offsets, *counts)):
        raise PhotoError(f"{name}: is damaged: its strips or tiles have no places")
    return offsets, counts


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG stream says it has; None if it says nothing."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            place += 2
        elif marker in JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
