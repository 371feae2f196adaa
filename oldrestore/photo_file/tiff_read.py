"""TIFF files: every page, by windows, with its own tags.

tifffile and imagecodecs (the extra ``tiff``) decode strips and tiles. Without them, and for what
they do not decode (JPEG of before 1995, YCbCr without JPEG), a page is decoded whole by Pillow.
"""

import importlib.util
import logging
from typing import Any

import numpy as np

from oldrestore.photo_file import ordinary
from oldrestore.photo_file.directory import (
    MAX_DEPTH,
    Directory,
    Header,
    read_directory,
    read_header,
)
from oldrestore.photo_file.errors import (
    PhotoError,
    check_expansion,
    no_codecs,
    reading,
)
from oldrestore.photo_file.metadata import (
    Metadata,
    dpi_of_tags,
    exif_of,
    iptc_of,
    is_profile,
)
from oldrestore.photo_file.page import (
    Array,
    ArrayPage,
    Layout,
    Page,
    stored_window,
    turned,
)
from oldrestore.photo_file.source import Source
from oldrestore.photo_file.tags import (
    BITS_TAG,
    CHILD_PAGES_TAG,
    COMPRESSION_TAG,
    EXTRA_TAG,
    FILL_ORDER_TAG,
    ICC_TAG,
    IPTC_TAG,
    IS_MASK,
    JPEG,
    LAYERS_TAG,
    NOT_COMPRESSED,
    OLD_JPEG,
    ON_ITS_SIDE,
    PHOTOMETRIC_TAG,
    PHOTOSHOP_TAG,
    PLANES,
    PREDICTOR_TAG,
    REDUCED,
    SAMPLES_TAG,
    SUBFILE_TAG,
    WHITE_IS_ZERO,
    XMP_TAG,
    YCBCR,
)
from oldrestore.photo_file.tiff_kinds import check_kind, conversion, decoded_bytes
from oldrestore.photo_file.tiff_segments import (
    CACHE_BYTES,
    RawRows,
    Segments,
    Spooled,
    Stored,
    places,
)

# what we ask of tifffile's pages; of a tag of a wrong type it gives something else
PAGE_NUMBERS = (
    *("imagelength", "imagewidth", "samplesperpixel", "rowsperstrip", "planarconfig"),
    *("tilelength", "tilewidth", "compression"),
)
LISTED_BYTES = 256  # of a tag's values, at most, that tell pages from copies and how large they are
READ_ROWS = 256  # at a time, where a page is decoded once


