import contextlib
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from oldrestore.image import PhotoLike, decode, decode_mask, encode, encode_mask, unchanged
from oldrestore.photo_file import PhotoError, save

RNG = np.random.default_rng(0)


def random_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return RNG.random(shape).astype(dtype)


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


ARRAYS = [
    random_array(9, 12),
    random_array(9, 12, 1),
    random_array(9, 12, 2),
    random_array(9, 12, 3),
    random_array(9, 12, 4),
    random_array(9, 12, dtype=np.uint16),
    random_array(9, 12, 4, dtype=np.uint16),
    random_array(9, 12, 3, dtype=np.uint16).astype(">u2"),
    random_array(9, 12, 3, dtype=np.float32),
    random_array(9, 12, 4, dtype=np.float64),
    random_array(12, 9, 3)[::-1, ::-1],
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    photo = decode(array)
    assert photo.image.shape == (1, 3, *array.shape[:2])
    assert photo.image.dtype == torch.float32
    assert photo.image.min() >= -1
    assert photo.image.max() <= 1
    result = encode(photo, photo.image)
    assert result.dtype == array.dtype
    assert result.shape == array.shape
    if np.issubdtype(array.dtype, np.integer):
        assert np.array_equal(result, array)
    else:
        assert np.abs(result - array).max() < 1e-6
    assert np.array_equal(unchanged(photo), array)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 9, 12), (2, 4, 9, 12), (3, 1, 9, 12)])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    tensor = (tensor * 255).to(dtype) if dtype == torch.uint8 else tensor.to(dtype)
    photo = decode(tensor)
    assert photo.image.shape[:2] == (shape[0] if len(shape) == 4 else 1, 3)
    result = encode(photo, photo.image)
    assert result.dtype == dtype
    assert result.shape == shape
    assert (result.double() - tensor.double()).abs().max() < 1e-6
    assert torch.equal(unchanged(photo), tensor)


def test_the_range_of_the_image_is_the_range_of_the_type() -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1)):
        array = np.array([0, top] * 32, dtype).reshape(8, 8)
        assert decode(array).image.unique().tolist() == [-1, 1]


def test_what_leaves_the_range_is_clamped_not_wrapped() -> None:
    photo = decode(random_array(8, 8, 3))
    assert (encode(photo, torch.full((1, 3, 8, 8), 1.5)) == 255).all()
    assert (encode(photo, torch.full((1, 3, 8, 8), -1.5)) == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "I"])
def test_pictures_come_back_in_their_mode(mode: str) -> None:
    if mode.startswith("I"):
        array = random_array(9, 12, dtype=np.uint16)
        picture = Image.fromarray(array if mode == "I;16" else array.astype(np.int32))
    else:
        picture = Image.fromarray(random_array(9, 12, 4), "RGBA").convert(mode)
    result = encode(photo := decode(picture), photo.image)
    assert result.mode == mode
    assert result.size == (12, 9)
    assert np.array_equal(np.asarray(result), np.asarray(picture))


@pytest.mark.parametrize(("mode", "read_as"), [("1", "L"), ("P", "RGB"), ("YCbCr", "RGB")])
def test_other_modes_are_read_without_loss(mode: str, read_as: str) -> None:
    picture = Image.fromarray(random_array(9, 12, 3)).convert(mode)
    result = encode(photo := decode(picture), photo.image)
    assert result.mode == read_as
    assert np.array_equal(np.asarray(result), np.asarray(picture.convert(read_as)))


@pytest.mark.parametrize(("mode", "read_as"), [("P", "RGBA"), ("L", "LA"), ("RGB", "RGBA")])
def test_a_transparent_colour_becomes_alpha(mode: str, read_as: str) -> None:
    clear = {"P": 0, "L": 7, "RGB": (1, 2, 3)}[mode]
    picture = Image.new(mode, (9, 9), clear)
    result = encode(photo := decode(encoded(picture, "PNG", transparency=clear)), photo.image)
    assert result.mode == read_as
    assert np.asarray(result)[..., -1].max() == 0


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "HSV", "F"])
def test_modes_that_need_a_profile_are_refused(mode: str) -> None:
    with pytest.raises(PhotoError, match=f"photo: mode {mode} is not read"):
        decode(Image.new(mode, (9, 9)))


def test_mode_i_outside_16_bits_is_refused() -> None:
    with pytest.raises(PhotoError, match=r"0\.\.65535"):
        decode(Image.new("I", (9, 9), -1))


