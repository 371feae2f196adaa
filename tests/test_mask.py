import pytest
import torch
from torch.nn import functional as F

from oldrestore.mask import COARSE_SHARE, DetectorConfig, ScratchDetector

SMALL = DetectorConfig(channels=(4, 6, 8), blocks=(1, 1, 1))


@pytest.fixture
def detector() -> ScratchDetector:
    torch.manual_seed(0)
    return ScratchDetector(SMALL).eval()


def test_probabilities_have_the_photos_size(detector: ScratchDetector) -> None:
    probability = detector.probability(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert probability.shape == (2, 1, 32, 48)
    assert probability.min() > 0
    assert probability.max() < 1


def test_nothing_beyond_the_context_matters(detector: ScratchDetector) -> None:
    image = torch.rand(1, 3, 8, 256)
    other = image.clone()
    other[..., 0] += 1
    changed = (detector(image) != detector(other)).any(dim=1)[0].nonzero()[:, 1].max()
    assert changed <= SMALL.context_px + SMALL.cell_px
    assert changed > SMALL.context_px // 2


def test_photos_are_padded_to_the_coarsest_cell_of_the_small_copy() -> None:
    assert SMALL.align_px == 16
    assert DetectorConfig().align_px == 32


@torch.no_grad()
def test_a_photo_is_judged_at_its_own_scale_and_at_half_of_it(detector: ScratchDetector) -> None:
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    small = F.interpolate(image, scale_factor=0.5, mode="area")
    coarse = F.interpolate(detector(small), scale_factor=2, mode="bilinear", align_corners=False)
    expected = COARSE_SHARE * coarse + (1 - COARSE_SHARE) * detector(image)
    assert (detector.at_two_scales(image) - expected).abs().max() < 1e-6


@torch.no_grad()
def test_a_mirror_image_is_judged_as_the_photo(detector: ScratchDetector) -> None:
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    found = detector.probability(image)
    assert (found - found.flip(-1)).abs().max() > 1e-3
    mirrored = detector.probability(image.flip(-1)).flip(-1)
    # of the two logits, one is rounded to float16 each time; a sigmoid's slope is at most 1/4
    logits = detector.at_two_scales(image), detector.at_two_scales(image.flip(-1))
    largest = max(float(x.abs().max()) for x in logits)
    assert (mirrored - found).abs().max() <= largest * 2.0**-11 / 4
