"""What a file says of its photo besides the pixels: carried from format to format, byte for byte
where both have a place for it.
"""

import math
import re
import struct
from dataclasses import dataclass, replace

from oldrestore.photo_file.directory import (
    SHORT,
    SIZES,
    Directory,
    Entry,
    Header,
    Read,
    numbers,
    read_directory,
    read_header,
    write_directory,
    write_header,
)
from oldrestore.photo_file.tags import (
    CENTIMETRES,
    DESCRIPTIVE_TAGS,
    EXIF_HEIGHT_TAG,
    EXIF_TAG,
    EXIF_WIDTH_TAG,
    HEIGHT_TAG,
    INCHES,
    ON_ITS_SIDE,
    ORIENTATION_TAG,
    RESOLUTION_UNIT_TAG,
    WIDTH_TAG,
    X_RESOLUTION_TAG,
    XMP_TAG,
    Y_RESOLUTION_TAG,
)

# pairs that change places when a photo is turned on its side, in the first directory and in EXIF's
PAIRS = ((WIDTH_TAG, HEIGHT_TAG), (X_RESOLUTION_TAG, Y_RESOLUTION_TAG))
EXIF_PAIRS = ((EXIF_WIDTH_TAG, EXIF_HEIGHT_TAG),)
EXIF_PREFIX = b"Exif\0\0"
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([1-8])")
CM_PER_INCH = 2.54
ICC_HEADER_BYTES, ICC_MAGIC = 128, slice(36, 40)
RESOURCE_MAGIC, IPTC_RESOURCE = b"8BIM", 0x0404  # of Photoshop's image resource blocks


@dataclass(frozen=True)
class Metadata:
    """exif: a TIFF stream; iptc: IIM records; photoshop: image resource blocks, with IPTC in them;
    dpi: of columns and of rows. What only one format has: jpeg_segments (comments, Photoshop's
    blocks, the rest of a long XMP), png_chunks (name and data), tiff (the page's own tags).
    """

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    photoshop: bytes = b""
    dpi: tuple[float, float] | None = None
    jpeg_segments: bytes = b""
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    tiff: Directory | None = None

    @property
    def orientation(self) -> int:
        """How the stored pixels are to be turned, 1 to 8 as in EXIF; 1 if nothing says so."""
        for directory in (self.tiff, exif_directory(self.exif)):
            if directory and 1 <= (found := directory.number(ORIENTATION_TAG)) <= max(ON_ITS_SIDE):
                return found
        match = XMP_ORIENTATION.search(self.xmp)
        return int(match[2]) if match else 1

    def upright(self) -> "Metadata":
        """The same for the photo turned upright."""
        is_on_its_side = self.orientation in ON_ITS_SIDE
        dpi = self.dpi[::-1] if self.dpi and is_on_its_side else self.dpi
        tiff = None if self.tiff is None else _upright_tiff(self.tiff, is_on_its_side)
        chunks = tuple(_upright_chunk(*chunk, is_on_its_side) for chunk in self.png_chunks)
        return replace(
            self,
            exif=_upright_exif(self.exif, is_on_its_side),
            xmp=upright_xmp(self.xmp),
            dpi=dpi,
            tiff=tiff,
            png_chunks=chunks,
        )


def exif_directory(exif: bytes) -> Directory | None:
    """The first directory of an EXIF block; None if it is broken or there is none."""
    try:
        return read_directory(reader := _reader(exif), header := read_header(reader), header.first)
    except ValueError:
        return None


def exif_of(directory: Directory) -> bytes:
    """An EXIF block of what in a TIFF page's tags describes the photo; nothing if nothing does."""
    others = [entry.code for entry in directory.entries if entry.code not in DESCRIPTIVE_TAGS]
    kept = directory.without(others)
    if not kept.entries and not kept.children:
        return b""
    start = write_header(Header(kept.order, False, 0))
    laid, first = write_directory(kept, len(start), is_big=False)
    return write_header(Header(kept.order, False, first)) + laid


