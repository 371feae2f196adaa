import contextlib
import os
import struct
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from oldrestore.image import decode, encode
from oldrestore.photo_file import PhotoError, errors, save


def random_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


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


def test_16_bit_colour_keeps_its_depth_as_an_array(tmp_path: Path) -> None:
    pixels = random_array(9, 12, 3, dtype=np.uint16)
    for suffix in (".png", ".tif"):
        save(pixels, tmp_path / f"in{suffix}")
        photo = decode(tmp_path / f"in{suffix}")
        result = encode(photo, photo.image)
        assert isinstance(result, np.ndarray)
        assert np.array_equal(result, pixels)


def test_16_bit_colour_is_never_read_as_8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save(random_array(9, 12, 3, dtype=np.uint16), tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(PhotoError, match=r"a\.png: .*16 bits.* pip install \"oldrestore\[tiff\]\""):
        decode(tmp_path / "a.png")
    ppm = b"P6 9 12 65535\n" + random_array(12, 9, 3, dtype=np.uint16).tobytes()
    with pytest.raises(PhotoError, match="bytes: 16 bits of colour are read from TIFF and PNG"):
        decode(ppm)


def test_16_bit_jpeg_2000_is_read_whole(tmp_path: Path) -> None:
    pixels = random_array(16, 24, 3, dtype=np.uint16)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True))
    assert np.array_equal(decode(tmp_path / "a.jp2").original, pixels)


def test_conversions_without_loss_are_named() -> None:
    rows = zlib.compress((b"\0" + b"\x0f" * 5) * 9)
    four_bits = png_header(9, 9, bits=4)[:33] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    cases = {
        "palette colours are written as RGB": encoded(Image.new("P", (9, 9)), "GIF"),
        "black and white is written as 8-bit grey": encoded(Image.new("1", (9, 9), 1), "PNG"),
        "grey of fewer than 8 bits is written with 8": four_bits,
    }
    for message, data in cases.items():
        with pytest.warns(UserWarning, match=f"bytes: {message}"):
            photo = decode(data)
        assert photo.pixels.dtype == torch.uint8


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        with pytest.raises(PhotoError, match=r"bytes: is animated \(2 frames\)"):
            decode(data)


def test_of_a_file_with_pages_the_first_is_decoded_with_a_warning() -> None:
    data = encoded(
        Image.new("L", (9, 9), 7), "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]
    )
    with pytest.warns(UserWarning, match="bytes: of 2 pages the first is read"):
        assert decode(data).pixels.unique().tolist() == [7]


def test_large_pictures_are_not_taken_for_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(Image.new("L", (99, 99)), "PNG")).size == (99, 99)
    with pytest.raises(PhotoError, match=r"bytes: .* decompression bomb"):  # the plugin's own
        decode(encoded(Image.new("RGB", (99, 99)), "WEBP"))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("RGB", (99, 99)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(PhotoError, match=r"bytes: holds 6\d\d scans, and 500 is the most"):
        decode(data[:-2] + data[start:-2] * 600 + data[-2:])


def test_what_is_decoded_whole_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (99, 99)), "PNG")
    monkeypatch.setattr(errors, "MAX_DECODED_BYTES", 99 * 99 - 1)
    with pytest.raises(PhotoError, match="save it as a TIFF, which is read by windows"):
        decode(data)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(random_array(64, 64, 3)), "PNG")
    contents = {
        "empty.png": (b"", "is empty"),
        "text.jpg": (b"no picture at all", "is not a picture of a known format"),
        "small.png": (encoded(Image.new("L", (1, 1)), "PNG"), "expected 8 to 50000 px a side"),
        "wide.png": (png_header(60_000, 20), "expected 8 to 50000 px a side, got 60000 x 20"),
        "bomb.png": (
            png_header(20_000, 20_000),
            "claims 400000000 bytes of pixels in a file of 45: .* decompression bomb",
        ),
        "bomb2.png": (png_header(50_000, 50_000) + bytes(10_000), "is damaged or a decompression"),
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
        ("RGBA", "a.jpg", "a.jpg: JPEG cannot hold alpha: use .png or .tif"),
        ("I;16", "a.jpg", "a.jpg: JPEG cannot hold 16 bits"),
        ("I;16", "a.webp", "a.webp: WEBP cannot hold 16 bits"),
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
