import contextlib
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from oldrestore.image import decode, encode
from oldrestore.photo_file import PhotoError, save


def random_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    data = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + data
    end = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + end + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_and_reset_and_the_rest_carried(form: str, tmp_path: Path) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:, :8] = 255  # white on the left as stored
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to see it upright: white on top
    exif[306] = "1931:05:17 10:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / f"in.{form.lower()}"
    Image.fromarray(stored).save(source, form, exif=exif, icc_profile=profile, dpi=(300, 300))
    photo = decode(source)
    assert photo.size == (24, 16)
    assert photo.image[0, :, :6].mean() > 0.9
    assert photo.image[0, :, 10:].mean() < -0.9
    for suffix in (".jpg", ".png", ".tif"):
        target = tmp_path / f"out{suffix}"
        save(encode(photo, photo.image), target)
        with Image.open(target) as written:
            assert written.size == (16, 24)
            assert written.getexif().get(274) in (None, 1)
            assert written.getexif()[306] == "1931:05:17 10:00:00"
            assert written.info["icc_profile"] == profile
            if form != "WEBP":  # WebP has no resolution
                assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_16_bit_grey_files_keep_their_depth(tmp_path: Path) -> None:
    array = random_array(9, 12, dtype=np.uint16)
    for suffix in (".png", ".tif"):
        Image.fromarray(array).save(tmp_path / f"in{suffix}")
        result = encode(photo := decode(tmp_path / f"in{suffix}"), photo.image)
        save(result, tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as written:
            assert written.mode == "I;16"
            assert np.array_equal(np.asarray(written), array)
    save(Image.fromarray(array.astype(np.int32)), tmp_path / "i.png")
    with Image.open(tmp_path / "i.png") as written:
        assert np.array_equal(np.asarray(written), array)


def test_16_bit_colour_is_read_as_8_with_a_warning() -> None:
    rows = b"".join(b"\0" + random_array(9, 3, dtype=np.uint16).tobytes() for _ in range(8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 9, 8, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d))
        for name, d in chunks
    )
    with pytest.warns(UserWarning, match="bytes: 16 bits of colour are read as 8"):
        assert decode(data).size == (8, 9)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(random_array(64, 64, 3)), "PNG")
    contents = {
        "empty.png": (b"", "is empty"),
        "text.jpg": (b"no picture at all", "is not a picture of a known format"),
        "small.png": (encoded(Image.new("L", (1, 1)), "PNG"), "expected 8 to 50000 px a side"),
        "wide.png": (png_header(60_000, 20), "expected 8 to 50000 px a side, got 60000 x 20"),
        "bomb.png": (png_header(20_000, 20_000), "too many pixels.*decompression bomb; split it"),
        "hollow.png": (png_header(20, 20), "is damaged or cut short"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        "cut.png": (good[: len(good) // 2], "is damaged or cut short"),
    }
    for name, (data, message) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PhotoError, match=f"{name}: .*{message}"):
            decode(tmp_path / name)
    with pytest.raises(PhotoError, match=r"gone\.png: cannot be read: No such file"):
        decode(tmp_path / "gone.png")
    with pytest.raises(PhotoError, match=f"{tmp_path.name}: is not a file"):
        decode(tmp_path)
    with pytest.raises(PhotoError, match="bytes: is empty"):
        decode(b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch(mode=0)
    with pytest.raises(PhotoError, match=r"a\.png: cannot be read: Permission denied"):
        decode(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_a_file_cut_anywhere_is_a_photo_or_a_photo_error(form: str) -> None:
    exif = Image.Exif()
    exif[306] = "1931:05:17 10:00:00"
    options = {} if form in ("BMP", "GIF") else {"exif": exif}
    data = encoded(Image.fromarray(random_array(24, 24, 3)), form, **options)
    errors = 0
    for kept in range(1, len(data), max(1, len(data) // 60)):
        with contextlib.suppress(PhotoError):
            decode(data[:kept])
            continue
        errors += 1
    assert errors > 0


def test_jpeg_is_written_without_subsampling(tmp_path: Path) -> None:
    save(Image.fromarray(random_array(16, 16, 3)), tmp_path / "a.JPG")
    with Image.open(tmp_path / "a.JPG") as written:
        assert [layer[1:3] for layer in written.layer] == [(1, 1)] * 3


@pytest.mark.parametrize(
    ("mode", "name", "message"),
    [
        ("RGB", "a.xyz", r"a\.xyz: expected a name that ends in one of \.jpg"),
        ("RGB", "a", "a: expected a name that ends in"),
        ("RGBA", "a.jpg", "a.jpg: JPEG cannot hold mode RGBA"),
        ("I;16", "a.jpg", "a.jpg: JPEG cannot hold mode I;16"),
        ("I;16", "a.webp", "a.webp: WEBP cannot hold mode I;16"),
        ("RGB", "file/a.png", "a.png: cannot be written: Not a directory"),
        ("RGB", "none/a.png", "a.png: cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, mode: str, name: str, message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PhotoError, match=message):
        save(Image.new(mode, (9, 9)), tmp_path / name)
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(Image.new("L", (9, 9), 77), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def fill(self: Image.Image, file: BytesIO, form: str, **options: object) -> None:
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    with pytest.raises(PhotoError, match=r"a\.png: cannot be written: No space left on device"):
        save(Image.new("L", (9, 9)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert names(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PhotoError, match=r"a\.png: cannot be written: Permission denied"):
        save(Image.new("L", (9, 9)), tmp_path / "a.png")
