"""The published networks in our pipeline: any size, any batch, any backend, the same picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore.attention import GlobalNonlocal, PatchAttention
from oldrestore.config import PaperConfig
from oldrestore.fill import paint_white
from oldrestore.mapping import VARIANTS
from oldrestore.mask import PaperDetector, PaperDetectorConfig
from oldrestore.pipeline import Restorer

SIZES = [(8, 8), (9, 11), (70, 33), (33, 70), (101, 64)]  # tiny, odd, portrait, landscape
MakeRestorer = Callable[..., Restorer]


@pytest.fixture(scope="module")
def make(filled: Callable[..., nn.Module], narrow: PaperConfig) -> MakeRestorer:
    """(variant, backend=None) -> a restorer of narrow networks with the formula's weights."""

    def restorer(variant: str, backend: str | None = None) -> Restorer:
        config = replace(narrow, mapping=replace(narrow.mapping, variant=variant))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = Restorer(config, device="cpu", backend=backend)
            for network in made.networks().values():
                for parameter in network.parameters():
                    if parameter.ndim == 4:  # the published initial weights leave all near zero
                        nn.init.kaiming_normal_(parameter)
        return made

    return restorer


def _image(height: int, width: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def _mask(height: int, width: int, batch: int = 1) -> Tensor:
    """A line; of the tiniest photo more than one cell stays intact.

    (Of a single intact cell every cell receives the same, and the norms that follow divide rounding
    errors by themselves, in the published code too.)
    """
    mask = torch.zeros(batch, 1, height, width)
    mask[..., height // 3 : height // 3 + max(1, height // 16), : width * 2 // 3] = 1
    mask[-1, :, height // 2 : height * 3 // 4, width // 2] = 1
    return mask


def _rounded_anew(image: Tensor, count: int = 8) -> list[Tensor]:
    """The image, and others that differ from it by a rounding in each value."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(image.dtype).eps
    signs = [torch.randint(0, 2, image.shape, generator=generator) * 2 - 1 for _ in range(count)]
    return [image, *(image * (1 + eps * sign) for sign in signs)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back_the_same_from_every_backend(
    variant: str, size: tuple[int, int], make: MakeRestorer
) -> None:
    image, mask = _image(*size), _mask(*size)
    restored = make(variant).restore_tensor(image, mask)
    assert restored.shape == image.shape
    assert restored.isfinite().all()
    assert restored.std() > 0.05
    reference = make(variant, "reference")
    # Norms over a few cells multiply rounding, each time by another chance: so what is allowed is
    # what the reference itself errs by on the same photo, rounded in several ways.
    in_single = [reference.restore_tensor(like, mask) for like in _rounded_anew(image)]
    reference.dtype = torch.float64
    for network in reference.networks().values():
        network.double()
    exact = reference.restore_tensor(image, mask)
    errors = [float((single - exact).abs().max()) for single in in_single]
    allowed = 4 * max(errors) + 1e-4  # a fast convolution errs about twice as much
    assert allowed < 0.2  # a wrong way errs by more
    assert (restored - exact).abs().max() <= allowed


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_photos_one_by_one(variant: str, make: MakeRestorer) -> None:
    restorer = make(variant, "reference")
    image, mask = _image(36, 44, batch=3), _mask(36, 44, batch=3)
    mask[1] = 0
    together = restorer.restore_tensor(image, mask)
    for index in range(3):
        one = slice(index, index + 1)
        alone = restorer.restore_tensor(image[one], mask[one])
        assert (together[one] - alone).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_change_nothing_but_rounding(variant: str, make: MakeRestorer) -> None:
    image, mask = _image(64, 64), _mask(64, 64)
    one = make(variant).restore_tensor(image, mask)
    torch.set_num_threads(2)
    assert (make(variant).restore_tensor(image, mask) - one).abs().max() <= 1e-4


def test_the_ends_of_the_published_detector(filled: Callable[..., nn.Module]) -> None:
    detector = filled(PaperDetector(PaperDetectorConfig(channels=4)))
    for size in ((8, 8), (300, 200), (16, 2000)):
        probability = detector.probability(_image(*size))
        assert probability.shape == (1, 1, *size)
        assert ((probability >= 0) & (probability <= 1)).all()


def test_the_published_detector_looks_at_256_px(filled: Callable[..., nn.Module]) -> None:
    detector = filled(PaperDetector(PaperDetectorConfig(channels=4)))
    seen = []
    detector.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    for size in ((512, 1024), (600, 400), (40, 30)):
        detector.probability(_image(*size))
    assert [tuple(size) for size in seen] == [(256, 512), (384, 256), (336, 256)]


def test_grey_and_colour_of_the_same_brightness_are_judged_alike(
    filled: Callable[..., nn.Module],
) -> None:
    detector = filled(PaperDetector(PaperDetectorConfig(channels=4)))
    colour = _image(32, 32)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    difference = detector(colour) - detector(grey.expand(-1, 3, -1, -1))
    assert difference.abs().max() <= 1e-5


def test_holes_are_painted_white_and_nothing_else() -> None:
    image, mask = _image(20, 20), _mask(20, 20)
    painted = paint_white(image, mask)
    hole = mask.bool().expand_as(image)
    assert (painted[hole] == 1).all()
    assert torch.equal(painted[~hole], image[~hole])


def test_an_intact_cell_of_the_nonlocal_block_is_untouched() -> None:
    torch.manual_seed(0)
    block, features = GlobalNonlocal(8), torch.randn(2, 8, 9, 12)
    mask = torch.zeros(2, 1, 36, 48)
    assert torch.equal(block(features, mask), features)
    mask[0, :, 8:16, 8:16] = 1
    fused = block(features, mask)
    assert torch.equal(fused[1], features[1])
    changed = (fused[0] != features[0]).any(dim=0)
    assert changed[2:4, 2:4].all()
    changed[1:4, 1:4] = False
    assert not changed.any()


def test_a_photo_that_is_one_hole_gives_no_nan() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 8, 9, 12, requires_grad=True)
    fused = GlobalNonlocal(8)(features, torch.ones(1, 1, 36, 48))
    fused.square().sum().backward()
    assert fused.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_sides_that_no_patch_divides_get_no_empty_band() -> None:
    torch.manual_seed(0)
    block, features = PatchAttention(8, 8), torch.randn(1, 8, 13, 21)
    fused = block(features, torch.zeros(1, 1, 52, 84))
    empty = torch.zeros(1, 1, 13, 21)
    expected = block.combine(torch.cat([features, block.block(features), empty], dim=1))
    assert torch.equal(fused, expected)


def test_other_tensors_of_the_vaes_may_be_in_the_file(make: MakeRestorer, tmp_path: Path) -> None:
    restorer = make("scratch")
    path = tmp_path / "weights.safetensors"
    restorer.save(path, {})
    photo = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    again = Restorer.load(path, device="cpu")
    assert again.config == restorer.config
    assert again.context_px is None
    assert again.align_px == 4
    assert again.restore(photo).image.shape == photo.shape