def without_prefix(exif: bytes) -> bytes:
    """An EXIF block without the name that JPEG puts before it."""
    return exif.removeprefix(EXIF_PREFIX)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP whose orientation is the usual one; the length stays."""
    return XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def is_profile(icc: bytes) -> bool:
    """Whether this is a colour profile at all."""
    return len(icc) >= ICC_HEADER_BYTES and icc[ICC_MAGIC] == b"acsp"


def valid_dpi(*values: float) -> tuple[float, float] | None:
    """A resolution, or None if it says nothing."""
    if len(values) == 2 and all(math.isfinite(x) and x > 0 for x in values):
        return float(values[0]), float(values[1])
    return None


def dpi_of_tags(directory: Directory | None) -> tuple[float, float] | None:
    """The resolution that the tags of a TIFF page, or of EXIF, give."""
    if directory is None:
        return None
    scale = {INCHES: 1.0, CENTIMETRES: CM_PER_INCH}.get(
        directory.number(RESOLUTION_UNIT_TAG, INCHES), 0.0
    )
    found = *directory.ratios(X_RESOLUTION_TAG)[:1], *directory.ratios(Y_RESOLUTION_TAG)[:1]
    return valid_dpi(*(value * scale for value in found))


def iptc_of(photoshop: bytes) -> bytes:
    """The IPTC records in Photoshop's image resource blocks."""
    place = 0
    while photoshop[place : place + 4] == RESOURCE_MAGIC and place + 12 <= len(photoshop):
        (kind,) = struct.unpack_from(">H", photoshop, place + 4)
        name_bytes = photoshop[place + 6] + 1
        place += 6 + name_bytes + name_bytes % 2
        if place + 4 > len(photoshop):
            break
        (size,) = struct.unpack_from(">I", photoshop, place)
        if kind == IPTC_RESOURCE:
            return photoshop[place + 4 : place + 4 + size]
        place += 4 + size + size % 2
    return b""


def photoshop_of(iptc: bytes) -> bytes:
    """Image resource blocks that hold IPTC records and nothing else."""
    head = RESOURCE_MAGIC + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc))
    return head + iptc + b"\0" * (len(iptc) % 2)


def _upright_exif(exif: bytes, is_on_its_side: bool) -> bytes:
    """EXIF with the usual orientation, and without the small picture of the photo as it was.

    Changed in place, so that all else, makers' notes too, stays where it is.
    """
    directory = exif_directory(exif)
    if directory is None:
        return b""
    data = bytearray(exif)
    if directory.following:
        data[directory.following_at : directory.following_at + 4] = bytes(4)
    _set_usual_orientation(data, directory)
    if is_on_its_side:
        _swap(data, directory, PAIRS)
        if EXIF_TAG in directory.children:
            _swap(data, directory.children[EXIF_TAG], EXIF_PAIRS)
    return bytes(data)


def _set_usual_orientation(data: bytearray, directory: Directory) -> None:
    entry = directory.find(ORIENTATION_TAG)
    if entry is not None and directory.numbers(ORIENTATION_TAG):
        new = numbers(directory.order, entry.code, entry.type, *([1] * entry.count))
        data[entry.offset : entry.offset + len(new.data)] = new.data


def _swap(data: bytearray, directory: Directory, pairs: tuple[tuple[int, int], ...]) -> None:
    for a, b in pairs:
        first, second = directory.find(a), directory.find(b)
        if first and second and (first.type, first.count) == (second.type, second.count):
            size = SIZES[first.type] * first.count
            data[first.offset : first.offset + size] = second.data
            data[second.offset : second.offset + size] = first.data


def _upright_tiff(directory: Directory, is_on_its_side: bool) -> Directory:
    new = []
    if directory.find(ORIENTATION_TAG):
        new.append(numbers(directory.order, ORIENTATION_TAG, SHORT, 1))
    if xmp := directory.find(XMP_TAG):
        new.append(replace(xmp, data=upright_xmp(xmp.data)))
    children = dict(directory.children)
    if is_on_its_side:
        new += _swapped(directory, X_RESOLUTION_TAG, Y_RESOLUTION_TAG)
        if EXIF_TAG in children:
            exif = children[EXIF_TAG]
            children[EXIF_TAG] = exif.having(_swapped(exif, EXIF_WIDTH_TAG, EXIF_HEIGHT_TAG))
    return replace(directory.having(new), children=children)


def _swapped(directory: Directory, a: int, b: int) -> list[Entry]:
    first, second = directory.find(a), directory.find(b)
    if first is None or second is None:
        return []
    return [replace(first, code=b), replace(second, code=a)]


def _upright_chunk(name: bytes, data: bytes, is_on_its_side: bool) -> tuple[bytes, bytes]:
    is_swapped = name == b"pHYs" and is_on_its_side
    return name, data[4:8] + data[:4] + data[8:] if is_swapped else data


def _reader(data: bytes) -> Read:
    return lambda offset, count: data[offset : offset + count]
