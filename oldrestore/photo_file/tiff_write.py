"""TIFF files written page by page, window by window, with the tags of the page they are made of.

tifffile asks for its pixels strip by strip when it wants them, and writes no EXIF directories;
here windows come when the networks are done with them. So the container is written here.
"""

import struct
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from oldrestore.photo_file.directory import (
    BYTE,
    LONG,
    LONG8,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Directory,
    Entry,
    Header,
    numbers,
    raw,
    write_directory,
    write_header,
)
from oldrestore.photo_file.errors import PhotoError
from oldrestore.photo_file.metadata import Metadata, exif_directory
from oldrestore.photo_file.page import Array, Layout, Page
from oldrestore.photo_file.tags import (
    BITS_TAG,
    BLACK_IS_ZERO,
    COMPRESSION_TAG,
    EXTRA_TAG,
    HEIGHT_TAG,
    ICC_TAG,
    INCHES,
    IPTC_TAG,
    LAYOUT_TAGS,
    ORIENTATION_TAG,
    PHOTOMETRIC_TAG,
    PHOTOSHOP_TAG,
    PLANAR_TAG,
    PREDICTOR_TAG,
    RESOLUTION_UNIT_TAG,
    RGB,
    ROWS_TAG,
    SAMPLES_TAG,
    STRIP_COUNTS_TAG,
    STRIP_OFFSETS_TAG,
    SUBFILE_TAG,
    TILE_COUNTS_TAG,
    TILE_HEIGHT_TAG,
    TILE_OFFSETS_TAG,
    TILE_WIDTH_TAG,
    WHITE_IS_ZERO,
    WIDTH_TAG,
    X_RESOLUTION_TAG,
    XMP_TAG,
    Y_RESOLUTION_TAG,
)
from oldrestore.photo_file.tiff_codecs import encoder, layout_of

CLASSIC_BYTES = (1 << 32) - (1 << 20)
TAGS_BYTES = 64 << 20  # what metadata and tables may take, when the size of a file is foreseen
WORST_COMPRESSION = 1.02  # noise grows a little
RESOLUTION_SCALE = 10_000


class TiffWriter:
    """A TIFF file; pages are added one after the other.

    Args:
        file: empty, open for writing.
        order: "<" or ">".
        is_big: BigTIFF.
    """

    def __init__(self, file: BinaryIO, order: str, *, is_big: bool) -> None:
        self.file, self.header = file, Header(order, is_big, 0)
        self._pages = 0
        self._next_at = 8 if is_big else 4  # where the offset of the next page goes
        file.write(write_header(self.header))

    def add_page(self, page: Page) -> "TiffPageWriter":
        """A writer of one page of the size, type and tags of ``page``."""
        return TiffPageWriter(self, page)

    def write(self, data: bytes) -> int:
        """Append bytes at an even place; gives the place."""
        place = self.file.tell()
        if place % 2:
            place += self.file.write(b"\0")
        if not self.header.is_big and place + len(data) > CLASSIC_BYTES:
            raise PhotoError("grew beyond 4 GiB; BigTIFF was not foreseen")
        self.file.write(data)
        return place

    def finish_page(self, directory: Directory) -> None:
        """Append a page's directory and link it to the one before."""
        place = self.file.tell()
        if place % 2:
            place += self.file.write(b"\0")
        laid, where = write_directory(directory, place, is_big=self.header.is_big)
        self.write(laid)
        code = self.header.order + self.header.offset_code
        self.file.seek(self._next_at)
        self.file.write(struct.pack(code, where))
        self._next_at = place + len(laid) - struct.calcsize(code)
        self.file.seek(0, 2)


