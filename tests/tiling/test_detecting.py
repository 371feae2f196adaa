"""The detector in bands: what it gives for the whole photo, and what it leaves behind."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.mask import (
    DetectorConfig,
    PaperDetector,
    PaperDetectorConfig,
    ScratchDetector,
)
from oldrestore.tiling import scratch
from oldrestore.tiling.detecting import detected
from oldrestore.tiling.rows import Ledger, Rows

BAND = 32


def _reader(image: Tensor, ledger: Ledger) -> Callable[[], Rows]:
    def make(top: int, bottom: int) -> Tensor:
        return image[:, :, top:bottom].clone()

    return functools.partial(Rows, *image.shape[2:], make, band=BAND, ledger=ledger)


def _found(
    detector: ScratchDetector | PaperDetector,
    image: Tensor,
    ledger: Ledger,
    folder: str | None = None,
) -> Tensor:
    again = _reader(image, ledger)
    with torch.inference_mode():
        rows = detected(detector, again(), again, lambda x: x, torch.float32, scratch=folder)
        cursor, height = rows.cursor(), image.shape[2]
        bands = [cursor.window(y, min(height, y + 40)) for y in range(0, height, 40)]
    return torch.cat(bands, dim=2)


def _photo(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(params=[0, 64], ids=["plain", "refined"])
def detector(request: pytest.FixtureRequest) -> ScratchDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = ScratchDetector(DetectorConfig(refiner=request.param)).eval()
        if detector.refiner is not None:
            torch.nn.init.normal_(detector.refiner.tail.weight, std=0.1)
        return detector


def _whole(detector: ScratchDetector, image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    below, right = (-side % detector.config.align_px for side in (height, width))
    with torch.inference_mode():
        padded = F.pad(image, (0, right, 0, below), mode="replicate")
        return detector.probability(padded)[..., :height, :width]


@pytest.mark.parametrize("size", [(300, 420), (301, 419)])
def test_bands_have_the_bits_of_the_whole(detector: ScratchDetector, size: tuple[int, int]) -> None:
    whole = _whole(detector, _photo(*size))
    assert whole.std() > 0
    assert torch.equal(_found(detector, _photo(*size), Ledger()), whole)


@pytest.mark.parametrize("size", [(16, 16), (70, 61), (513, 97)])
def test_bands_of_narrow_photos_are_the_whole_to_a_rounding(
    detector: ScratchDetector, size: tuple[int, int]
) -> None:
    difference = (_found(detector, _photo(*size), Ledger()) - _whole(detector, _photo(*size))).abs()
    # one of two logits is rounded to float16, and may fall to the other side; a sigmoid's slope
    # is at most 1/4
    with torch.inference_mode():
        largest = float(detector(_photo(64, 64)).abs().max()) + 1
    assert difference.max() <= largest * 2.0**-10 / 2 / 4


def test_nothing_is_kept_beyond_the_last_row(
    detector: ScratchDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    make = tempfile.TemporaryFile

    def watched(*args: object, dir: str | None) -> object:  # noqa: A002 (its name)
        files.append(make(*args, dir=dir))
        return files[-1]

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", watched)
    ledger = Ledger()
    _found(detector, _photo(96, 64), ledger, str(tmp_path))
    assert ledger.peak > 0
    assert ledger.held == 0
    assert [file.closed for file in files] == [True]
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_mirror_images_logits_is_said(
    detector: ScratchDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _start: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=f"of {2 * 96 * 64} bytes in .*: make room"):
        _found(detector, _photo(96, 64), Ledger())


@pytest.mark.parametrize("size", [(300, 420), (70, 64)])
def test_the_published_detector_sees_the_same_small_photo(size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = PaperDetector(PaperDetectorConfig(4, 2)).eval()
    image = _photo(*size)
    with torch.inference_mode():
        found = _found(detector, image, Ledger())
        assert (found - detector.probability(image)).abs().max() < 1e-5
    assert F.avg_pool2d(found, 8).std() > 0
