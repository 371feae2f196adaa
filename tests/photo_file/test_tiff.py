"""TIFF files of every layout come back as they were."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from oldrestore.photo_file import Array, PhotoError, PhotoWriter, create_photo, open_photo
from oldrestore.photo_file.tiff_segments import Segments

SIZE = (90, 71)
RGB = {"photometric": "rgb"}
GREY = {"photometric": "minisblack"}
ALPHA = {"extrasamples": ["unassalpha"]}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"rowsperstrip": 7},
    {"tile": (32, 16)},
    {"compression": "lzw", "rowsperstrip": 16},
    {"compression": "lzw", "predictor": True, "tile": (32, 32)},
    {"compression": "zlib", "rowsperstrip": 1},
    {"compression": "zlib", "predictor": True, "tile": (16, 64)},
    {"compression": "zstd", "predictor": True},
    {"compression": "packbits", "rowsperstrip": 9},
    {"compression": "packbits", "tile": (16, 16)},
    {"compression": "lzma", "rowsperstrip": 30},
]
KINDS = [
    (1, np.uint8, GREY),
    (2, np.uint8, GREY | ALPHA),
    (3, np.uint8, RGB),
    (4, np.uint8, RGB | ALPHA),
    (1, np.uint16, GREY),
    (2, np.uint16, GREY | ALPHA),
    (3, np.uint16, RGB),
    (4, np.uint16, RGB | {"extrasamples": ["assocalpha"]}),
    (1, np.uint16, {"photometric": "miniswhite"}),
]


def write(
    path: Path, pixels: Array, order: str = "<", *, is_big: bool = False, **options: Any
) -> None:
    pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    if pixels.ndim == 3:
        options.setdefault("planarconfig", "contig")
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=is_big) as writer:
        writer.write(pixels, metadata=None, **options)


def stored(path: Path) -> Array:
    return tifffile.imread(path).reshape(*SIZE, -1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("channels", "dtype", "kind"), KINDS, ids=str)
def test_layout_depth_and_values_stay(
    channels: int,
    dtype: type,
    kind: dict[str, Any],
    layout: dict[str, Any],
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
) -> None:
    pixels = random_pixels(*SIZE, channels, dtype=dtype)
    order = "><"[channels % 2]
    write(tmp_path / "in.tif", pixels, order, **kind, **layout)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    assert np.array_equal(stored(tmp_path / "out.tif"), pixels)
    with tifffile.TiffFile(tmp_path / "in.tif") as a, tifffile.TiffFile(tmp_path / "out.tif") as b:
        assert (a.byteorder, a.is_bigtiff) == (b.byteorder, b.is_bigtiff)
        for name in ("photometric", "compression", "predictor", "extrasamples", "bitspersample"):
            assert getattr(b.pages[0], name) == getattr(a.pages[0], name), name
        assert b.pages[0].is_tiled == a.pages[0].is_tiled
        assert b.pages[0].chunks == a.pages[0].chunks
    if channels in (1, 3) and "lzma" not in str(layout) and "zstd" not in str(layout):
        with Image.open(tmp_path / "out.tif") as picture:  # libtiff reads it too
            picture.load()


@pytest.mark.parametrize("order", ["<", ">"])
def test_bigtiff_stays_big(
    order: str,
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
) -> None:
    pixels = random_pixels(*SIZE, 3, dtype=np.uint16)
    write(tmp_path / "in.tif", pixels, order, is_big=True, tile=(32, 32), **RGB)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
    assert np.array_equal(stored(tmp_path / "out.tif"), pixels)


def test_a_file_that_may_outgrow_4_gib_is_bigtiff(tmp_path: Path) -> None:
    pixels = np.zeros((9, 9, 1), np.uint8)
    write(tmp_path / "in.tif", pixels)
    for decoded_bytes, is_big in ((4 << 30, True), (3 << 30, False)):
        with (
            open_photo(tmp_path / "in.tif") as photo,
            PhotoWriter(tmp_path / "out.tif", 1, decoded_bytes) as written,
            written.add_page(photo.page(0)) as windows,
        ):
            windows.write(0, 0, pixels)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff == is_big


def test_planes_become_pixels(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    pixels = random_pixels(*SIZE, 3, dtype=np.uint16)
    for layout in ({}, {"tile": (16, 32), "compression": "zlib"}, {"rowsperstrip": 8}):
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        write(tmp_path / "in.tif", planes, planarconfig="separate", **RGB, **layout)
        copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
        assert np.array_equal(stored(tmp_path / "out.tif"), pixels)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.pages[0].planarconfig == 1


@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 32)}], ids=str)
def test_jpeg_in_tiff_is_decoded_once_and_written_without_loss(
    layout: dict[str, Any],
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
) -> None:
    smooth = np.cumsum(random_pixels(*SIZE, 3, dtype=np.uint16) % 3, axis=1).astype(np.uint8)
    write(tmp_path / "in.tif", smooth, compression="jpeg", **RGB, **layout)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    assert np.array_equal(stored(tmp_path / "out.tif"), stored(tmp_path / "in.tif"))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages[0].compression == 8
        assert file.pages[0].photometric == 2


def test_every_page_is_kept_with_its_own_tags(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    pages = [random_pixels(*SIZE, 3), random_pixels(40, 33, dtype=np.uint16), random_pixels(9, 8)]
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for number, pixels in enumerate(pages):
            options = {"description": f"page {number}", "resolution": (300 + number, 301)}
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            writer.write(pixels, metadata=None, subfiletype=2, photometric=photometric, **options)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 3
        for number, (page, pixels) in enumerate(zip(file.pages, pages, strict=True)):
            assert np.array_equal(page.asarray(), pixels)
            assert page.description == f"page {number}"
            assert page.subfiletype == 2
            assert page.tags[282].value == (300 + number, 1)
    with pytest.raises(PhotoError, match=r"out\.png: PNG holds one picture, not 3: use \.tif"):
        copy_photo(tmp_path / "in.tif", tmp_path / "out.png")


def test_reduced_copies_are_left_out_with_a_warning(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        writer.write(random_pixels(*SIZE, 3), metadata=None, subifds=1, **RGB)
        writer.write(random_pixels(45, 36, 3), metadata=None, subfiletype=1, **RGB)
        writer.write(random_pixels(5, 4, 3), metadata=None, subfiletype=1, **RGB)
    with pytest.warns(UserWarning, match="left out") as told:
        copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    assert sorted(str(warning.message) for warning in told) == [
        f"{tmp_path / 'in.tif'}: pages below pages (reduced copies) are left out",
        f"{tmp_path / 'in.tif'}: reduced copies and transparency masks are left out",
    ]
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 1
        assert 330 not in file.pages[0].tags


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 7}], ids=str)
def test_read_at_two_places_in_turn_each_tile_is_decoded_once_for_each(
    planes: str,
    layout: dict[str, Any],
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels, ahead = random_pixels(*SIZE, 3, dtype=np.uint16), 40
    stored = np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels
    options = {"planarconfig": planes, "compression": "zlib", **RGB, **layout}
    write(tmp_path / "in.tif", stored, **options)
    decoded: list[int] = []
    segment_bytes = Segments._data

    def counted(segments: Segments, index: int) -> bytes:
        decoded.append(index)
        return segment_bytes(segments, index)

    monkeypatch.setattr(Segments, "_data", counted)
    with open_photo(tmp_path / "in.tif") as photo:
        page = next(iter(photo.pages()))
        for top in range(-ahead, SIZE[0]):
            for row in (top + ahead, top):
                if 0 <= row < SIZE[0]:
                    assert np.array_equal(page.read(row, 0, 1, SIZE[1])[0], pixels[row])
        assert 0 < page.held_bytes <= pixels.nbytes
    assert max(map(decoded.count, decoded)) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32), "compression": "zlib"}], ids=str)
def test_orientation_is_applied_window_by_window(
    orientation: int,
    layout: dict[str, Any],
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    xmp: bytes,
) -> None:
    monkeypatch.setattr("oldrestore.photo_file.tiff_read.CACHE_BYTES", 0)  # decoded once, to a file
    pixels = random_pixels(*SIZE, 3, dtype=np.uint16)
    tags = [(274, 3, 1, orientation, True), (700, 1, len(xmp), xmp, True)]
    write(tmp_path / "in.tif", pixels, extratags=tags, resolution=(600, 300), **RGB, **layout)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    grey = Image.fromarray((pixels[:, :, 0] >> 8).astype(np.uint8))
    grey.getexif()[274] = orientation
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    expected = grey if operation is None else grey.transpose(operation)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = file.pages[0]
        assert np.array_equal(page.asarray()[:, :, 0] >> 8, np.asarray(expected))
        assert page.tags[274].value == 1
        assert b'tiff:Orientation="1"' in page.tags[700].value
        resolution = (page.tags[282].value[0], page.tags[283].value[0])
        assert resolution == ((300, 600) if orientation > 4 else (600, 300))


def test_tags_are_copied_byte_for_byte(
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
    profile: bytes,
    iptc: bytes,
) -> None:
    picture = Image.fromarray(random_pixels(*SIZE, 3))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270], info[305], info[315], info[33432] = "Old letters", "ScanWare", "A. N.", "©"
    info[282], info[283], info[296] = 600.0, 300.0, 3
    info[33723], info.tagtype[33723] = iptc, 7
    info[34377], info.tagtype[34377] = b"8BIM\x04\x0c\0\0\0\0\0\x02ab", 1
    info[50000], info.tagtype[50000] = b"a private tag", 7
    info[34665] = {36867: "1931:05:17 10:00:00", 33434: TiffImagePlugin.IFDRational(1, 125)}
    info[34853] = {1: "N", 2: (48.0, 12.0, 30.5)}
    picture.save(tmp_path / "in.tif", tiffinfo=info, icc_profile=profile)
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "in.tif") as a, tifffile.TiffFile(tmp_path / "out.tif") as b:
        before, after = a.pages[0].tags, b.pages[0].tags
        for code in (270, 305, 315, 33432, 282, 283, 296, 33723, 34377, 34675, 50000):
            assert after[code].value == before[code].value, code
            assert after[code].dtype == before[code].dtype, code
        assert after[34665].value == before[34665].value
        assert after[34853].value == before[34853].value
        assert after[34675].value == profile
    with Image.open(tmp_path / "out.tif") as written:
        assert written.getexif().get_ifd(34665)[33434] == TiffImagePlugin.IFDRational(1, 125)
        assert written.info["dpi"] == pytest.approx((1524, 762))


def test_palettes_and_odd_depths_are_written_without_loss_and_named(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    indices = random_pixels(*SIZE)
    for step, dtype in ((257, np.uint8), (1, np.uint16)):
        colours = (np.arange(256, dtype=np.uint16) * step)[None] * np.ones((3, 1), np.uint16)
        colours[0, 3] = 5 * step
        tifffile.imwrite(source, indices, photometric="palette", colormap=colours, metadata=None)
        with pytest.warns(UserWarning, match=r"in\.tif: palette colours are written as RGB"):
            copy_photo(source, target)
        written = tifffile.imread(target)
        assert written.dtype == dtype
        expected = colours.T[indices] // (257 if dtype == np.uint8 else 1)
        assert np.array_equal(written, expected)
    for bits, full in ((1, 8), (4, 8), (12, 16)):
        values = random_pixels(*SIZE, dtype=np.uint16) >> (16 - bits)
        values = values.astype(np.uint8 if bits <= 8 else np.uint16)
        if bits == 1:
            tifffile.imwrite(source, values.astype(bool), photometric="minisblack", metadata=None)
        else:
            options = {"photometric": "minisblack", "bitspersample": bits, "metadata": None}
            tifffile.imwrite(source, values, **options)
        with pytest.warns(UserWarning, match=f"{bits} bits a sample are written as {full}"):
            copy_photo(source, target)
        written = tifffile.imread(target).astype(np.int64)
        top = (1 << full) - 1
        assert np.array_equal(np.rint(written * ((1 << bits) - 1) / top), values)
        assert written.max() == top


@pytest.mark.filterwarnings("ignore:.*YCbCr is written as RGB")
def test_what_tifffile_does_not_decode_is_read_by_pillow(
    tmp_path: Path, copy_photo: Callable[..., None]
) -> None:
    first, second = (Image.new("RGB", (40, 24), colour) for colour in ("red", "blue"))
    first.convert("YCbCr").save(
        tmp_path / "in.tif", save_all=True, append_images=[second.convert("YCbCr")]
    )
    copy_photo(tmp_path / "in.tif", tmp_path / "out.tif")
    for index, colour in enumerate(((254, 0, 0), (0, 0, 254))):
        written = tifffile.imread(tmp_path / "out.tif", key=index)
        assert np.abs(written.astype(int) - colour).max() <= 1


def test_what_is_not_restored_is_refused_by_name(
    tmp_path: Path, random_pixels: Callable[..., Array]
) -> None:
    path = tmp_path / "in.tif"
    grey = {"photometric": "minisblack"}
    cases: list[tuple[Array, dict[str, Any], str]] = [
        (random_pixels(*SIZE, 4), {"photometric": "separated"}, "CMYK; convert it to RGB"),
        (random_pixels(*SIZE, 3), {"photometric": "cielab"}, "Lab; convert it"),
        (np.zeros(SIZE, np.float32), grey, r"floating-point values \(HDR\)"),
        (np.zeros(SIZE, np.int16), grey, "expected 1 to 16 unsigned bits"),
        (np.zeros(SIZE, np.uint32), grey, "expected 1 to 16 unsigned bits"),
        (random_pixels(*SIZE, 5), {"photometric": "rgb"}, "at most one more channel"),
        (random_pixels(7, 80), grey, r"expected 8 to 500000 px a side, got 80 x 7"),
    ]
    for pixels, options, message in cases:
        contiguous = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        tifffile.imwrite(path, pixels, metadata=None, **options, **contiguous)
        with open_photo(path) as photo, pytest.raises(PhotoError, match=f"in.tif: .*{message}"):
            photo.page(0)


def tiff(*entries: tuple[int, int, int, int], following: int = 0, size: int = 400) -> bytes:
    """A little TIFF of one directory, with each entry's value in place."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", following)
    return head.ljust(size, b"\0")