class TiffPageWriter:
    """Windows of a page -> strips or tiles; holds the rows that do not fill one yet."""

    def __init__(self, writer: TiffWriter, page: Page) -> None:
        self._writer, self._page = writer, page
        self._layout = layout = replace(layout_of(page), order=writer.header.order)
        self._encode = encoder(layout)
        self._size, self._channels = page.size, page.channels
        self._dtype = page.dtype.newbyteorder("=")
        self._rows = layout.tile[0] if layout.tile else layout.rows
        # rows that are not written yet, and how many pixels of each there are
        self._pending = np.empty((0, page.size[1], page.channels), self._dtype)
        self._filled = np.zeros(0, np.int64)
        self._done = 0  # rows written
        self._offsets: list[int] = []
        self._counts: list[int] = []

    def write(self, top: int, left: int, pixels: Array) -> None:
        """Take a window (height, width, channels); rows of windows come from top to bottom.

        Raises:
            ValueError: it does not fit the page, or lies on what was written before.
        """
        height, width = pixels.shape[:2]
        shape = height, width, self._channels
        if pixels.shape != shape or pixels.dtype.newbyteorder("=") != self._dtype:
            got = f"{pixels.dtype} {pixels.shape}"
            raise ValueError(f"pixels: expected {self._dtype} (h, w, {self._channels}), got {got}")
        is_inside = top >= self._done and left >= 0
        if not is_inside or top + height > self._size[0] or left + width > self._size[1]:
            raise ValueError(f"window: {(top, left, height, width)} is outside, or comes too late")
        start, end = top - self._done, top + height - self._done
        if end > len(self._pending):
            self._make_room(end)
        self._pending[start:end, left : left + width] = pixels
        self._filled[start:end] += width
        if (self._filled[start:end] > self._size[1]).any():
            raise ValueError(f"window: {(top, left, height, width)} lies on another")
        self._write_full_rows()

    def close(self) -> None:
        """Write the page's tags.

        Raises:
            ValueError: windows are missing.
        """
        if self._done < self._size[0]:
            raise ValueError(f"windows: expected {self._size[0]} whole rows, got {self._done}")
        order = self._writer.header.order
        is_big = self._writer.header.is_big
        directory = tags_of(self._page.metadata, order)
        entries = _layout_entries(self._page, self._layout, order)
        entries += self._segment_entries(is_big)
        self._writer.finish_page(directory.having(entries))
        self._pending = self._pending[:0].copy()

    def _make_room(self, rows: int) -> None:
        """Hold so many rows; the windows of the next rows will want as many."""
        rows += self._rows
        pending = np.empty((rows, *self._pending.shape[1:]), self._dtype)
        filled = np.zeros(rows, np.int64)
        pending[: len(self._pending)], filled[: len(self._filled)] = self._pending, self._filled
        self._pending, self._filled = pending, filled

    def _write_full_rows(self) -> None:
        """Write the strips, or rows of tiles, whose pixels are all there."""
        start = 0
        while self._done < self._size[0]:
            rows = min(self._rows, self._size[0] - self._done)
            filled = self._filled[start : start + rows]
            if len(filled) < rows or (filled < self._size[1]).any():
                break
            self._write_band(self._pending[start : start + rows])
            start += rows
            self._done += rows
        if start:
            kept = int((self._filled[start:] > 0).sum())  # rows are begun from top to bottom
            self._pending[:kept] = self._pending[start : start + kept]
            self._filled[: len(self._filled) - start] = self._filled[start:]
            self._filled[len(self._filled) - start :] = 0

    def _write_band(self, band: Array) -> None:
        columns = self._layout.tile[1] if self._layout.tile else band.shape[1]
        for left in range(0, band.shape[1], columns):
            segment = band[:, left : left + columns]
            if self._layout.tile:
                height, width = self._rows - len(segment), columns - segment.shape[1]
                segment = np.pad(segment, ((0, height), (0, width), (0, 0)), mode="edge")
            if self._layout.is_white_zero:
                segment = segment.copy()
                segment[:, :, :1] = np.iinfo(self._dtype).max - segment[:, :, :1]
            data = self._encode(segment)
            self._offsets.append(self._writer.write(data))
            self._counts.append(len(data))

    def _segment_entries(self, is_big: bool) -> list[Entry]:
        """Where strips or tiles are, and how they are shaped."""
        order, wide = self._writer.header.order, LONG8 if is_big else LONG
        if self._layout.tile:
            height, width = self._layout.tile
            shape = [
                numbers(order, TILE_WIDTH_TAG, LONG, width),
                numbers(order, TILE_HEIGHT_TAG, LONG, height),
            ]
            places = (TILE_OFFSETS_TAG, TILE_COUNTS_TAG)
        else:
            shape, places = (
                [numbers(order, ROWS_TAG, LONG, self._rows)],
                (STRIP_OFFSETS_TAG, STRIP_COUNTS_TAG),
            )
        return [
            *shape,
            numbers(order, places[0], wide, *self._offsets),
            numbers(order, places[1], wide, *self._counts),
        ]


