import pytest
import torch
from torch import Tensor

from oldrestore.fill import FILL_CONTEXT_PX, fill_holes


def _photo(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([0.8 * x, 0.5 * y, 0.3 * x * y])[None]


def _hole(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def test_undamaged_pixels_are_untouched() -> None:
    image = torch.rand(2, 3, 70, 45) * 2 - 1
    mask = (torch.rand(2, 1, 70, 45) < 0.3).float()
    filled = fill_holes(image, mask)
    intact = (mask == 0).expand_as(image)
    assert torch.equal(filled[intact], image[intact])


def test_what_a_hole_shows_does_not_matter() -> None:
    image, mask = _photo(96, 80), _hole(96, 80, 30, 20, 24)
    other = torch.where(mask > 0, torch.ones_like(image), image)
    assert torch.equal(fill_holes(image, mask), fill_holes(other, mask))


def test_a_smooth_photo_is_continued() -> None:
    image, mask = _photo(128, 128), _hole(128, 128, 40, 50, 32)
    error = (fill_holes(image, mask) - image).abs().max()
    assert error < 0.12  # against a range of 0.8 over the photo; a grey hole errs by 0.4


def test_a_flat_photo_stays_flat() -> None:
    image = torch.full((1, 3, 100, 60), 0.25)
    filled = fill_holes(image, _hole(100, 60, 0, 0, 50))
    assert torch.allclose(filled, image, atol=1e-6)


def test_no_hole_gives_the_image_itself() -> None:
    image = _photo(32, 32)
    assert torch.equal(fill_holes(image, torch.zeros(1, 1, 32, 32)), image)


def test_a_photo_that_is_all_hole_becomes_grey() -> None:
    filled = fill_holes(torch.ones(1, 3, 20, 30), torch.ones(1, 1, 20, 30))
    assert torch.equal(filled, torch.zeros(1, 3, 20, 30))


def test_a_grey_mask_mixes_fill_and_image() -> None:
    image = torch.full((1, 3, 32, 32), -0.5)
    image[..., 10:20, 10:20] = 1
    mask = 0.25 * _hole(32, 32, 10, 10, 10)
    filled = fill_holes(image, mask)
    assert torch.allclose(
        filled[..., 10:20, 10:20], torch.tensor(0.75 * 1 + 0.25 * -0.5), atol=1e-6
    )


def test_nothing_beyond_the_context_matters() -> None:
    width = FILL_CONTEXT_PX + 192
    image = torch.rand(1, 3, 64, width) * 2 - 1
    mask = torch.zeros(1, 1, 64, width)
    mask[..., 64:] = (torch.rand(1, 1, 64, width - 64) < 0.9).float()
    mask[..., 100 : width - 20] = 1  # one long hole: colours travel as far as they can
    other = image.clone()
    other[..., width - 20 :] += 1
    changed = (fill_holes(image, mask) != fill_holes(other, mask)).any(dim=1).nonzero()[:, 2]
    assert changed.min() >= width - 20 - FILL_CONTEXT_PX
    assert changed.min() < width - 20 - FILL_CONTEXT_PX // 2  # and the bound is no mere guess


def test_another_shape_of_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask: expected \(1, 1, 32, 32\) to match image"):
        fill_holes(_photo(32, 32), torch.zeros(1, 1, 32, 31))
