"""PNG files: their chunks, and pixels of 16 bits, which Pillow has for grey alone.

imagecodecs reads and writes those: it wraps libpng, takes any depth, and is what TIFF needs too;
OpenCV would swap channels and pypng takes seconds a megapixel.
"""

import binascii
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from oldrestore.photo_file.errors import no_codecs
from oldrestore.photo_file.metadata import Metadata
from oldrestore.photo_file.page import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33  # signature and IHDR
XMP_KEYWORD = b"XML:com.adobe.xmp"
IPTC_KEYWORD = b"Raw profile type iptc"  # ImageMagick's and ExifTool's way
# chunks that describe colour, resolution, time or say something; all else is pixels, or speaks of
# the photo as it was (signed credentials)
DESCRIPTIVE = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"pHYs", b"tIME"}
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
REWRITTEN = (
    XMP_KEYWORD,
    b"Raw profile type exif",
    b"Raw profile type APP1",
    b"Raw profile type xmp",
)
METRES_PER_INCH = 0.0254
PROFILE_HEX_COLUMNS = 72


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of each whole chunk; stops where the file is broken."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        if place + 12 + size > len(data):
            return
        yield name, data[place + 8 : place + 8 + size]
        place += 12 + size


def descriptive_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks of a file that go with the photo, without EXIF, XMP and the colour profile."""
    return tuple(
        (name, content)
        for name, content in chunks(data)
        if name in DESCRIPTIVE or (name in TEXTS and content.split(b"\0")[0] not in REWRITTEN)
    )


def decode_deep(data: bytes, name: str) -> Array:
    """Pixels of 16 bits, (H, W, C), uint16."""
    try:
        import imagecodecs
    except ImportError as error:
        raise no_codecs(name, "a PNG with 16 bits of colour") from error
    pixels = np.asarray(imagecodecs.png_decode(data))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def encode_deep(pixels: Array, name: str) -> bytes:
    """A PNG file of pixels of 16 bits, (H, W, C), uint16."""
    try:
        import imagecodecs
    except ImportError as error:
        raise no_codecs(name, "a PNG with 16 bits of colour") from error
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """A PNG file with the metadata's chunks put behind its header."""
    kept = {name for name, _ in metadata.png_chunks}
    new = [(name, content) for name, content in metadata.png_chunks if name != b"pHYs"]
    if metadata.icc:
        # both say what the colours are, and the profile says more
        new = [(name, content) for name, content in new if name not in (b"sRGB", b"iCCP")]
        new.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if b"pHYs" in kept:
        new.append(next(chunk for chunk in metadata.png_chunks if chunk[0] == b"pHYs"))
    elif metadata.dpi:
        per_metre = (round(dpi / METRES_PER_INCH) for dpi in metadata.dpi)
        new.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if metadata.exif:
        new.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        new.append((b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp))
    keywords = {content.split(b"\0")[0] for name, content in new if name in TEXTS}
    if metadata.iptc and IPTC_KEYWORD not in keywords:
        new.append((b"zTXt", IPTC_KEYWORD + b"\0\0" + zlib.compress(_raw_profile(metadata.iptc))))
    return data[:HEADER_END] + b"".join(map(_chunk, new)) + data[HEADER_END:]


def iptc_of(found: Iterable[tuple[bytes, bytes]]) -> bytes:
    """IPTC records in a text chunk, as ImageMagick and ExifTool write them."""
    for name, content in found:
        keyword, _, rest = content.partition(b"\0")
        if name == b"zTXt" and keyword == IPTC_KEYWORD:
            try:
                text = zlib.decompressobj().decompress(rest[1:], 4 << 20)
                return binascii.unhexlify(b"".join(text.split()[2:]))
            except (zlib.error, ValueError):
                return b""
    return b""


def _raw_profile(data: bytes) -> bytes:
    digits = binascii.hexlify(data)
    lines = [
        digits[place : place + PROFILE_HEX_COLUMNS]
        for place in range(0, len(digits), PROFILE_HEX_COLUMNS)
    ]
    return b"\niptc\n%8d\n" % len(data) + b"\n".join(lines) + b"\n"


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    name, content = chunk
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
