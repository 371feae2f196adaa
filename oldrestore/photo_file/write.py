"""Photos written whole or not at all: a file of its own beside the target, renamed in the end."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from oldrestore.photo_file.encode import WHOLE_WRITERS
from oldrestore.photo_file.errors import PhotoError, reason
from oldrestore.photo_file.metadata import Metadata, without_prefix
from oldrestore.photo_file.ordinary import (
    array_of,
    check_mode,
    dpi_of,
    in_kept_mode,
)
from oldrestore.photo_file.page import Array, ArrayPage, Page
from oldrestore.photo_file.tiff_write import TiffWriter, needs_big, order_of, pending_bytes

WRITE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
MOST_PX = {"JPEG": 65_500, "WEBP": 16_383}  # a side, of what libjpeg and libwebp write
READ_SUFFIXES = (*WRITE_FORMATS, ".gif", ".jp2", ".pgm", ".ppm")


class WindowWriter(Protocol):
    """What writes a page of one format."""

    def write(self, top: int, left: int, pixels: Array) -> None: ...

    def close(self) -> None: ...


class PhotoWriter:
    """A photo that is being written; leaving its ``with`` block puts it in place.

    The format follows the suffix. If the block is left by an error, nothing is left behind and what
    was there before stays.

    Args:
        path: where it goes; an older file is replaced in the last step.
        pages: how many there will be.
        decoded_bytes: of all pages; decides whether a TIFF needs 64 bits.

    Raises:
        PhotoError: the suffix is unknown, the format cannot hold so many pages, or the file cannot
            be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], pages: int = 1, decoded_bytes: int = 0
    ) -> None:
        self.path = Path(path)
        check_suffix(self.path)
        self.format = WRITE_FORMATS[self.path.suffix.lower()]
        if pages > 1 and self.format != "TIFF":
            raise PhotoError(f"{self.path}: {self.format} holds one picture, not {pages}: use .tif")
        self._is_large = needs_big(decoded_bytes)
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None
        self._tiff: TiffWriter | None = None

    def __enter__(self) -> "PhotoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:  # no page came
            return
        try:
            with self.naming_errors():
                if kind is None:
                    self._file.flush()
                    # a power cut must not leave a name without content
                    os.fsync(self._file.fileno())
                self._file.close()
                if kind is None:
                    self._partial.replace(self.path)
        finally:
            with contextlib.suppress(OSError):  # what could not be flushed is thrown away
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def check_holds(self, page: Page) -> None:
        """Raise PhotoError if the format has no place for such a page."""
        _check_holds(self.path, self.format, page)

    def held_bytes(self, page: Page) -> int:
        """What writing such a page holds at most, beside the windows that come."""
        return pending_bytes(page) if self.format == "TIFF" else page.nbytes

    def add_page(self, page: Page) -> "PageWriter":
        """A writer of the next page: of the size, type, metadata and layout of ``page``.

        Raises:
            PhotoError: the format cannot hold it, or it cannot be written.
        """
        self.check_holds(page)
        writer: WindowWriter
        with self.naming_errors():
            if self._file is None:
                self._file = self._partial.open("xb")
            if self.format == "TIFF":
                if self._tiff is None:
                    is_big = self._is_large or bool(page.layout and page.layout.is_big)
                    is_big |= needs_big(page.nbytes)
                    order = page.layout.order if page.layout else order_of(page.metadata)
                    self._tiff = TiffWriter(self._file, order, is_big=is_big)
                writer = self._tiff.add_page(page)
            else:
                writer = WHOLE_WRITERS[self.format](self._file, page, self.path)
        return PageWriter(writer, self)

    @contextlib.contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Let errors name the file."""
        try:
            yield
        except PhotoError as error:
            if str(self.path) in str(error):
                raise
            raise PhotoError(f"{self.path}: {error}") from error
        except (OSError, MemoryError) as error:
            raise PhotoError(f"{self.path}: cannot be written: {reason(error)}") from error


class PageWriter:
    """Takes one page, window by window; leaving its ``with`` block without an error closes it."""

    def __init__(self, writer: WindowWriter, photo: PhotoWriter) -> None:
        self._writer, self._photo, self._is_closed = writer, photo, False

    def __enter__(self) -> "PageWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def write(self, top: int, left: int, pixels: Array) -> None:
        """A window (h, w, channels) of the page's type; rows of windows come top to bottom.

        Raises:
            ValueError: it does not fit the page, or lies on what was written before.
            PhotoError: it cannot be written.
        """
        with self._photo.naming_errors():
            self._writer.write(top, left, pixels)

    def close(self) -> None:
        """Finish the page; a second time does nothing.

        Raises:
            ValueError: windows are missing.
            PhotoError: it cannot be written.
        """
        if not self._is_closed:
            with self._photo.naming_errors():
                self._writer.close()
            self._is_closed = True


def save(
    picture: Image.Image | Array, path: str | os.PathLike[str], *, like: Page | None = None
) -> None:
    """Write a picture whole or not at all, with its EXIF, colour profile, XMP, IPTC and resolution.

    The format follows the suffix. JPEG and WebP are written at quality 95, JPEG without subsampling
    of colour, TIFF with deflate. What is there is replaced in the last step.

    Args:
        picture: PIL image, its metadata in ``info``; or array (H, W[, C]) uint8 or uint16.
        like: the page that it is made of: its metadata, and a TIFF's layout, are taken.

    Raises:
        PhotoError: the suffix is unknown, the format cannot hold the picture (alpha, 16 bits), or
            the file cannot be written.
    """
    name, metadata = str(path), Metadata()
    if isinstance(picture, Image.Image):
        check_mode(picture.mode, name)
        array, metadata = array_of(in_kept_mode(picture), name), _metadata_in(picture.info)
    else:
        array = picture.reshape(*picture.shape[:2], -1)
    page = ArrayPage(name, array, like.metadata if like else metadata)
    if like:
        page.layout, page.is_lossless_webp = like.layout, like.is_lossless_webp
    with PhotoWriter(path) as writer, writer.add_page(page) as windows:
        windows.write(0, 0, page.pixels)


def check_suffix(path: Path) -> None:
    """Raise PhotoError if ``save`` has no format for this name."""
    if path.suffix.lower() not in WRITE_FORMATS:
        known = " ".join(WRITE_FORMATS)
        raise PhotoError(f"{path}: expected a name that ends in one of {known}")


def _metadata_in(info: dict[Any, Any]) -> Metadata:
    """Metadata of a PIL image."""
    return Metadata(
        exif=without_prefix(info.get("exif", b"")),
        icc=info.get("icc_profile") or b"",
        xmp=info.get("xmp", b""),
        iptc=info.get("iptc", b""),
        dpi=dpi_of(info),
    )


def _check_holds(path: Path, form: str, page: Page) -> None:
    """Refuse what a format has no place for."""
    wrong = []
    if page.channels in (2, 4) and form in ("JPEG", "BMP"):
        wrong.append("alpha")
    if page.dtype == np.uint16 and form in ("JPEG", "WEBP", "BMP"):
        wrong.append("16 bits")
    if max(page.size) > (most := MOST_PX.get(form, max(page.size))):
        wrong.append(f"sides of over {most} px")
    if wrong:
        raise PhotoError(f"{path}: {form} cannot hold {' and '.join(wrong)}: use .png or .tif")
