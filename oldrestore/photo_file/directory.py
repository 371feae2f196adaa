"""Directories of tags, as TIFF and EXIF hold them: read within bounds, written anew.

Values stay the bytes they are, so that what is copied from one file to another is not rounded,
cut or guessed at. Pillow and tifffile give values as Python objects, and neither writes the EXIF
directories of a TIFF.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from oldrestore.photo_file.tags import EXIF_TAG, GPS_TAG, INTEROPERABILITY_TAG

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
# bytes of a value of each type
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}  # of BigTIFF alone
CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of whole numbers, as struct has them
CHILDREN = (EXIF_TAG, GPS_TAG, INTEROPERABILITY_TAG)  # tags that point at another directory
MAX_DEPTH = 2  # page, EXIF, interoperability
MAX_ENTRIES = 4096
MAX_DATA_BYTES = 64 << 20  # of all values of one directory

Read: TypeAlias = Callable[[int, int], bytes]  # offset and count -> at most so many bytes


@dataclass(frozen=True)
class Header:
    """order: "<" or ">". is_big: offsets of 64 bits. first: offset of the first directory."""

    order: str
    is_big: bool
    first: int

    @property
    def offset_code(self) -> str:
        """Of offsets and counts, as struct has them."""
        return "Q" if self.is_big else "I"

    @property
    def number_code(self) -> str:
        """Of the number of entries, as struct has it."""
        return "Q" if self.is_big else "H"


@dataclass(frozen=True)
class Entry:
    """A tag. data: its values in the directory's byte order; offset: where they stood."""

    code: int
    type: int
    count: int
    data: bytes
    offset: int = 0


@dataclass(frozen=True)
class Directory:
    """Tags in one byte order; children: what EXIF and GPS tags point at.

    following: offset of the next directory of the file, 0 at the end; following_at: where that
    stands.
    """

    order: str
    entries: tuple[Entry, ...]
    children: dict[int, "Directory"] = field(default_factory=dict)
    following: int = 0
    following_at: int = 0

    def find(self, code: int) -> Entry | None:
        """The first tag of this code."""
        return next((entry for entry in self.entries if entry.code == code), None)

    def numbers(self, code: int) -> tuple[int, ...]:
        """Values of a tag of whole numbers; none if there is no such tag."""
        entry = self.find(code)
        if entry is None or entry.type not in CODES:
            return ()
        return struct.unpack(f"{self.order}{entry.count}{CODES[entry.type]}", entry.data)

    def number(self, code: int, default: int = 0) -> int:
        """First value of a tag of whole numbers."""
        return next(iter(self.numbers(code)), default)

    def ratios(self, code: int) -> tuple[float, ...]:
        """Values of a tag of fractions; one with denominator 0 is 0."""
        entry = self.find(code)
        if entry is None or entry.type != RATIONAL:
            return ()
        parts = struct.unpack(f"{self.order}{2 * entry.count}I", entry.data)
        return tuple(a / b if b else 0.0 for a, b in zip(parts[::2], parts[1::2], strict=True))

    def data(self, code: int) -> bytes:
        """Bytes of a tag; none if there is no such tag."""
        entry = self.find(code)
        return entry.data if entry else b""

    def without(self, codes: Iterable[int]) -> "Directory":
        """The same without these tags."""
        left_out = set(codes)
        children = {code: child for code, child in self.children.items() if code not in left_out}
        entries = tuple(entry for entry in self.entries if entry.code not in left_out)
        return replace(self, entries=entries, children=children)

    def having(self, entries: Iterable[Entry]) -> "Directory":
        """The same with these tags in place of those of the same codes."""
        new = tuple(entries)
        kept = self.without(entry.code for entry in new)
        return replace(kept, entries=kept.entries + new)


def numbers(order: str, code: int, type_: int, *values: int) -> Entry:
    """A tag of whole numbers."""
    return Entry(
        code, type_, len(values), struct.pack(f"{order}{len(values)}{CODES[type_]}", *values)
    )


def raw(code: int, data: bytes, type_: int = UNDEFINED) -> Entry:
    """A tag of bytes."""
    return Entry(code, type_, len(data), data)


def read_header(read: Read) -> Header:
    """The start of a TIFF file or of an EXIF block.

    Raises:
        ValueError: it is none.
    """
    start = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise ValueError("no TIFF header")
    version = struct.unpack(f"{order}H", start[2:4])[0]
    if version == 42:
        return Header(order, False, struct.unpack(f"{order}I", start[4:8])[0])
    if version == 43 and len(start) == 16:
        offset_bytes, zero, first = struct.unpack(f"{order}HHQ", start[4:16])
        if (offset_bytes, zero) == (8, 0):
            return Header(order, True, first)
    raise ValueError("no TIFF header")


