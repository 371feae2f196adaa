"""Formats that are decoded whole: PNG, JPEG, WebP and what else Pillow reads.

Pillow's own guard against decompression bombs stops at 179 megapixels whatever the file holds; the
limits of ``errors.py`` take its place, before a pixel is decoded.
"""

import struct
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from oldrestore.photo_file import png
from oldrestore.photo_file.errors import (
    PhotoError,
    check_expansion,
    check_size,
    check_whole,
    no_codecs,
    reading,
)
from oldrestore.photo_file.metadata import (
    Metadata,
    dpi_of_tags,
    exif_directory,
    exif_of,
    iptc_of,
    is_profile,
    valid_dpi,
    without_prefix,
)
from oldrestore.photo_file.page import Array, ArrayPage, widened

# read by content, not by suffix; no format that starts another program (EPS) or holds no photo
READ_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
KEPT_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B")
CONVERTED_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}  # without loss
TRANSPARENT_MODES = {"L": "LA", "RGB": "RGBA"}  # one colour or palette entry stands for clear
NOTES = {
    "1": "black and white is written as 8-bit grey",
    "P": "palette colours are written as RGB",
    "PA": "palette colours are written as RGB",
    "YCbCr": "YCbCr is written as RGB",
}
BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # 4 of other modes
PREFIX_BYTES = 16  # what Pillow tells formats by
MAX_GREY_16 = 65535
PHOTOSHOP_SEGMENT, LONG_XMP_SEGMENT = b"Photoshop 3.0\0", b"http://ns.adobe.com/xmp/extension/\0"
# each scan of a JPEG goes over the whole picture again; ten are usual
JPEG_SCAN, MAX_SCANS = b"\xff\xda", 500
JP2_SIZES, JP2_DEPTHS_AT = b"\xff\x4f\xff\x51", 42  # JPEG 2000, annex A.5.1


def read_ordinary(data: bytes, name: str) -> ArrayPage:
    """Decode a file of any format of Pillow's.

    Raises:
        PhotoError: it is none, is damaged, or is of a kind that is not restored; the message says.
    """
    with reading(name), open_picture(data, name) as picture:
        check_picture(picture, len(data), name)
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            frames = f"{picture.n_frames} frames"
            raise PhotoError(f"{name}: is animated ({frames}); save the one you want by itself")
        if picture.format in ("JPEG", "MPO") and (scans := data.count(JPEG_SCAN)) > MAX_SCANS:
            raise PhotoError(f"{name}: holds {scans} scans, and {MAX_SCANS} is the most of a JPEG")
        array, notes = pixels_of(picture, data, name)
        metadata, more_notes = metadata_of(picture, data)
        is_lossless_webp = picture.format == "WEBP" and b"VP8L" in _webp_chunks(data)
    return ArrayPage(
        name, array, metadata, (*notes, *more_notes), is_lossless_webp=is_lossless_webp
    )


