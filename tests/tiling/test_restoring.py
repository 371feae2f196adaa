"""A photo in bands is the photo whole, to the bit, whatever the bands, threads and kinds."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.ops import _dispatch
from oldrestore.pipeline import Restorer
from oldrestore.tiling.windows import ArrayWindows

Bands = Callable[..., AbstractContextManager[None]]
Photos = Callable[..., np.ndarray]
TOLERANCE = 2e-5  # of [0, 1]
needs_native = pytest.mark.skipif(
    _dispatch.NATIVE is None, reason="torch's convolutions promise no bits"
)
OPTIONS = (
    {},
    {"tone": 1.0, "denoise": 0.3, "strength": 0.7},
    {"outside_mask": "keep"},
    {"mask": None},
    {"strength": 0.0},
    {"denoise": 1.0, "tone": 0.0},
)


@pytest.fixture(scope="module")
def shipped() -> Restorer:
    return Restorer.load(device="cpu")


@needs_native
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", [64, 128])
def test_bands_have_the_bits_of_the_whole(
    shipped: Restorer, in_bands: Bands, photo_of: Photos, options: dict, rows: int
) -> None:
    photo = photo_of(203, 107, np.float32)
    whole = shipped.restore(photo, **options)
    with in_bands(rows):
        found = shipped.restore(photo, **options)
    assert np.array_equal(found.image, whole.image)
    assert found.tone == whole.tone
    assert found.damaged == whole.damaged
    if whole.mask is None:
        assert found.mask is None
    else:
        assert np.array_equal(found.mask, whole.mask)
    if options.get("strength") != 0.0 and options.get("outside_mask") != "keep":
        assert np.abs(found.image - photo).mean() > 1e-3  # else the test could not fail


@pytest.mark.parametrize("size", [(8, 300), (300, 8), (65, 63), (130, 71)])
def test_bands_equal_the_whole_at_any_size(
    restorer: Restorer, in_bands: Bands, photo_of: Photos, size: tuple[int, int]
) -> None:
    photo = photo_of(*size, np.float32)
    whole = restorer.restore(photo, tone=1.0)
    with in_bands():
        found = restorer.restore(photo, tone=1.0)
    assert np.abs(found.image - whole.image).max() <= TOLERANCE
    assert found.mask.shape == size


@needs_native
def test_threads_change_no_bit(shipped: Restorer, in_bands: Bands, photo_of: Photos) -> None:
    photo = photo_of(150, 131, np.float32)
    one = shipped.restore(photo, tone=1.0)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert np.array_equal(shipped.restore(photo, tone=1.0).image, one.image)
        with in_bands():
            assert np.array_equal(shipped.restore(photo, tone=1.0).image, one.image)


@needs_native
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float64])
def test_every_kind_of_photo(
    shipped: Restorer, in_bands: Bands, photo_of: Photos, channels: int, kind: type
) -> None:
    photo = photo_of(100, 70, kind, channels)
    whole = shipped.restore(photo)
    with in_bands():
        found = shipped.restore(photo)
    assert found.image.dtype == kind
    assert np.array_equal(found.image, whole.image)
    assert np.array_equal(found.mask, whole.mask)


def test_grey_stays_grey_in_bands(restorer: Restorer, in_bands: Bands, photo_of: Photos) -> None:
    grey = photo_of(140, 60)[..., :1].repeat(3, axis=2)
    with in_bands():
        result = restorer.restore(grey, tone=1.0).image
        assert (result == result[..., :1]).all()
        grey[-1, -1, 0] ^= 1  # one coloured pixel at the end makes it a colour photo
        result = restorer.restore(grey, tone=1.0).image
        assert (result != result[..., :1]).any()


def test_keep_changes_nothing_outside_the_mask_in_bands(
    restorer: Restorer, in_bands: Bands, photo_of: Photos
) -> None:
    photo, mask = photo_of(170, 90, np.uint16), np.zeros((170, 90), np.uint8)
    mask[50:90, 20:60] = 255
    with in_bands():
        result = restorer.restore(photo, mask=mask, outside_mask="keep").image
    assert np.array_equal(result[mask == 0], photo[mask == 0])
    assert (result[mask > 0] != photo[mask > 0]).mean() > 0.9


def test_strength_0_is_the_photo_in_bands(
    restorer: Restorer, in_bands: Bands, photo_of: Photos
) -> None:
    photo = photo_of(100, 50, np.float32, channels=4)
    with in_bands():
        result = restorer.restore(photo, strength=0.0)
    assert np.array_equal(result.image, photo)
    assert result.image is not photo
    assert result.mask.shape == (100, 50)


def test_batches_in_bands_are_the_photos_alone(
    restorer: Restorer, in_bands: Bands, photo_of: Photos
) -> None:
    photos = [photo_of(90, 40, np.float32), photo_of(90, 40, np.float32)[::-1].copy()]
    batch = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in photos])
    with in_bands():
        together = restorer.restore(batch)
        alone = [restorer.restore(one) for one in batch]
    assert torch.equal(together.image, torch.stack([one.image for one in alone]))
    assert torch.equal(together.mask, torch.stack([one.mask for one in alone]))
    assert together.tone == alone[0].tone + alone[1].tone


def test_results_in_bands_can_be_used_in_autograd(restorer: Restorer, in_bands: Bands) -> None:
    with in_bands():
        image = restorer.restore(torch.rand(3, 70, 16)).image
    (image * torch.ones(1, requires_grad=True)).sum().backward()


def test_windows_give_what_arrays_give(
    restorer: Restorer, in_bands: Bands, photo_of: Photos
) -> None:
    photo = photo_of(180, 75, np.uint16)
    with in_bands():
        whole = restorer.restore(photo)
        result, mask = np.zeros_like(photo), np.zeros((180, 75), np.uint8)
        found = restorer.restore_windows(
            ArrayWindows(photo), ArrayWindows(result), mask_result=ArrayWindows(mask)
        )
        assert np.array_equal(result, whole.image)
        assert np.array_equal(mask, whole.mask)
        assert (found.image, found.mask) == (None, None)
        assert found.tone == whole.tone
        assert found.damaged == pytest.approx((mask > 0).mean())

        own = np.zeros((180, 75), np.uint16)
        own[40:80, 30:50] = 65535
        restorer.restore_windows(ArrayWindows(photo), ArrayWindows(result), mask=ArrayWindows(own))
        assert np.array_equal(result, restorer.restore(photo, mask=own).image)

        restorer.detect_windows(ArrayWindows(photo), ArrayWindows(mask), threshold=0.4)
        assert np.array_equal(mask, restorer.detect(photo, threshold=0.4))


def test_windows_that_make_no_photo_are_refused(restorer: Restorer) -> None:
    def restore(photo: np.ndarray, mask: np.ndarray | None = None) -> None:
        result = ArrayWindows(np.zeros_like(photo))
        masked = None if mask is None else ArrayWindows(mask)
        restorer.restore_windows(ArrayWindows(photo), result, mask=masked)

    with pytest.raises(ValueError, match="expected uint8, uint16 or floating values"):
        restore(np.zeros((40, 40, 3), np.int32))
    with pytest.raises(ValueError, match="of 5"):
        restore(np.zeros((40, 40, 5), np.uint8))
    with pytest.raises(ValueError, match="px a side"):
        restore(np.zeros((4, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        restore(np.full((40, 40, 3), 2.0, np.float32))
    with pytest.raises(ValueError, match=r"mask: expected \(40, 40\) to match photo"):
        restore(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 41), np.uint8))


def test_what_does_not_fit_into_memory_goes_to_the_scratch_folder(
    restorer: Restorer,
    in_bands: Bands,
    photo_of: Photos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo = photo_of(140, 90)
    mask = np.full((140, 90), 255, np.uint8)
    mask[60:70] = 0
    with in_bands():
        whole = restorer.restore(photo, mask=mask).image
        monkeypatch.setattr("oldrestore.tiling.restoring.FILL_IN_MEMORY_BYTES", 1000)
        result = np.zeros_like(photo)
        windows = ArrayWindows(photo), ArrayWindows(result)
        restorer.restore_windows(*windows, mask=ArrayWindows(mask), scratch=tmp_path)
        assert np.array_equal(result, whole)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileNotFoundError):
            restorer.restore_windows(
                *windows, mask=ArrayWindows(mask), scratch=tmp_path / "missing"
            )


def test_too_little_memory_is_said_with_what_is_needed(
    restorer: Restorer, in_bands: Bands, photo_of: Photos
) -> None:
    photo = photo_of(100, 60)
    with in_bands(), pytest.raises(ValueError, match=r"max_memory: .* 100 x 60 px needs .* MiB"):
        restorer.restore(photo, max_memory="20MiB")


@pytest.mark.slow
@needs_native
def test_without_a_gpu_to_hold_it_a_large_photo_goes_in_bands(
    shipped: Restorer, photo_of: Photos
) -> None:
    photo = photo_of(1500, 1410)  # above 2 megapixels
    whole = shipped._restore_whole
    shipped._restore_whole = None  # type: ignore[assignment,method-assign]
    try:
        result = shipped.restore(photo, mask=None, max_memory="1GiB")
    finally:
        shipped._restore_whole = whole  # type: ignore[method-assign]
    assert result.image.shape == photo.shape
