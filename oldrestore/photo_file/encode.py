"""Pages of formats that are encoded whole: PNG, JPEG, WebP, BMP."""

import warnings
from abc import ABC, abstractmethod
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from oldrestore.photo_file import png
from oldrestore.photo_file.errors import PhotoError, check_whole, reason
from oldrestore.photo_file.metadata import EXIF_PREFIX, Metadata, photoshop_of
from oldrestore.photo_file.ordinary import PHOTOSHOP_SEGMENT
from oldrestore.photo_file.page import Array, Page

QUALITY = 95  # of JPEG and WebP; above it files grow and nothing is seen
MAX_SEGMENT_BYTES = 65_533  # of JPEG


class WholeWriter(ABC):
    """Gathers a page and encodes it in the end.

    Args:
        file: to write to.
        page: of this size, type and metadata.
        path: what messages call the file.
    """

    def __init__(self, file: BinaryIO, page: Page, path: Path) -> None:
        check_whole(page.nbytes, str(path))
        self._file, self._page, self._path = file, page, path
        self._pixels = np.empty((*page.size, page.channels), page.dtype)
        self._filled = np.zeros(page.size[0], np.int64)  # pixels of each row

    def write(self, top: int, left: int, pixels: Array) -> None:
        """Take a window (height, width, channels); raises ValueError if it does not fit."""
        place = self._pixels[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        if min(top, left) < 0 or place.shape != pixels.shape or pixels.dtype != place.dtype:
            got = f"{pixels.dtype} {pixels.shape} at {(top, left)}"
            raise ValueError(f"pixels: expected a window of {self._pixels.shape}, got {got}")
        place[...] = pixels
        self._filled[top : top + place.shape[0]] += place.shape[1]

    def close(self) -> None:
        """Encode and write the page; raises ValueError if windows are missing."""
        whole = int((self._filled == self._page.size[1]).sum())
        if whole < self._page.size[0]:
            raise ValueError(f"windows: expected {self._page.size[0]} whole rows, got {whole}")
        try:
            self._file.write(self.encoded(self._pixels, self._page.metadata))
        except (ValueError, RuntimeError) as error:
            raise PhotoError(f"{self._path}: cannot be written: {reason(error)}") from error

    @abstractmethod
    def encoded(self, pixels: Array, metadata: Metadata) -> bytes:
        """The bytes of the file."""

    def tell_what_is_lost(self, metadata: Metadata, *names: str) -> None:
        """Warn of metadata that this format has no place for."""
        lost = [name.upper() for name in names if getattr(metadata, name)]
        if lost:
            warnings.warn(f"{self._path}: has no place for {', '.join(lost)}", stacklevel=2)


class _PngWriter(WholeWriter):
    def encoded(self, pixels: Array, metadata: Metadata) -> bytes:
        if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
            data = png.encode_deep(pixels, str(self._path))
        else:
            data = _by_pillow(pixels, "PNG")
        return png.with_metadata(data, metadata)


class _JpegWriter(WholeWriter):
    def encoded(self, pixels: Array, metadata: Metadata) -> bytes:
        extra = metadata.jpeg_segments
        photoshop = metadata.photoshop or (photoshop_of(metadata.iptc) if metadata.iptc else b"")
        if photoshop and not extra:
            extra = _jpeg_segments(photoshop)
        options = _options(metadata, "exif", "icc", "xmp", "dpi")
        if "exif" in options:
            options["exif"] = EXIF_PREFIX + metadata.exif
        # subsampled colour would lose what was just restored
        return _by_pillow(pixels, "JPEG", quality=QUALITY, subsampling=0, extra=extra, **options)


class _WebpWriter(WholeWriter):
    def encoded(self, pixels: Array, metadata: Metadata) -> bytes:
        self.tell_what_is_lost(metadata, "iptc")
        options = _options(metadata, "exif", "icc", "xmp")
        lossless = self._page.is_lossless_webp
        return _by_pillow(pixels, "WEBP", quality=QUALITY, lossless=lossless, **options)


class _BmpWriter(WholeWriter):
    def encoded(self, pixels: Array, metadata: Metadata) -> bytes:
        self.tell_what_is_lost(metadata, "exif", "icc", "xmp", "iptc")
        return _by_pillow(pixels, "BMP", **_options(metadata, "dpi"))


WHOLE_WRITERS: dict[str, type[WholeWriter]] = {
    "PNG": _PngWriter,
    "JPEG": _JpegWriter,
    "WEBP": _WebpWriter,
    "BMP": _BmpWriter,
}


def _options(metadata: Metadata, *names: str) -> dict[str, Any]:
    """Metadata as Pillow's ``save`` takes it."""
    values = {name: getattr(metadata, name) for name in names if getattr(metadata, name)}
    return {"icc_profile" if name == "icc" else name: value for name, value in values.items()}


def _by_pillow(pixels: Array, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _jpeg_segments(photoshop: bytes) -> bytes:
    """Photoshop's blocks in segments of JPEG."""
    room = MAX_SEGMENT_BYTES - len(PHOTOSHOP_SEGMENT)
    parts = (photoshop[place : place + room] for place in range(0, len(photoshop), room))
    segments = (PHOTOSHOP_SEGMENT + part for part in parts)
    return b"".join(b"\xff\xed" + (len(s) + 2).to_bytes(2, "big") + s for s in segments)
