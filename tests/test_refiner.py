from importlib import resources

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.mask import DetectorConfig, ScratchDetector, agreed
from oldrestore.ops import static_control_flow
from oldrestore.refiner import SUSPICION, Refiner, over_cells, twice


@pytest.fixture
def detector() -> ScratchDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = ScratchDetector(DetectorConfig((4, 6, 8), (1, 1, 1), refiner=8)).eval()
        assert detector.refiner is not None
        torch.nn.init.normal_(detector.refiner.tail.weight)
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


def test_it_is_what_its_layers_give_everywhere(detector: ScratchDetector) -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 3, 48, 64, generator=generator) * 2 - 1
    logits, both = torch.randn(2, 2, 1, 48, 64, generator=generator) * 4 + SUSPICION
    refiner = detector.refiner
    assert refiner is not None
    with torch.inference_mode():
        found = refiner(image, logits, logits.flip(-1), both)
        x: Tensor = refiner.see(F.pixel_unshuffle(torch.cat([logits, logits], dim=1), 2))
        for index, (take, feature) in enumerate(
            zip(refiner.take, refiner.trunk(image), strict=True)
        ):
            wide = take(feature)
            for _ in range(index):
                wide = F.interpolate(wide, scale_factor=2, mode="bilinear", align_corners=False)
            x = x + wide
        change = F.pixel_shuffle(refiner.tail(F.relu(refiner.hidden(F.relu(x)))), 2)
        expected = torch.where(both > SUSPICION, both + change, both)
        with static_control_flow():  # no cell is left out
            everywhere = refiner(image, logits, logits.flip(-1), both)
    assert change.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (everywhere - expected).abs().max() < 1e-4 * expected.abs().max()


def test_nothing_suspect_is_nothing_to_do(detector: ScratchDetector) -> None:
    image, logits = torch.zeros(1, 3, 32, 32), torch.full((1, 1, 32, 32), SUSPICION - 1)
    assert detector.refiner is not None
    with torch.inference_mode():
        assert torch.equal(detector.refiner(image, logits, logits, logits), logits)


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


def test_the_notice_for_the_trunks_weights_comes_with_the_package() -> None:
    notice = resources.files("oldrestore") / "weights" / "LICENSE-torchvision"
    assert "Copyright (c) Soumith Chintala 2016" in notice.read_text(encoding="utf-8")