PLAIN = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200), (277, 3, 1, 1)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff((256, 4, 1, 9), (257, 4, 1, 9), *PLAIN, following=8), "list of pages has no end"),
        (tiff((256, 4, 1, 9), (257, 4, 1, 9), *PLAIN, following=10), "no directory at 10|no end"),
        (tiff((256, 4, 1, 9), (257, 4, 1, 9), *PLAIN, following=999_999), "no directory at 999999"),
        (tiff((256, 4, 1, 9))[:20], "no directory at 8"),
        (tiff((256, 4, 1, 1 << 31), (257, 4, 1, 9), *PLAIN), "expected 8 to 500000 px"),
        (tiff((256, 4, 1, 400_000), (257, 4, 1, 400_000), *PLAIN), "expected at most 8589 megap"),
        (tiff((256, 4, 1, 40_000), (257, 4, 1, 40_000), *PLAIN), "decompression bomb"),
        (tiff((256, 4, 1, 9), (257, 4, 1, 99), *PLAIN), "row 22 is missing"),
        (b"II*\0", "no TIFF header"),
        (b"II+\0" + bytes(40), "no TIFF header"),
    ],
)
def test_broken_structures_are_refused_at_once(data: bytes, message: str) -> None:
    with pytest.raises(PhotoError, match=f"bytes: .*{message}"), open_photo(data) as photo:
        photo.page(0).read_all()


