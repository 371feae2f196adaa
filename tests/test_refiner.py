import pytest
import torch
from torch.nn import functional as F

from oldrestore.mask import DetectorConfig, ScratchDetector, agreed
from oldrestore.refiner import SUSPICION, Refiner, over_cells, twice


@pytest.fixture
def detector() -> ScratchDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = ScratchDetector(DetectorConfig((4, 6, 8), (1, 1, 1), refiner=8)).eval()
        assert detector.refiner is not None
        torch.nn.init.normal_(detector.refiner.tail[0].weight)
    return detector.requires_grad_(False)


def test_filters_of_stride_2_are_the_same_over_cells() -> None:
    image, weight = torch.rand(1, 3, 12, 16), torch.rand(5, 3, 3, 3)
    expected = F.conv2d(image, weight, stride=2, padding=1)
    found = F.conv2d(F.pixel_unshuffle(image, 2), over_cells(weight), padding=1)
    assert (found - expected).abs().max() < 1e-5


def test_twice_is_bilinear() -> None:
    x = torch.rand(1, 2, 5, 7)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert (twice(x) - expected).abs().max() < 1e-6


def test_only_what_is_suspect_is_judged(detector: ScratchDetector) -> None:
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        logits, of_mirrored = (detector.at_two_scales(x) for x in (image, image.flip(-1)))
        both = agreed(logits, of_mirrored) * 3 + SUSPICION  # some above, some below
        assert detector.refiner is not None
        refined = detector.refiner(image, logits, of_mirrored, both)
    suspect = both > SUSPICION
    assert 0 < suspect.float().mean() < 1
    assert torch.equal(refined[~suspect], both[~suspect])
    assert (refined - both)[suspect].abs().mean() > 1e-3


def test_an_untaught_refiner_changes_nothing() -> None:
    detector = ScratchDetector(DetectorConfig((4, 8), (1, 1), refiner=4)).eval()
    plain = ScratchDetector(DetectorConfig((4, 8), (1, 1))).eval()
    plain.load_state_dict(detector.state_dict(), strict=False)
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(detector.probability(image), plain.probability(image))


def test_photos_are_padded_to_the_trunks_cells_too() -> None:
    assert DetectorConfig((4, 8), (1, 1)).align_px == 8
    assert DetectorConfig((4, 8), (1, 1), refiner=4).align_px == 16
    assert DetectorConfig(refiner=4).align_px == 32


def test_the_trunk_is_not_taught() -> None:
    refiner = Refiner(4)
    learnt = {name for name, x in refiner.named_parameters() if x.requires_grad}
    assert learnt
    assert not any(name.startswith("trunk.") for name in learnt)