def pending_bytes(page: Page) -> int:
    """What waits, at most, until a strip or a row of tiles is full, and once more to grow."""
    layout = layout_of(page)
    rows = layout.tile[0] if layout.tile else layout.rows
    return min(page.nbytes, 2 * rows * (page.nbytes // page.size[0]))


def needs_big(decoded_bytes: int) -> bool:
    """Whether a file of so many bytes of pixels may outgrow 4 GiB."""
    return decoded_bytes * WORST_COMPRESSION + TAGS_BYTES > CLASSIC_BYTES


def tags_of(metadata: Metadata, order: str) -> Directory:
    """What goes into a page's tags of the metadata, whatever format it came from."""
    if metadata.tiff is not None:
        return metadata.tiff.without(LAYOUT_TAGS)
    directory = exif_directory(metadata.exif)
    if directory is None or directory.order != order:
        directory = Directory(order, ())
    directory = directory.without(LAYOUT_TAGS)
    entries = []
    if metadata.dpi and not directory.find(X_RESOLUTION_TAG):
        entries = [
            numbers(order, RESOLUTION_UNIT_TAG, SHORT, INCHES),
            _ratio(order, X_RESOLUTION_TAG, metadata.dpi[0]),
            _ratio(order, Y_RESOLUTION_TAG, metadata.dpi[1]),
        ]
    blocks = (
        (ICC_TAG, metadata.icc, UNDEFINED),
        (XMP_TAG, metadata.xmp, BYTE),
        (IPTC_TAG, metadata.iptc, UNDEFINED),
        (PHOTOSHOP_TAG, metadata.photoshop, BYTE),
    )
    entries += [raw(code, data, type_) for code, data, type_ in blocks if data]
    return directory.having(entries)


def order_of(metadata: Metadata) -> str:
    """The byte order that lets a page's tags be copied as they are."""
    directory = metadata.tiff or exif_directory(metadata.exif)
    return directory.order if directory else "<"


def _layout_entries(page: Page, layout: Layout, order: str) -> list[Entry]:
    """Tags that every page has."""
    bits = [8 * page.dtype.itemsize] * page.channels
    grey = WHITE_IS_ZERO if layout.is_white_zero else BLACK_IS_ZERO
    photometric = RGB if page.channels > 2 else grey
    entries = [
        numbers(order, WIDTH_TAG, LONG, page.size[1]),
        numbers(order, HEIGHT_TAG, LONG, page.size[0]),
        numbers(order, BITS_TAG, SHORT, *bits),
        numbers(order, COMPRESSION_TAG, SHORT, layout.compression),
        numbers(order, PHOTOMETRIC_TAG, SHORT, photometric),
        numbers(order, ORIENTATION_TAG, SHORT, 1),
        numbers(order, SAMPLES_TAG, SHORT, page.channels),
        numbers(order, PLANAR_TAG, SHORT, 1),
    ]
    if layout.predictor != 1:
        entries.append(numbers(order, PREDICTOR_TAG, SHORT, layout.predictor))
    if page.channels in (2, 4):
        entries.append(numbers(order, EXTRA_TAG, SHORT, layout.extra_sample))
    if page.metadata.tiff and (kind := page.metadata.tiff.number(SUBFILE_TAG)):
        entries.append(numbers(order, SUBFILE_TAG, LONG, kind))
    return entries


def _ratio(order: str, code: int, value: float) -> Entry:
    parts = round(value * RESOLUTION_SCALE), RESOLUTION_SCALE
    return Entry(code, RATIONAL, 1, struct.pack(f"{order}2I", *parts))
