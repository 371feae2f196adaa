from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from oldrestore.image import PhotoLike, decode, decode_mask, encode, encode_mask, unchanged
from oldrestore.photo_file import PhotoError

RNG = np.random.default_rng(0)


def random_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return RNG.random(shape).astype(dtype)


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