def test_pages_that_share_their_pixels_are_a_bomb() -> None:
    zeros = zlib.compress(bytes(4000 * 4000))
    head = 8 + len(zeros)
    data = b"II*\0" + struct.pack("<I", head) + zeros
    for number in range(300):
        entries = [(256, 4, 1, 4000), (257, 4, 1, 4000), (258, 3, 1, 8), (259, 3, 1, 8)]
        entries += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (279, 4, 1, len(zeros))]
        table = struct.pack("<H", len(entries))
        table += b"".join(struct.pack("<HHII", *entry) for entry in entries)
        end = head + (number + 1) * (len(table) + 4)
        data += table + struct.pack("<I", end if number < 299 else 0)
    with open_photo(data) as photo, pytest.raises(PhotoError, match="decompression bomb"):
        photo.page(0)


def test_a_strip_that_grows_is_not_followed(tmp_path: Path) -> None:
    zeros = np.zeros((4000, 4000), np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", zeros, compression="zstd", rowsperstrip=4000, metadata=None
    )
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        for code, value in ((256, 64), (257, 64), (278, 64)):
            place = tags[code].valueoffset
            data[place : place + 4] = struct.pack("<I", value)
    with open_photo(bytes(data)) as photo, pytest.raises(PhotoError, match="buffer is too small"):
        photo.page(0).read_all()


