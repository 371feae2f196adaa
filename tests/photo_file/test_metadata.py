"""What a file says of its photo goes from any format to any other."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from oldrestore.image import decode, encode
from oldrestore.photo_file import Array, open_photo, save
from oldrestore.photo_file.directory import Directory, numbers, read_directory, read_header
from oldrestore.photo_file.metadata import exif_directory, exif_of, iptc_of, photoshop_of
from oldrestore.photo_file.png import chunks

UPRIGHT_XMP = b'tiff:Orientation="1" tiff:Artist="A. Nonymous"'


def photoshop_segment(iptc: bytes) -> bytes:
    content = b"Photoshop 3.0\0" + photoshop_of(iptc)
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


@pytest.fixture
def make_source(
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    exif: Image.Exif,
    xmp: bytes,
    iptc: bytes,
    profile: bytes,
) -> Callable[[str], Path]:
    """A photo on its side, of 24 x 40 px as stored, with all metadata that its format holds."""

    def make(suffix: str) -> Path:
        path = tmp_path / f"in{suffix}"
        picture = Image.fromarray(random_pixels(24, 40, 3))
        options = {"exif": exif, "icc_profile": profile, "dpi": (600, 300)}
        if suffix == ".jpg":
            options |= {"xmp": xmp, "comment": b"kept", "extra": photoshop_segment(iptc)}
        elif suffix == ".webp":
            options |= {"xmp": xmp, "lossless": True}
        elif suffix == ".png":
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", xmp.decode())
            text.add_text("Title", "Old letters")
            text.add(b"gAMA", struct.pack(">I", 45455))
            options |= {"pnginfo": text}
        if suffix != ".tif":
            picture.save(path, **options)
            return path
        tags = Image.Exif()
        tags.load(exif.tobytes())
        tags[700], tags[33723] = xmp, iptc
        picture.save(path, exif=tags, icc_profile=profile)
        return path

    return make


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.filterwarnings("ignore:.*has no place for IPTC")
def test_metadata_goes_from_format_to_format(
    source: str,
    target: str,
    make_source: Callable[[str], Path],
    copy_photo: Callable[..., None],
    tmp_path: Path,
    profile: bytes,
    iptc: bytes,
) -> None:
    copy_photo(make_source(source), tmp_path / f"out{target}")
    with Image.open(tmp_path / f"out{target}") as written:
        assert written.size == (24, 40)
        assert written.info["icc_profile"] == profile
        assert UPRIGHT_XMP in written.info["xmp"]
        exif = written.getexif()
        assert exif.get(274, 1) == 1
        assert exif[271] == "Scanner & Sons"
        assert exif[306] == "1931:05:17 10:00:00"
        assert (exif[282], exif[283]) == (300, 600)
        fine = exif.get_ifd(34665)
        assert (fine[36867], fine[37510]) == ("1931:05:17 10:00:00", b"ASCII\0\0\0a note")
        assert (fine[40962], fine[40963]) == (24, 40)
        assert exif.get_ifd(34853)[2] == (48.0, 12.0, 30.5)
        if target != ".webp":
            assert written.info["dpi"] == pytest.approx((300, 600), abs=0.1)
    if source in (".jpg", ".tif") and target != ".webp":
        with open_photo(tmp_path / f"out{target}") as photo:
            assert photo.page(0).metadata.iptc.rstrip(b"\0") == iptc


def test_pixels_of_lossless_formats_stay(
    make_source: Callable[[str], Path],
    copy_photo: Callable[..., None],
    tmp_path: Path,
    random_pixels: Callable[..., Array],
) -> None:
    upright = np.rot90(random_pixels(24, 40, 3), -1)
    for suffix in (".png", ".webp", ".tif"):
        copy_photo(make_source(suffix), tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as written:
            assert np.array_equal(np.asarray(written), upright)


def test_jpeg_keeps_its_segments_byte_for_byte(
    make_source: Callable[[str], Path], copy_photo: Callable[..., None], tmp_path: Path
) -> None:
    source = make_source(".jpg")
    copy_photo(source, tmp_path / "out.jpg")
    with Image.open(source) as before, Image.open(tmp_path / "out.jpg") as after:
        assert after.info["comment"] == b"kept"
        kept = [segment for segment in before.applist if segment[0] in ("APP2", "APP13")]
        assert [segment for segment in after.applist if segment[0] in ("APP2", "APP13")] == kept
        old, new = before.info["exif"], after.info["exif"]
        # orientation, two resolutions of 8 bytes and two sides in pixels, and nothing else
        assert len(old) == len(new)
        assert sum(a != b for a, b in zip(old, new, strict=True)) <= 1 + 2 * 8 + 2 * 4


def test_png_keeps_its_texts_and_gamma(
    make_source: Callable[[str], Path], copy_photo: Callable[..., None], tmp_path: Path
) -> None:
    copy_photo(make_source(".png"), tmp_path / "out.png")
    data = (tmp_path / "out.png").read_bytes()
    names = [name for name, _ in chunks(data)]
    assert names.index(b"gAMA") < names.index(b"IDAT")
    assert (b"tEXt", b"Title\0Old letters") in chunks(data)
    assert names.count(b"pHYs") == names.count(b"iCCP") == names.count(b"eXIf") == 1
    with Image.open(BytesIO(data)) as written:
        written.verify()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_every_depth_stays(
    channels: int,
    dtype: type,
    tmp_path: Path,
    random_pixels: Callable[..., Array],
    copy_photo: Callable[..., None],
    profile: bytes,
) -> None:
    pixels = random_pixels(23, 17, channels, dtype=dtype)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", 17, 23, dtype().itemsize * 8, colour_type, 0, 0, 0)
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    parts = [(b"IHDR", header), (b"iCCP", b"mine\0\0" + zlib.compress(profile))]
    parts += [(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d))
        for name, d in [*parts, (b"IEND", b"")]
    )
    copy_photo(data, tmp_path / "out.png")
    with open_photo(tmp_path / "out.png") as photo:
        page = photo.page(0)
        assert np.array_equal(page.read_all(), pixels)
        assert page.dtype == dtype
        assert page.metadata.icc == profile
    written = dict(chunks((tmp_path / "out.png").read_bytes()))
    assert written[b"IHDR"] == header
    assert written[b"pHYs"] == struct.pack(">IIB", 11811, 11811, 1)
    copy_photo(data, tmp_path / "out.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif").reshape(pixels.shape), pixels)


def test_a_picture_of_a_page_gets_its_metadata_and_layout(
    make_source: Callable[[str], Path], tmp_path: Path, profile: bytes
) -> None:
    source = make_source(".tif")
    with open_photo(source) as photo:
        page = photo.page(0)
        save(page.read_all(), tmp_path / "out.tif", like=page)
    with tifffile.TiffFile(source) as a, tifffile.TiffFile(tmp_path / "out.tif") as b:
        assert b.pages[0].tags[34675].value == profile
        assert b.pages[0].tags[271].value == a.pages[0].tags[271].value
        assert b.pages[0].compression == a.pages[0].compression == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_pictures_that_a_user_has_open_keep_their_metadata(
    suffix: str, make_source: Callable[[str], Path], tmp_path: Path, profile: bytes
) -> None:
    with Image.open(make_source(suffix)) as picture:
        photo = decode(picture)
        result = encode(photo, photo.image)
    assert result.size == (24, 40)
    save(result, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert written.size == (24, 40)
        assert written.info["icc_profile"] == profile
        assert written.getexif().get(274, 1) == 1
        assert written.getexif()[271] == "Scanner & Sons"
        assert 273 not in written.getexif()


def test_what_a_format_cannot_hold_is_named(
    make_source: Callable[[str], Path], copy_photo: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"out\.webp: has no place for IPTC"):
        copy_photo(make_source(".jpg"), tmp_path / "out.webp")
    with pytest.warns(UserWarning, match=r"out\.bmp: has no place for EXIF, ICC, XMP"):
        copy_photo(make_source(".png"), tmp_path / "out.bmp")


def test_a_lossy_webp_stays_lossy_and_a_lossless_one_lossless(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    for lossless, name in ((True, b"VP8L"), (False, b"VP8 ")):
        Image.fromarray(random_pixels(16, 16, 3)).save(tmp_path / "in.webp", lossless=lossless)
        copy_photo(tmp_path / "in.webp", tmp_path / "out.webp")
        assert (tmp_path / "out.webp").read_bytes()[12:16] == name


def test_broken_exif_and_profiles_are_left_out_with_a_warning(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    picture = Image.fromarray(random_pixels(16, 16, 3))
    options = {"exif": b"Exif\0\0II*\0\xff\xff\0\0", "icc_profile": b"no profile" * 30}
    picture.save(tmp_path / "in.jpg", **options)
    with pytest.warns(UserWarning, match="left out") as told:
        copy_photo(tmp_path / "in.jpg", tmp_path / "out.jpg")
    messages = " ".join(str(warning.message) for warning in told)
    assert "in.jpg: its EXIF is broken and left out" in messages
    assert "in.jpg: its colour profile is broken and left out" in messages
    with Image.open(tmp_path / "out.jpg") as written:
        assert not {"exif", "icc_profile"} & written.info.keys()


def test_the_small_picture_of_the_photo_as_it_was_is_taken_out(
    tmp_path: Path, random_pixels: Callable[..., Array], copy_photo: Callable[..., None]
) -> None:
    block = Image.Exif()
    block[271] = "Scanner"
    data = bytearray(block.tobytes().removeprefix(b"Exif\0\0"))
    directory = exif_directory(bytes(data))
    assert directory is not None
    data[directory.following_at : directory.following_at + 4] = struct.pack("<I", len(data))
    data += struct.pack("<HHHII", 1, 259, 3, 1, 6) + bytes(4)
    picture = Image.fromarray(random_pixels(16, 16, 3))
    picture.save(tmp_path / "in.jpg", exif=b"Exif\0\0" + bytes(data))
    copy_photo(tmp_path / "in.jpg", tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.getexif()[271] == "Scanner"
        assert not written.getexif().get_ifd(1)


def test_directories_are_read_as_they_were_written() -> None:
    for order in "<>":
        inner = Directory(order, (numbers(order, 40962, 4, 7),))
        tags = (numbers(order, 271, 1, *range(40)), numbers(order, 296, 3, 2))
        data = exif_of(Directory(order, tags, {34665: inner}))
        read = lambda offset, count: data[offset : offset + count]  # noqa: B023, E731
        directory = read_directory(read, read_header(read), read_header(read).first)
        assert directory.numbers(271) == tuple(range(40))
        assert directory.number(296) == 2
        assert directory.children[34665].number(40962) == 7


def test_iptc_is_found_among_photoshops_blocks(iptc: bytes) -> None:
    other = b"8BIM\x03\xed\x03abc\0\0\0\x03xyz\0"
    assert iptc_of(other + photoshop_of(iptc)) == iptc
    assert iptc_of(other[:-3]) == b""
    assert iptc_of(b"8BIM") == b""
