"""Photo files: every page read upright, by windows, and written whole or not at all.

    with open_photo("master.tif") as photo, create_photo("restored.tif", photo) as target:
        for page in photo.pages():
            with target.add_page(page) as windows:
                windows.write(0, 0, page.read_all())

Pixels come and go in the encoding of the file's own colour profile, and the profile goes with them;
nothing is converted to another. EXIF, XMP, IPTC and resolution go with the photo too. What belongs
to the pixels as they were does not: EXIF's small picture, layers, signed credentials.

A TIFF is read and written by strips or tiles, whatever its size (``tiff_read``, ``tiff_write``);
other formats are decoded whole (``ordinary``, ``png``, ``write``).
"""

import os
import warnings
from collections.abc import Iterator

from oldrestore.photo_file.errors import PhotoError, check_size, name_of
from oldrestore.photo_file.metadata import Metadata
from oldrestore.photo_file.ordinary import array_of, info_of, read_ordinary, upright
from oldrestore.photo_file.page import Array, ArrayPage, Page
from oldrestore.photo_file.source import PhotoPath, Source
from oldrestore.photo_file.tiff_read import TiffReader
from oldrestore.photo_file.write import (
    READ_SUFFIXES,
    WRITE_FORMATS,
    PageWriter,
    PhotoWriter,
    check_suffix,
    save,
)

__all__ = [
    "READ_SUFFIXES",
    "WRITE_FORMATS",
    "Array",
    "ArrayPage",
    "Metadata",
    "Page",
    "PageWriter",
    "PhotoError",
    "PhotoFile",
    "PhotoPath",
    "PhotoWriter",
    "array_of",
    "check_size",
    "check_suffix",
    "create_photo",
    "info_of",
    "name_of",
    "open_photo",
    "save",
    "upright",
]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class PhotoFile:
    """A photo that is open; its pages are decoded when they are asked for.

    name: what messages call it. page_count: pages, without reduced copies of others.
    decoded_bytes: of the pixels of all pages.
    """

    def __init__(self, photo: PhotoPath) -> None:
        self.name = name_of(photo)
        self._source = Source(photo)
        self._tiff: TiffReader | None = None
        self._page: Page | None = None
        try:
            if self._source.read_at(0, 4) in TIFF_STARTS:
                self._tiff = TiffReader(self._source, self.name)
                self.page_count = self._tiff.page_count
                self.decoded_bytes = self._tiff.decoded_bytes
            else:
                self._page = read_ordinary(self._source.read_all(), self.name)
                self.page_count, self.decoded_bytes = 1, self._page.nbytes
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> "PhotoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def page(self, index: int) -> Page:
        """A page, upright.

        Raises:
            PhotoError: it is damaged, or of a kind that is not restored; the message says.
        """
        return self._page if self._page is not None else self._tiff_page(index)

    def pages(self) -> Iterator[Page]:
        """All pages, one after the other; what reading them changes is told in warnings."""
        for note in self._tiff.notes if self._tiff else ():
            warnings.warn(f"{self.name}: {note}", stacklevel=2)
        for index in range(self.page_count):
            page = self.page(index)
            page.tell_notes()
            yield page

    def _tiff_page(self, index: int) -> Page:
        assert self._tiff is not None
        return self._tiff.page(index)


def open_photo(photo: PhotoPath) -> PhotoFile:
    """Open a file, or its bytes; to be used in a ``with`` block.

    Raises:
        PhotoError: it cannot be read, is no picture, or claims more than it can hold.
    """
    return PhotoFile(photo)


def create_photo(path: str | os.PathLike[str], like: PhotoFile) -> PhotoWriter:
    """A writer of a photo with as many pages as ``like``; to be used in a ``with`` block.

    Raises:
        PhotoError: the suffix is unknown, or its format cannot hold so many pages.
    """
    return PhotoWriter(path, like.page_count, like.decoded_bytes)