class TiffReader:
    """The pages of a TIFF file.

    Raises:
        PhotoError: the file's list of pages is broken.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._source, self.name = source, name
        with reading(name):
            self.header = read_header(source.read_at)
            self._all, self._pages, self.notes = self._list()
        self._file = _tifffile(source, name) if has_codecs() else None
        self.page_count = len(self._pages)
        self.decoded_bytes = sum(self._pages.values())

    def page(self, index: int) -> Page:
        """A page, upright.

        Raises:
            PhotoError: it is damaged, or of a kind that is not restored; the message says.
        """
        name = self.name if self.page_count == 1 else f"{self.name}: page {index + 1}"
        offset = list(self._pages)[index]
        with reading(name):
            directory = read_directory(self._source.read_at, self.header, offset)
        check_kind(directory, name)
        check_expansion(self.decoded_bytes, self._source.size, self.name)
        metadata, notes = metadata_of(directory)
        photometric = directory.number(PHOTOMETRIC_TAG)
        compression = directory.number(COMPRESSION_TAG, NOT_COMPRESSED)
        is_pillows = compression == OLD_JPEG or (photometric == YCBCR and compression != JPEG)
        if self._file is None or is_pillows:
            place = self._all.index(offset)
            return _pillow_page(self._source, place, directory, metadata, notes, name)
        page = self._tifffile_page(self._file, offset, name)
        return TiffPage(self._source, page, directory, self.header, metadata, notes, name)

    def _tifffile_page(self, file: Any, offset: int, name: str) -> Any:
        import tifffile

        with reading(name):
            file.filehandle.seek(offset)
            page = tifffile.TiffPage(file, 0)
            if not all(isinstance(getattr(page, number), int) for number in PAGE_NUMBERS):
                raise ValueError("its tags are of types that they never have")
            return page

    def _list(self) -> tuple[list[int], dict[int, int], tuple[str, ...]]:
        """Offsets of all directories; of pages of their own, with bytes of pixels; and notes."""
        offsets: list[int] = []
        pages: dict[int, int] = {}
        notes: dict[str, None] = {}
        offset, table_bytes = self.header.first, 0
        while offset:
            directory = read_directory(
                self._source.read_at, self.header, offset, MAX_DEPTH, LISTED_BYTES
            )
            table_bytes += directory.following_at - offset
            # directories that do not overlap fit into the file
            if offset in pages or table_bytes > self._source.size:
                raise PhotoError(f"{self.name}: is damaged: its list of pages has no end")
            offsets.append(offset)
            if directory.number(SUBFILE_TAG) & (REDUCED | IS_MASK):
                notes["reduced copies and transparency masks are left out"] = None
            else:
                pages[offset] = decoded_bytes(directory)
            if directory.find(CHILD_PAGES_TAG):
                notes["pages below pages (reduced copies) are left out"] = None
            offset = directory.following
        if not pages:
            raise PhotoError(f"{self.name}: is damaged: holds no page")
        return offsets, pages, tuple(notes)


class TiffPage(Page):
    """A page whose strips or tiles are decoded on demand."""

    def __init__(
        self,
        source: Source,
        page: Any,
        directory: Directory,
        header: Header,
        metadata: Metadata,
        notes: tuple[str, ...],
        name: str,
    ) -> None:
        self.name = name
        self._orientation = metadata.orientation
        self.metadata = metadata.upright()
        self._convert, self.channels, self.dtype, note = conversion(directory, name)
        self.notes = (*notes, *note)
        stored = page.imagelength, page.imagewidth
        self.size = stored[::-1] if self._orientation in ON_ITS_SIDE else stored
        self.layout = Layout(
            order=header.order,
            is_big=header.is_big,
            tile=(page.tilelength, page.tilewidth) if page.is_tiled else None,
            rows=page.rowsperstrip,
            compression=directory.number(COMPRESSION_TAG, NOT_COMPRESSED),
            predictor=directory.number(PREDICTOR_TAG, 1),
            extra_sample=directory.number(EXTRA_TAG, 0),
            is_white_zero=directory.number(PHOTOMETRIC_TAG) == WHITE_IS_ZERO,
        )
        self._stored = self._open(source, page, directory)

    @property
    def held_bytes(self) -> int:
        return min(self.nbytes, self._stored.held_bytes)

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        self.check_window(top, left, height, width)
        window = stored_window(self._orientation, self.size, (top, left, height, width))
        stored = self._convert(self._stored.read(*window))
        return np.ascontiguousarray(turned(stored, self._orientation))

    def _open(self, source: Source, page: Any, directory: Directory) -> Stored:
        shape = page.imagelength, page.imagewidth, page.samplesperpixel
        with reading(self.name):
            raw = _raw_rows(source, page, directory, self.name)
            if raw is not None:
                return raw
            segments = Segments(source, page, self.name)
        stored_bytes = shape[0] * shape[1] * shape[2] * page.dtype.itemsize
        if self._orientation in ON_ITS_SIDE and stored_bytes > CACHE_BYTES:
            return Spooled(segments, shape, page.dtype, READ_ROWS)
        return segments


def has_codecs() -> bool:
    """Whether the extra ``tiff`` is installed."""
    return all(importlib.util.find_spec(name) for name in ("tifffile", "imagecodecs"))


def metadata_of(directory: Directory) -> tuple[Metadata, tuple[str, ...]]:
    """What a page says of its photo, and what of it is broken or left out."""
    notes, icc = [], directory.data(ICC_TAG)
    if icc and not is_profile(icc):
        notes.append("its colour profile is broken and left out")
        directory, icc = directory.without([ICC_TAG]), b""
    if directory.find(LAYERS_TAG):
        notes.append("Photoshop's layers are left out")
    photoshop = directory.data(PHOTOSHOP_TAG)
    metadata = Metadata(
        exif=exif_of(directory),
        icc=icc,
        xmp=directory.data(XMP_TAG),
        iptc=directory.data(IPTC_TAG) or iptc_of(photoshop),
        photoshop=photoshop,
        dpi=dpi_of_tags(directory),
        tiff=directory,
    )
    return metadata, tuple(notes)


def _raw_rows(source: Source, page: Any, directory: Directory, name: str) -> RawRows | None:
    """Rows that can be read where they stand; None if they are to be decoded."""
    bits = directory.number(BITS_TAG, 1)
    is_raw = directory.number(COMPRESSION_TAG, 1) == NOT_COMPRESSED and bits in (8, 16)
    is_raw &= directory.number(PREDICTOR_TAG, 1) == 1 and directory.number(FILL_ORDER_TAG, 1) == 1
    if not is_raw or page.is_tiled or (page.planarconfig == PLANES and page.samplesperpixel > 1):
        return None
    shape = page.imagelength, page.imagewidth, page.samplesperpixel
    rows = min(page.rowsperstrip, page.imagelength)
    offsets, _ = places(page, -(-page.imagelength // rows), name)
    dtype = np.dtype(np.uint8 if bits == 8 else f"{directory.order}u2")
    return RawRows(source, offsets, rows, shape, dtype, name)


def _pillow_page(
    source: Source,
    place: int,
    directory: Directory,
    metadata: Metadata,
    notes: tuple[str, ...],
    name: str,
) -> ArrayPage:
    """A page decoded whole by Pillow."""
    bits, samples = directory.number(BITS_TAG, 1), directory.number(SAMPLES_TAG, 1)
    if bits > 8 and samples > 1:
        raise no_codecs(name, "a TIFF with 16 bits of colour")
    with (
        reading(name),
        ordinary.open_picture(data := source.read_all(), name) as picture,
    ):
        picture.seek(place)
        ordinary.check_picture(picture, len(data), name)
        array, more = ordinary.pixels_of(picture, data, name)
    if bits > 8:  # Pillow gives these as they are stored
        array = conversion(directory, name)[0](array.copy())
    return ArrayPage(name, array, metadata, (*notes, *more))


def _tifffile(source: Any, name: str) -> Any:
    import tifffile

    log = logging.getLogger("tifffile")
    if not log.handlers:  # its messages are ours to tell, where they matter
        log.addHandler(logging.NullHandler())
    with reading(name):
        return tifffile.TiffFile(source, name="", offset=0, size=source.size, _multifile=False)