def open_picture(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header of a picture; its pixels are not decoded yet."""
    Image.init()
    for form in READ_FORMATS:
        factory, accept = Image.OPEN[form]
        if accept is None or accept(data[:PREFIX_BYTES]) is not True:
            continue
        with reading(name):
            return factory(BytesIO(data), "")
    known = ", ".join(READ_FORMATS)
    raise PhotoError(f"{name}: is not a picture of a known format ({known})")


def check_picture(picture: ImageFile.ImageFile, file_bytes: int, name: str) -> None:
    """Refuse a size or a mode that is not worked on."""
    check_size(*picture.size, name)
    decoded = picture.width * picture.height * BYTES_PER_PIXEL.get(picture.mode, 4)
    check_expansion(decoded, file_bytes, name)
    check_whole(decoded, name)
    check_mode(picture.mode, name)


def check_mode(mode: str, name: str) -> None:
    """Refuse a mode whose colours need a profile or a scale."""
    if mode not in KEPT_MODES and mode not in CONVERTED_MODES:
        raise PhotoError(f"{name}: mode {mode} is not read; convert it to RGB or L first")


def pixels_of(
    picture: ImageFile.ImageFile, data: bytes, name: str
) -> tuple[Array, tuple[str, ...]]:
    """Stored pixels (H, W, C) of a file that is open, and what reading them changed."""
    if _is_deep(picture, data):
        if picture.format == "PNG":
            return png.decode_deep(data, name), ()
        if picture.format == "JPEG2000":
            return _deep_jpeg2000(data, name), ()
        raise PhotoError(f"{name}: 16 bits of colour are read from TIFF and PNG files alone")
    tiles, mode = str(picture.tile), picture.mode
    picture.load()
    notes = [NOTES[mode]] if mode in NOTES else []
    if mode == "L" and any(f"'L;{bits}'" in tiles for bits in (2, 4)):
        notes.append("grey of fewer than 8 bits is written with 8")
    if picture.format == "MPO":
        notes.append("holds several pictures: the first is taken")
    return array_of(in_kept_mode(picture), name), tuple(notes)


def in_kept_mode(picture: Image.Image) -> Image.Image:
    """The picture in one of the modes that are worked on, without loss."""
    wanted = CONVERTED_MODES.get(picture.mode, picture.mode)
    if "transparency" in picture.info and wanted in TRANSPARENT_MODES:
        wanted = TRANSPARENT_MODES[wanted]
    return picture.convert(wanted) if wanted != picture.mode else picture


def array_of(picture: Image.Image, name: str) -> Array:
    """Pixels (H, W, C), uint8 or uint16 in native byte order.

    Raises:
        PhotoError: mode I holds values beyond 16 bits.
    """
    array = np.asarray(picture)
    if picture.mode == "I":
        if array.min() < 0 or array.max() > MAX_GREY_16:
            raise PhotoError(f"{name}: mode I is read as 16 bits: expected values in 0..65535")
        array = array.astype(np.uint16)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[:, :, None] if array.ndim == 2 else array


def metadata_of(picture: Image.Image, data: bytes) -> tuple[Metadata, tuple[str, ...]]:
    """What a file that is open says of its photo, and what of it is broken."""
    info, notes = picture.info, []
    exif, icc = without_prefix(_bytes(info.get("exif"))), _bytes(info.get("icc_profile"))
    directory = exif_directory(exif)
    if exif and directory is None:
        notes.append("its EXIF is broken and left out")
        exif = b""
    if icc and not is_profile(icc):
        notes.append("its colour profile is broken and left out")
        icc = b""
    segments, photoshop = _jpeg_segments(getattr(picture, "applist", ()))
    found = png.descriptive_chunks(data) if picture.format == "PNG" else ()
    metadata = Metadata(
        exif=exif,
        icc=icc,
        xmp=_bytes(info.get("xmp")),
        iptc=iptc_of(photoshop) or png.iptc_of(found) or _bytes(info.get("iptc")),
        photoshop=photoshop,
        # Pillow takes one of EXIF's two resolutions where a JPEG has none of its own
        dpi=(dpi_of(info) if info.get("jfif_unit", 1) else None) or dpi_of_tags(directory),
        jpeg_segments=segments,
        png_chunks=found,
    )
    return metadata, tuple(notes)


def dpi_of(info: dict[Any, Any]) -> tuple[float, float] | None:
    """The resolution that a picture's ``info`` gives."""
    dpi = info.get("dpi", ())
    return valid_dpi(*(float(x) for x in dpi)) if isinstance(dpi, tuple) else None


def upright(picture: Image.Image, name: str) -> Image.Image:
    """A user's picture turned upright, in one of the modes we work on, with its metadata."""
    check_mode(picture.mode, name)
    check_size(*picture.size, name)
    with reading(name):
        metadata, _ = metadata_of(picture, b"")
        if "exif" not in picture.info and (tags := picture.getexif()):  # of a TIFF
            metadata = replace(metadata, exif=without_prefix(tags.tobytes()))
        result = in_kept_mode(ImageOps.exif_transpose(picture))
    metadata = metadata.upright()
    directory = exif_directory(metadata.exif)
    if directory and picture.format == "TIFF":  # the others say how its pixels were laid out
        metadata = replace(metadata, exif=exif_of(directory))
    result.info = info_of(metadata)
    return result


def info_of(metadata: Metadata) -> dict[Any, Any]:
    """What a PIL image's ``info`` holds of the metadata, for ``save`` and for Pillow's own."""
    named = {
        "exif": metadata.exif,
        "icc_profile": metadata.icc,
        "xmp": metadata.xmp,
        "iptc": metadata.iptc,
        "dpi": metadata.dpi,
    }
    return {key: value for key, value in named.items() if value}


def _is_deep(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether Pillow would read colours of more than 8 bits as 8."""
    if picture.format == "JPEG2000":
        return picture.mode != "I;16" and _jpeg2000_bits(data) > 8
    if picture.format == "PPM":
        return picture.mode == "RGB" and any(
            isinstance(arg, int) and arg > 255 for tile in picture.tile for arg in _arguments(tile)
        )
    return picture.mode in ("LA", "RGB", "RGBA") and ";16" in str(getattr(picture, "tile", ""))


def _arguments(tile: Any) -> Sequence[Any]:
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)


def _jpeg2000_bits(data: bytes) -> int:
    start = data.find(JP2_SIZES)
    at = start + JP2_DEPTHS_AT
    return (data[at] & 0x7F) + 1 if start >= 0 and at < len(data) else 8


def _deep_jpeg2000(data: bytes, name: str) -> Array:
    try:
        import imagecodecs
    except ImportError as error:
        raise no_codecs(name, "a JPEG 2000 file with 16 bits of colour") from error
    pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] > 4:
        raise PhotoError(f"{name}: expected RGB of 16 bits, got {pixels.dtype} {pixels.shape}")
    return widened(pixels, _jpeg2000_bits(data))


def _webp_chunks(data: bytes) -> list[bytes]:
    names, place = [], 12
    while place + 8 <= len(data):
        names.append(data[place : place + 4])
        (size,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + size + size % 2
    return names


def _jpeg_segments(applications: Sequence[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """Segments that only JPEG has, as they stand in the file; and Photoshop's blocks in them."""
    segments, photoshop = b"", b""
    for marker, content in applications:
        is_photoshop = marker == "APP13" and content.startswith(PHOTOSHOP_SEGMENT)
        if is_photoshop:
            photoshop += content[len(PHOTOSHOP_SEGMENT) :]
        if is_photoshop or (marker == "APP1" and content.startswith(LONG_XMP_SEGMENT)):
            code = 0xE0 + int(marker.removeprefix("APP"))
            segments += struct.pack(">BBH", 0xFF, code, len(content) + 2) + content
        elif marker == "COM":
            segments += struct.pack(">BBH", 0xFF, 0xFE, len(content) + 2) + content
    return segments, photoshop


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""
