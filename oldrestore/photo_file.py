"""Photo files: read one, turn it upright, write one whole or not at all.

Here stands what the package asks of Pillow; ``image.py`` takes it from there.
"""

import math
import os
import secrets
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE_PX = 8  # a cell of the coarsest map of the networks
MAX_SIDE_PX = 50_000  # a float32 map of one channel and of this side is 10 GB
# read by content, not by suffix; no format that starts another program (EPS) or holds no photo
READ_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
WRITE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
READ_SUFFIXES = (*WRITE_FORMATS, ".gif", ".jp2", ".pgm", ".ppm")
QUALITY = 95  # of JPEG and WebP; above it files grow and nothing is seen
KEPT_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B")
CONVERTED_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}  # without loss
TRANSPARENT_MODES = {"L": "LA", "RGB": "RGBA"}  # one colour or palette entry stands for clear
# EXIF tags of a TIFF that describe the photo, not the file's layout: description, make, model,
# software, date, artist, copyright
TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432)
# what Pillow's readers raise on damaged files
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class PhotoError(ValueError):
    """A photo, or a mask, that cannot be read, used or written. The message names it."""


def open_picture(photo: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open a file and read its pixels, after a look at its size."""
    name = name_of(photo)
    try:
        if not isinstance(photo, bytes) and Path(photo).exists() and not Path(photo).is_file():
            raise PhotoError(f"{name}: is not a file")
        data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    except OSError as error:
        raise PhotoError(f"{name}: cannot be read: {_reason(error)}") from error
    if not data:
        raise PhotoError(f"{name}: is empty")
    try:
        picture = Image.open(BytesIO(data), formats=READ_FORMATS)
        is_deep = picture.mode in ("RGB", "RGBA") and ";16" in str(getattr(picture, "tile", ""))
        check_size(*picture.size, name)
        picture.load()
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(READ_FORMATS)
        raise PhotoError(f"{name}: is not a picture of a known format ({known})") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(
            f"{name}: has too many pixels for one photo, or is a decompression bomb; split it, or "
            f"raise PIL.Image.MAX_IMAGE_PIXELS if you trust it ({error})"
        ) from error
    except DAMAGED as error:
        raise PhotoError(f"{name}: is damaged or cut short: {_reason(error)}") from error
    if is_deep:
        message = f"{name}: 16 bits of colour are read as 8 (grey photos keep 16)"
        warnings.warn(message, stacklevel=4)
    return picture


def upright(picture: Image.Image, name: str) -> Image.Image:
    """The picture turned upright, in one of the modes we work on, with what metadata we keep."""
    mode = picture.mode
    if mode not in KEPT_MODES and mode not in CONVERTED_MODES:
        raise PhotoError(f"{name}: mode {mode} is not read; convert it to RGB or L first")
    check_size(*picture.size, name)
    try:
        exif = picture.getexif()
        turned = ImageOps.exif_transpose(picture)
        described = {tag: exif[tag] for tag in TIFF_TAGS if tag in exif}
        if picture.format == "TIFF" and described:
            exif = Image.Exif()
            exif.update(described)
            turned.info["exif"] = exif.tobytes()
        wanted = CONVERTED_MODES.get(mode, mode)
        if "transparency" in turned.info and wanted in TRANSPARENT_MODES:
            wanted = TRANSPARENT_MODES[wanted]
        result = turned.convert(wanted) if wanted != mode else turned
    except DAMAGED as error:
        raise PhotoError(f"{name}: is damaged or cut short: {_reason(error)}") from error
    result.info = _metadata(turned)
    return result


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture whole or not at all, with its EXIF, colour profile, XMP and resolution.

    The format follows the suffix. JPEG and WebP are written at quality 95, JPEG without subsampling
    of colour. What is there is replaced in the last step.

    Raises:
        PhotoError: the suffix is unknown, the format cannot hold the picture (alpha, 16 bits), or
            the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    form = WRITE_FORMATS[path.suffix.lower()]
    is_16_bit = picture.mode.startswith("I")
    if (form == "JPEG" and picture.mode not in ("L", "RGB")) or (
        form in ("WEBP", "BMP") and is_16_bit
    ):
        raise PhotoError(f"{path}: {form} cannot hold mode {picture.mode}: use .png or .tif")
    options = _metadata(picture)
    if form == "PNG" and picture.mode == "I":  # its values were checked to fit
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    if form in ("JPEG", "WEBP"):
        options["quality"] = QUALITY
    if form == "JPEG":
        options["subsampling"] = 0
    if form == "TIFF":
        options["compression"] = "tiff_lzw"
        options.pop("xmp", None)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            picture.save(file, form, **options)
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        if partial.exists():
            partial.unlink()


def check_suffix(path: Path) -> None:
    """Raise PhotoError if ``save`` has no format for this name."""
    if path.suffix.lower() not in WRITE_FORMATS:
        known = " ".join(WRITE_FORMATS)
        raise PhotoError(f"{path}: expected a name that ends in one of {known}")


def name_of(photo: str | os.PathLike[str] | bytes) -> str:
    """What messages call a file."""
    return "bytes" if isinstance(photo, bytes) else os.fspath(photo)


def check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        limits = f"{MIN_SIDE_PX} to {MAX_SIDE_PX} px a side"
        raise PhotoError(f"{name}: expected {limits}, got {width} x {height}")


def _reason(error: BaseException) -> str:
    """An exception in words, without the path that the message starts with."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _metadata(picture: Image.Image) -> dict[Any, Any]:
    """What of a picture's ``info`` goes with the photo and into the file."""
    kept = {
        key: picture.info[key] for key in ("exif", "icc_profile", "xmp") if picture.info.get(key)
    }
    dpi = tuple(float(x) for x in picture.info.get("dpi", ()))
    if len(dpi) == 2 and all(math.isfinite(x) and x > 0 for x in dpi):
        kept["dpi"] = dpi
    return kept
