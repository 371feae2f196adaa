"""How strips and tiles are compressed: as the source's, where that loses nothing.

The codecs are imagecodecs'; the standard library's deflate serves where that is not installed.
"""

import importlib.util
import lzma
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from oldrestore.photo_file.page import Array, Layout, Page
from oldrestore.photo_file.tags import (
    DEFLATE,
    HORIZONTAL,
    LZMA,
    LZW,
    NOT_COMPRESSED,
    OLD_DEFLATE,
    PACKBITS,
    ZSTD,
)

WITH_PREDICTOR = (DEFLATE, LZW, LZMA, ZSTD)
STRIP_BYTES = 1 << 20  # at most, of strips; tall ones would have to be held whole


def layout_of(page: Page) -> Layout:
    """How a page is written: as it was stored, where that loses nothing."""
    layout = page.layout or Layout()
    compression = {OLD_DEFLATE: DEFLATE}.get(layout.compression, layout.compression)
    if compression not in (NOT_COMPRESSED, LZW, DEFLATE, PACKBITS, LZMA, ZSTD):
        compression = DEFLATE  # the source's loses, or is for other pixels
    if compression in (LZW, PACKBITS, ZSTD) and not importlib.util.find_spec("imagecodecs"):
        compression = DEFLATE
    predictor = layout.predictor
    if layout.compression not in (compression, OLD_DEFLATE):
        predictor = HORIZONTAL
    if compression not in WITH_PREDICTOR or predictor != HORIZONTAL:
        predictor = 1
    row_bytes = page.size[1] * page.channels * page.dtype.itemsize
    most = max(1, STRIP_BYTES // row_bytes)
    rows = min(layout.rows or most, most, page.size[0])
    is_white_zero = layout.is_white_zero and page.channels <= 2
    return replace(
        layout, compression=compression, predictor=predictor, rows=rows, is_white_zero=is_white_zero
    )


def encoder(layout: Layout) -> Callable[[Array], bytes]:
    """Pixels (rows, columns, C) in native order -> bytes of a strip or tile."""
    compress = _compressor(layout.compression)

    def encode(pixels: Array) -> bytes:
        if layout.predictor == HORIZONTAL:
            differences = pixels.copy()
            differences[:, 1:] -= pixels[:, :-1]  # wraps around
            pixels = differences
        stored = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(layout.order))
        if layout.compression == PACKBITS:  # each row by itself, TIFF 6.0, section 9
            return b"".join(compress(row.tobytes()) for row in stored)
        return compress(stored.tobytes())

    return encode


def _compressor(compression: int) -> Callable[[bytes], bytes]:
    if compression == NOT_COMPRESSED:
        return bytes
    if compression == LZMA:
        return lzma.compress
    try:
        import imagecodecs
    except ImportError:
        return zlib.compress
    codecs: dict[int, Callable[[Any], Any]] = {
        DEFLATE: imagecodecs.deflate_encode,  # zlib's format, six times as fast
        LZW: imagecodecs.lzw_encode,
        PACKBITS: imagecodecs.packbits_encode,
        ZSTD: imagecodecs.zstd_encode,
    }
    encode = codecs[compression]
    return lambda data: bytes(encode(data))