def write_header(header: Header) -> bytes:
    """The start of a TIFF file or of an EXIF block."""
    magic = b"II" if header.order == "<" else b"MM"
    if header.is_big:
        return magic + struct.pack(f"{header.order}HHHQ", 43, 8, 0, header.first)
    return magic + struct.pack(f"{header.order}HI", 42, header.first)


def read_directory(
    read: Read, header: Header, offset: int, depth: int = 0, largest: int = MAX_DATA_BYTES
) -> Directory:
    """The directory at an offset, without those tags whose values lie outside the file.

    Args:
        depth: of the directory; at ``MAX_DEPTH`` none below it are read.
        largest: tags of more bytes than this are left out.

    Raises:
        ValueError: there is no directory at this offset.
    """
    order = header.order
    number_bytes, width = struct.calcsize(header.number_code), struct.calcsize(header.offset_code)
    start = read(offset, number_bytes)
    if len(start) < number_bytes:
        raise ValueError(f"no directory at {offset}")
    (number,) = struct.unpack(order + header.number_code, start)
    entry_bytes = 4 + 2 * width
    table = read(offset + number_bytes, number * entry_bytes + width) if number else b""
    if not 0 < number <= MAX_ENTRIES or len(table) < number * entry_bytes:
        raise ValueError(f"no directory at {offset}")
    entries, children, budget = [], {}, MAX_DATA_BYTES
    for index in range(number):
        place = index * entry_bytes
        code, type_, count = struct.unpack_from(f"{order}HH{header.offset_code}", table, place)
        size = SIZES.get(type_, 0) * count
        at = offset + number_bytes + place + 4 + width
        if size > width:
            (at,) = struct.unpack_from(order + header.offset_code, table, place + 4 + width)
        if not 0 < size <= min(budget, largest) or len(data := read(at, size)) < size:
            continue
        budget -= size
        entry = Entry(code, type_, count, data, at)
        if code not in CHILDREN:
            entries.append(entry)
        elif type_ in CODES and depth < MAX_DEPTH:
            (where,) = struct.unpack_from(order + CODES[type_], data)
            try:
                children[code] = read_directory(read, header, where, depth + 1)
            except ValueError:
                continue
    rest = table[number * entry_bytes :]
    following = struct.unpack(order + header.offset_code, rest)[0] if len(rest) == width else 0
    following_at = offset + number_bytes + number * entry_bytes
    return Directory(order, tuple(entries), children, following, following_at)


def write_directory(directory: Directory, offset: int, *, is_big: bool) -> tuple[bytes, int]:
    """Lay a directory out, with its children and values before it.

    Args:
        directory: tags in any order.
        offset: where the bytes will stand, even.
        is_big: offsets of 64 bits.

    Returns:
        The bytes, which end with the offset of the next directory, 0; and the directory's offset.
    """
    header = Header(directory.order, is_big, 0)
    width = struct.calcsize(header.offset_code)
    entries = [
        entry for entry in map(_narrowed(directory.order, is_big), directory.entries) if entry
    ]
    body = bytearray()
    for code, child in directory.children.items():
        laid, where = write_directory(child, offset + len(body), is_big=is_big)
        body += laid
        entries.append(numbers(directory.order, code, LONG8 if is_big else LONG, where))
    table = bytearray(struct.pack(directory.order + header.number_code, len(entries)))
    for entry in sorted(entries, key=lambda entry: entry.code):
        value = entry.data.ljust(width, b"\0")
        if len(value) > width:
            body += b"\0" * (len(body) % 2)
            value = struct.pack(directory.order + header.offset_code, offset + len(body))
            body += entry.data
        table += struct.pack(
            f"{directory.order}HH{header.offset_code}", entry.code, entry.type, entry.count
        )
        table += value
    body += b"\0" * (len(body) % 2)
    return bytes(body + table + b"\0" * width), offset + len(body)


def _narrowed(order: str, is_big: bool) -> Callable[[Entry], Entry | None]:
    """Make tags fit a file of 32 bits: one of 64 bits becomes one of 32, or nothing."""

    def narrow(entry: Entry) -> Entry | None:
        if is_big or entry.type not in (16, 17, 18):
            return entry
        if entry.type == 17:
            return None
        values = struct.unpack(f"{order}{entry.count}Q", entry.data)
        return numbers(order, entry.code, LONG, *values) if max(values) < 1 << 32 else None

    return narrow
