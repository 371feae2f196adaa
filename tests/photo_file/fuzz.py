"""Damaged TIFF, PNG and JPEG files, read and written back as a batch would.

    python tests/photo_file/fuzz.py --count 2000 --seed 0

prints a line for each file: what became of it, and why. Files are worked on in processes with a
limit on memory and on time, so that a crash or a hang is seen and names its file.
"""

import argparse
import faulthandler
import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from oldrestore.image import decode
from oldrestore.photo_file import PhotoError, create_photo, open_photo

TIMEOUT_S = 10  # of work
WAITING_S = 60  # altogether; a busy machine or disk is no hang
BUDGET_BYTES = 512 << 20  # beside the interpreter's
ABSURD = (0, 1, 2, 7, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Rng = np.random.Generator
Seed = tuple[str, bytes]


def seeds() -> list[Seed]:
    """Sound files: their suffix and bytes."""
    return [*((".tif", data) for data in _tiffs()), *_pngs_and_jpegs()]


def mutated(seed: Seed, rng: Rng) -> tuple[str, bytes]:
    """A damaged copy of a file, and what was done to it."""
    suffix, data = seed
    general: list[Callable[[bytearray, Rng], str]] = [truncate, flip_bytes, flip_header, put_absurd]
    own: dict[str, list[Callable[[bytearray, Rng], str]]] = {
        ".tif": [change_entry, change_entry, change_entry, make_ring],
        ".png": [resize_png, break_chunk, break_chunk],
        ".jpg": [resize_jpeg, break_segment, break_segment],
    }
    choices = general + own[suffix]
    damaged = bytearray(data)
    done = [choices[rng.integers(len(choices))](damaged, rng) for _ in range(rng.integers(1, 3))]
    return ", ".join(done), bytes(damaged)


def truncate(data: bytearray, rng: Rng) -> str:
    del data[rng.integers(1, len(data)) :]
    return f"cut at {len(data)}"


def flip_bytes(data: bytearray, rng: Rng) -> str:
    places = rng.integers(0, len(data), rng.integers(1, 8))
    for place in places:
        data[place] = rng.integers(256)
    return f"{len(places)} bytes flipped"


def flip_header(data: bytearray, rng: Rng) -> str:
    place = int(rng.integers(0, min(len(data), 64)))
    data[place] ^= 1 << rng.integers(8)
    return f"bit of byte {place} flipped"


def put_absurd(data: bytearray, rng: Rng) -> str:
    place = int(rng.integers(0, max(1, len(data) - 4)))
    value = ABSURD[rng.integers(len(ABSURD))]
    data[place : place + 4] = struct.pack("<>"[rng.integers(2)] + "I", value)
    return f"{value:#x} at {place}"


def change_entry(data: bytearray, rng: Rng) -> str:
    """A tag of a TIFF gets another type, count or value."""
    found = list(_directories(data))
    if not found:
        return "no directory"
    first, number, entry_bytes = found[rng.integers(len(found))]
    entry = first + entry_bytes * int(rng.integers(number))
    order = "<" if data[:2] == b"II" else ">"
    field, code = [(2, "H"), (4, "I"), (entry_bytes // 2 + 2, "I"), (8, "H")][rng.integers(4)]
    value = ABSURD[rng.integers(len(ABSURD))]
    if field == 2:
        value = int(rng.integers(20))
    elif rng.integers(3) == 0:
        value = int(rng.integers(len(data)))
    struct.pack_into(order + code, data, entry + field, value & (0xFFFF if code == "H" else -1))
    (tag,) = struct.unpack_from(order + "H", data, entry)
    return f"tag {tag}: {value:#x} at {field}"


def make_ring(data: bytearray, rng: Rng) -> str:
    """A directory of a TIFF is followed by itself, by another, or holds itself."""
    found = list(_directories(data))
    if not found:
        return "no directory"
    (first, number, entry_bytes), (other, *_) = (found[rng.integers(len(found))] for _ in range(2))
    order, is_big = "<" if data[:2] == b"II" else ">", entry_bytes == 20
    other -= 8 if is_big else 2
    if rng.integers(2):
        code = order + ("Q" if is_big else "I")
        struct.pack_into(code, data, first + entry_bytes * number, other)
        return f"directory {first} followed by {other}"
    code = (330, 34665, 34853)[rng.integers(3)]
    entry = first + entry_bytes * int(rng.integers(number))
    struct.pack_into(order + ("HHQQ" if is_big else "HHII"), data, entry, code, 4, 1, other)
    return f"directory {first} holds {other}"


def resize_png(data: bytearray, rng: Rng) -> str:
    width, height = (int(1 << rng.integers(1, 31)) for _ in range(2))
    depth, kind = int((1, 2, 4, 8, 16)[rng.integers(5)]), int(rng.integers(7))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, rng.integers(2))
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return f"claims {width} x {height}, depth {depth}, kind {kind}"


def break_chunk(data: bytearray, rng: Rng) -> str:
    """Some bytes of a PNG's chunk change, and its sum with them."""
    places = []
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        if place + 12 + size > len(data):
            break
        places.append((place, size))
        place += 12 + size
    if not places:
        return "no chunk"
    place, size = places[rng.integers(len(places))]
    for _ in range(rng.integers(1, 9)):
        if size:
            data[place + 8 + rng.integers(size)] = rng.integers(256)
    content = bytes(data[place + 4 : place + 8 + size])
    data[place + 8 + size : place + 12 + size] = struct.pack(">I", zlib.crc32(content))
    return f"chunk {content[:4]!r} broken"


def resize_jpeg(data: bytearray, rng: Rng) -> str:
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    height, width = (int(1 << rng.integers(1, 16)) for _ in range(2))
    if start >= 0 and start + 9 <= len(data):
        struct.pack_into(">HH", data, start + 5, height, width)
    return f"claims {width} x {height}"


def break_segment(data: bytearray, rng: Rng) -> str:
    """Length or bytes of a JPEG's EXIF, XMP, profile or IPTC change."""
    starts = [
        i for i in range(len(data) - 4) if data[i] == 0xFF and data[i + 1] in (0xE1, 0xE2, 0xED)
    ]
    if not starts:
        return "no segment"
    start = starts[rng.integers(len(starts))]
    if rng.integers(3) == 0:
        struct.pack_into(">H", data, start + 2, int(rng.integers(65536)))
        return f"length of segment {start}"
    for _ in range(rng.integers(1, 9)):
        place = start + 4 + int(rng.integers(120))
        if place < len(data):
            data[place] = rng.integers(256)
    return f"segment {start} broken"


def outcome(suffix: str, data: bytes, folder: Path) -> dict[str, Any]:
    """Read a file as the restorer does, write it back, and say what came of it.

    Raises:
        AssertionError: something is left behind, or what was written is not what was read.
    """
    source, target = folder / f"in{suffix}", folder / f"out{suffix}"
    source.write_bytes(data)
    try:
        decode(source)
        with open_photo(source) as photo, create_photo(target, photo) as written:
            read = []
            for page in photo.pages():
                read.append(page.read_all())
                with written.add_page(page) as windows:
                    windows.write(0, 0, read[-1])
    except PhotoError as error:
        assert [path.name for path in folder.iterdir()] == [source.name], "left something behind"
        text = str(error)
        assert "fit into the memory" not in text, "wants more memory than it may"
        assert text.startswith(str(folder)), f"does not name the file: {text}"
        assert "\n" not in text, f"is no single line: {text}"
        return {"outcome": "refused", "reason": text.removeprefix(f"{folder}/")}
    assert sorted(path.name for path in folder.iterdir()) == [source.name, target.name]
    with open_photo(target) as photo:
        again = [page.read_all() for page in photo.pages()]
    assert len(again) == len(read), "pages are missing"
    for a, b in zip(read, again, strict=True):
        assert a.shape == b.shape, "another size was written"
        assert suffix == ".jpg" or np.array_equal(a, b), "other pixels were written"
    target.unlink()
    return {"outcome": "read", "reason": ""}


def work(seed: int, start: int, stop: int) -> None:
    """Work on files ``start`` to ``stop``; print a line of JSON before and after each."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    files = seeds()
    for suffix, data in files:  # all that is loaded once is loaded now
        with tempfile.TemporaryDirectory() as folder:
            outcome(suffix, data, Path(folder))
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = size * resource.getpagesize() + BUDGET_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for index in range(start, stop):
        rng = np.random.default_rng((seed, index))
        suffix, data = files[rng.integers(len(files))]
        how, damaged = mutated((suffix, data), rng)
        record: dict[str, Any] = {"index": index, "suffix": suffix, "how": how}
        print(json.dumps(record), flush=True)  # noqa: T201 (what the program is for)
        # both end the process, whatever code is running
        signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)
        signal.alarm(WAITING_S)
        with tempfile.TemporaryDirectory() as folder:
            try:
                record |= outcome(suffix, damaged, Path(folder))
            except Exception as error:  # any other is what is looked for
                record |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        print(json.dumps(record), flush=True)  # noqa: T201 (what the program is for)


def run(seed: int, count: int, program: str = __file__) -> Iterator[dict[str, Any]]:
    """What became of each file; a process that dies is a file that failed, and the next goes on."""
    start = 0
    while start < count:
        command = [sys.executable, program, "--work", str(start), str(count), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        finished = [record for record in records if "outcome" in record]
        yield from finished
        if done.returncode == 0:
            return
        if not records:
            raise RuntimeError(done.stderr)
        last = records[-1]
        is_hang = done.returncode in (-signal.SIGALRM, -signal.SIGPROF)
        reason = f"took over {TIMEOUT_S} s" if is_hang else f"died: {done.stderr[-2000:]}"
        yield last | {"outcome": "failed", "reason": reason}
        start = last["index"] + 1


def _directories(data: bytearray) -> Iterator[tuple[int, int, int]]:
    """Of each directory of a TIFF: its first entry's place, entries, and bytes of an entry."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    number_code, offset_code, entry_bytes = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    number_bytes, offset_bytes = struct.calcsize(number_code), struct.calcsize("=" + offset_code)
    seen, waiting = set(), [8 if is_big else 4]
    while waiting:
        at = waiting.pop()
        if at + offset_bytes > len(data):
            continue
        (place,) = struct.unpack_from(order + offset_code, data, at)
        if place in seen or place + number_bytes > len(data):
            continue
        (number,) = struct.unpack_from(order + number_code, data, place)
        first = place + number_bytes
        if not number or first + entry_bytes * number + offset_bytes > len(data):
            continue
        seen.add(place)
        yield first, number, entry_bytes
        waiting.append(first + entry_bytes * number)
        for entry in range(first, first + entry_bytes * number, entry_bytes):
            (code,) = struct.unpack_from(order + "H", data, entry)
            if code in (34665, 34853):
                waiting.append(entry + entry_bytes - offset_bytes)


def _tiffs() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    shape = (40, 33)
    rgb, deep = (
        rng.integers(0, top, (*shape, 3), dtype) for top, dtype in ((256, "u1"), (65536, "u2"))
    )
    exif, profile = _exif(), _profile()
    colours = rng.integers(0, 65536, (3, 256), np.uint16)
    variants: list[tuple[np.ndarray, dict[str, Any]]] = [
        (rgb, {"photometric": "rgb", "rowsperstrip": 7}),
        (deep, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib", "predictor": True}),
        (deep, {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 9}),
        (rgb, {"photometric": "rgb", "compression": "jpeg", "tile": (16, 32)}),
        (deep[:, :, 0], {"photometric": "minisblack", "compression": "zstd"}),
        (rgb[:, :, 0], {"photometric": "miniswhite", "compression": "packbits"}),
        (rgb[:, :, 0], {"photometric": "palette", "colormap": colours}),
        (rgb.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
        (rgb[:, :, 0] > 127, {"photometric": "minisblack"}),
    ]
    for number, (pixels, options) in enumerate(variants):
        buffer = BytesIO()
        with tifffile.TiffWriter(buffer, byteorder="<>"[number % 2], bigtiff=number == 1) as writer:
            for _ in range(1 + number % 3):
                writer.write(pixels, metadata=None, iccprofile=profile, **options)
        yield buffer.getvalue()
    buffer = BytesIO()
    Image.fromarray(rgb).convert("1").save(buffer, "TIFF", compression="group4")
    yield buffer.getvalue()
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "TIFF", exif=exif, icc_profile=profile)
    yield buffer.getvalue()


def _pngs_and_jpegs() -> Iterator[Seed]:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (40, 33, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (40, 33), np.uint16))
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    text.add_text("Title", "Old letters", zip=True)
    metadata: dict[str, Any] = {"exif": _exif(), "icc_profile": _profile(), "dpi": (300, 300)}
    for one in (picture, picture.convert("P"), deep, picture.convert("RGBA"), picture.convert("1")):
        buffer = BytesIO()
        one.save(buffer, "PNG", pnginfo=text, **metadata)
        yield ".png", buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        deep_rgb = Path(folder) / "a.png"
        with open_photo(next(_deep_rgb())) as photo, create_photo(deep_rgb, photo) as written:
            page = photo.page(0)
            with written.add_page(page) as windows:
                windows.write(0, 0, page.read_all())
        yield ".png", deep_rgb.read_bytes()
    iptc = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x08\x1c\x02\x78\0\x03abc"
    extra = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
    for one, options in (
        (picture, {}),
        (picture, {"progressive": True}),
        (picture.convert("L"), {"subsampling": 0}),
    ):
        buffer = BytesIO()
        one.save(
            buffer, "JPEG", extra=extra, xmp=b'<x tiff:Orientation="6"/>', **metadata, **options
        )
        yield ".jpg", buffer.getvalue()


def _deep_rgb() -> Iterator[bytes]:
    buffer = BytesIO()
    pixels = np.random.default_rng(2).integers(0, 65536, (40, 33, 3), np.uint16)
    tifffile.imwrite(buffer, pixels, photometric="rgb", metadata=None, iccprofile=_profile())
    yield buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[271], exif[274], exif[306] = "Scanner & Sons", 6, "1931:05:17 10:00:00"
    exif[34665] = {36867: "1931:05:17 10:00:00", 40962: 33, 40963: 40}
    exif[34853] = {1: "N", 2: (48.0, 12.0, 30.5)}
    return exif.tobytes()


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=2, metavar=("START", "STOP"))
    asked = parser.parse_args()
    if asked.work:
        work(asked.seed, *asked.work)
        return
    for record in run(asked.seed, asked.count):
        print("{index:5} {suffix} {outcome:8} {how}: {reason}".format(**record))  # noqa: T201 (what the program is for)


if __name__ == "__main__":
    main()
