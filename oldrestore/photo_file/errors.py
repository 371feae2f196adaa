"""What a photo file is refused for: one error, and the limits of size."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

MIN_SIDE_PX = 8  # a cell of the coarsest map of the networks
MAX_SIDE_PX = 50_000  # of a photo held whole: a float32 map of one channel and this side is 10 GB
MAX_WINDOWED_SIDE_PX = 500_000  # of a file read by windows: whole-slide scanners stay below it
MAX_WINDOWED_PX = 1 << 33  # 8.6 gigapixels, about 90,000 px square
MAX_DECODED_BYTES = 1 << 30  # of a picture, strip or tile that can only be decoded whole
# a small file that claims to hold much more than this is a decompression bomb: deflate packs at
# most 1032 bytes into one, and what little there is cannot do harm
MAX_EXPANSION = 2000
FREE_DECODED_BYTES = 64 << 20
# what readers raise on damaged files; imagecodecs' errors are RuntimeErrors, tifffile's are
# ValueErrors, and tags of a kind that they never have lead to AttributeErrors
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,  # of WebP, whose plugin has a guard of its own
)


class PhotoError(ValueError):
    """A photo, or a mask, that cannot be read, used or written. The message names it."""


def name_of(photo: str | os.PathLike[str] | bytes) -> str:
    """What messages call a file."""
    return "bytes" if isinstance(photo, bytes) else os.fspath(photo)


def reason(error: BaseException) -> str:
    """An exception in words, on one line and without the path that the message starts with."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what readers raise on damaged files into one error that names the file."""
    try:
        yield
    except PhotoError:
        raise
    except MemoryError as error:
        raise PhotoError(f"{name}: does not fit into the memory") from error
    except DAMAGED as error:
        raise PhotoError(f"{name}: is damaged or cut short: {reason(error)}") from error


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a photo that cannot be held whole."""
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        limits = f"{MIN_SIDE_PX} to {MAX_SIDE_PX} px a side"
        raise PhotoError(f"{name}: expected {limits}, got {width} x {height}")


def check_windowed_size(width: int, height: int, name: str) -> None:
    """Refuse a photo that is too large to be read by windows."""
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_WINDOWED_SIDE_PX:
        limits = f"{MIN_SIDE_PX} to {MAX_WINDOWED_SIDE_PX} px a side"
        raise PhotoError(f"{name}: expected {limits}, got {width} x {height}")
    if width * height > MAX_WINDOWED_PX:
        megapixels = f"{MAX_WINDOWED_PX // 10**6} megapixels"
        raise PhotoError(f"{name}: expected at most {megapixels}, got {width} x {height}")


def check_expansion(decoded_bytes: int, file_bytes: int, name: str) -> None:
    """Refuse a file that claims more than its bytes can hold."""
    if decoded_bytes > max(FREE_DECODED_BYTES, MAX_EXPANSION * file_bytes):
        raise PhotoError(
            f"{name}: claims {decoded_bytes} bytes of pixels in a file of {file_bytes}: it is "
            "damaged or a decompression bomb"
        )


def check_whole(decoded_bytes: int, name: str) -> None:
    """Refuse what is too large for a format that is decoded whole."""
    if decoded_bytes > MAX_DECODED_BYTES:
        raise PhotoError(
            f"{name}: has {decoded_bytes} bytes of pixels, and {MAX_DECODED_BYTES} is the most of "
            "a format that is decoded whole; save it as a TIFF, which is read by windows"
        )


def no_codecs(name: str, what: str) -> PhotoError:
    """The error of a file that needs the optional libraries."""
    libraries = 'tifffile and imagecodecs: pip install "oldrestore[tiff]"'
    return PhotoError(f"{name}: {what} needs {libraries}")