def test_grey_in_three_channels_gets_no_colour() -> None:
    grey = np.repeat(random_array(8, 8, 1), 3, axis=2)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    result = encode(decode(grey), image)
    assert (result == result[..., :1]).all()
    coloured = grey.copy()
    coloured[0, 0, 0] ^= 1
    result = encode(decode(coloured), image)
    assert (result != result[..., :1]).any()


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


@pytest.mark.parametrize(
    "photo",
    [
        random_array(9, 12, 5),
        random_array(9, 12, 3, 1),
        random_array(12),
        random_array(9, 12).astype(np.int32),
        random_array(9, 12) > 9,
        torch.zeros(9, 12),
        torch.zeros(5, 9, 12),
        torch.zeros(0, 3, 9, 12),
        torch.zeros(3, 9, 12, dtype=torch.int32),
        torch.full((3, 9, 12), float("nan")),
        torch.full((3, 9, 12), 1.5),
        np.full((9, 12), np.inf),
        np.full((9, 12), -0.1),
        random_array(7, 12),
        torch.zeros(3, 8, 7),
        Image.new("L", (1, 1)),
    ],
    ids=lambda p: f"{type(p).__name__}-{getattr(p, 'dtype', '')}-{getattr(p, 'shape', '')}",
)
def test_unfit_photos_are_refused(photo: PhotoLike) -> None:
    with pytest.raises(PhotoError, match="photo: expected"):
        decode(photo)


def test_other_kinds_are_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"photo: expected a path, bytes, PIL image.*got int"):
        decode(3)


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


MASK = np.zeros((9, 12), bool)
MASK[2:4, 3:9] = True


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.uint16) * 65535,
        MASK.astype(np.float32),
        MASK.astype(np.float64) * 255,
        MASK[:, :, None],
        np.repeat(MASK[:, :, None], 3, 2).astype(np.uint8) * 255,
        torch.from_numpy(MASK),
        torch.from_numpy(MASK)[None].float(),
        torch.from_numpy(MASK)[None, None].to(torch.uint8) * 255,
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8) * 255),
        Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGBA"),
        Image.fromarray(MASK.astype(np.uint8) * 254),  # as a lossy file may hold it
        encoded(Image.fromarray(MASK.astype(np.uint8) * 255), "PNG"),
    ],
    ids=range(16),
)
def test_every_kind_of_mask_means_the_same(mask: PhotoLike) -> None:
    result = decode_mask(mask, decode(random_array(9, 12, 3)))
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.from_numpy(MASK)[None, None].float())


def test_one_mask_serves_a_batch() -> None:
    photo = decode(torch.zeros(2, 3, 9, 12))
    assert decode_mask(MASK, photo).shape == (2, 1, 9, 12)
    each = torch.stack([torch.zeros(1, 9, 12), torch.ones(1, 9, 12)])
    assert decode_mask(each, photo).mean(dim=(1, 2, 3)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.T, r"mask: expected \(9, 12\) to match photo, got \(12, 9\)"),
        (torch.zeros(3, 1, 9, 12), "mask: expected .* to match photo"),
        (random_array(9, 12, 3), "mask: expected one channel"),
        (np.full((9, 12), 70_000), r"mask: expected values in 0\.\.1 or 0\.\.255"),
        (np.full((9, 12), -1), r"mask: expected values in 0\.\.1"),
        (np.full((9, 12), np.nan), r"mask: expected values in 0\.\.1"),
    ],
)
def test_unfit_masks_are_refused(mask: PhotoLike, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        decode_mask(mask, decode(random_array(9, 12, 3)))


def test_other_kinds_of_mask_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="mask: expected 'auto', None or a photo"):
        decode_mask(3, decode(random_array(9, 12)))
    with pytest.raises(PhotoError, match=r"gone\.png: cannot be read"):
        decode_mask("gone.png", decode(random_array(9, 12)))


@pytest.mark.parametrize(
    "photo",
    [
        random_array(9, 12, 3),
        random_array(9, 12, 3, dtype=np.uint16),
        random_array(9, 12, dtype=np.float32),
        torch.zeros(3, 9, 12),
        torch.zeros(1, 3, 9, 12, dtype=torch.uint8),
        Image.new("RGBA", (12, 9)),
    ],
    ids=range(6),
)
def test_a_mask_given_back_can_be_given_again(photo: PhotoLike) -> None:
    decoded = decode(photo)
    mask = torch.from_numpy(MASK)[None, None].float()
    given = encode_mask(decoded, mask)
    assert type(given).__module__.split(".")[0] == type(photo).__module__.split(".")[0]
    assert torch.equal(decode_mask(given, decoded), mask)


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