def test_a_jpeg_strip_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="jpeg", metadata=None)
    large = imagecodecs.jpeg_encode(np.zeros((640, 640), np.uint8))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        counts = page.tags[279].valueoffset
        offsets = page.tags[273].valueoffset
    data = bytearray(path.read_bytes())
    data[offsets : offsets + 4] = struct.pack("<I", len(data))
    data[counts : counts + 4] = struct.pack("<I", len(large))
    with open_photo(bytes(data) + large) as photo, pytest.raises(PhotoError, match="640 x 640 px"):
        photo.page(0).read_all()


def write_windows(source: Path, target: Path, windows: list[tuple[int, int, Array]]) -> None:
    with (
        open_photo(source) as photo,
        create_photo(target, photo) as written,
        written.add_page(photo.page(0)) as writer,
    ):
        for top, left, array in windows:
            writer.write(top, left, array)


def test_windows_that_do_not_fit_are_refused(
    tmp_path: Path, random_pixels: Callable[..., Array]
) -> None:
    pixels = random_pixels(*SIZE, 3)
    write(tmp_path / "in.tif", pixels, rowsperstrip=10, **RGB)
    cases: list[tuple[list[tuple[int, int, Array]], str]] = [
        ([(0, 0, pixels[:, :, :1])], r"pixels: expected uint8 \(h, w, 3\)"),
        ([(0, 0, pixels.astype(np.uint16))], "pixels: expected uint8"),
        ([(1, 0, pixels)], "is outside, or comes too late"),
        ([(0, 0, pixels[:20]), (10, 0, pixels[10:])], "is outside, or comes too late"),
        ([(0, 0, pixels[:5, :9]), (0, 5, pixels[:5, 5:])], "lies on another"),
        ([(0, 0, pixels[:89])], "expected 90 whole rows, got 80"),
        ([(0, 0, pixels[:, :70])], "expected 90 whole rows, got 0"),
    ]
    for windows, message in cases:
        with pytest.raises(ValueError, match=message):
            write_windows(tmp_path / "in.tif", tmp_path / "out.tif", windows)
        assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]
    for windows, message in (
        ([(0, 0, pixels[:, :, :1])], "pixels: expected a window"),
        ([(0, 5, pixels)], "pixels: expected a window"),
        ([(-9, 0, pixels[:9])], "pixels: expected a window"),
        ([(0, 0, pixels[:89])], "expected 90 whole rows, got 89"),
        ([(0, 0, pixels), (0, 0, pixels[:9])], "expected 90 whole rows, got 81"),
    ):
        with pytest.raises(ValueError, match=message):
            write_windows(tmp_path / "in.tif", tmp_path / "out.png", windows)
        assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]
    with (
        open_photo(tmp_path / "in.tif") as photo,
        pytest.raises(ValueError, match="inside 90 x 71"),
    ):
        photo.page(0).read(80, 0, 11, 5)


def test_without_the_extra_pillow_reads_and_deflate_is_written(
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for channels, dtype, options in KINDS:
        pixels = random_pixels(*SIZE, channels, dtype=dtype)
        write(source, pixels, compression="lzw", **options)
        if dtype == np.uint16 and channels > 1:
            with pytest.raises(PhotoError, match=r"in\.tif: .* pip install \"oldrestore\[tiff\]\""):
                copy_photo(source, target)
            continue
        copy_photo(source, target)
        written = tifffile.TiffFile(target).pages[0]
        values = written.asarray().reshape(pixels.shape)
        assert written.compression == 8
        is_inverted = options["photometric"] == "miniswhite"
        assert np.array_equal(values, 65535 - pixels if is_inverted else pixels)
