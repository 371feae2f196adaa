import pytest
import torch
from torch import Tensor

from oldrestore.tone import (
    ToneConfig,
    ToneCurve,
    ToneHead,
    apply_tone,
    is_toned,
    thumbnail,
)


def _curve(
    black: float = 0.0, white: float = 1.0, gamma: float = 1.0, saturation: float = 1.0
) -> ToneCurve:
    def three(x: float) -> Tensor:
        return torch.full((1, 3), x)

    one = torch.ones(1, 1)
    return ToneCurve(three(black), three(white), three(gamma), saturation * one, one)


def test_a_fresh_head_is_the_identity() -> None:
    image = torch.rand(2, 3, 64, 64) * 1.98 - 0.99
    curve = ToneHead(ToneConfig())(image)
    assert torch.allclose(apply_tone(image, curve), image, atol=1e-3)


def test_levels_undo_lost_contrast() -> None:
    clean = torch.rand(1, 3, 8, 8) * 2 - 1
    faded = ((clean + 1) / 2 * 0.5 + 0.2) * 2 - 1  # to 0.2 .. 0.7 of the range
    assert torch.allclose(apply_tone(faded, _curve(black=0.2, white=0.7)), clean, atol=1e-3)


def test_gamma_and_saturation_are_those_of_the_docstring() -> None:
    image = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None] * 2 - 1
    value = torch.tensor([0.2, 0.4, 0.6]) ** 2
    luma = (value * torch.tensor([0.299, 0.587, 0.114])).sum()
    expected = (luma + 0.5 * (value - luma)) * 2 - 1
    found = apply_tone(image, _curve(gamma=2, saturation=0.5))
    assert torch.allclose(found[0, :, 0, 0], expected, atol=1e-6)


def test_strength_zero_is_the_identity() -> None:
    image = torch.rand(1, 3, 8, 8) * 1.98 - 0.99
    strong = _curve(black=0.2, white=0.7, gamma=1.5, saturation=2)
    assert torch.allclose(apply_tone(image, strong, 0.0), image, atol=1e-6)


def test_strength_is_monotonous() -> None:
    image = torch.full((1, 3, 4, 4), 0.2)
    strong = _curve(gamma=1.6)
    values = [apply_tone(image, strong, s).mean().item() for s in (0, 0.25, 0.5, 0.75, 1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_toned_photos_are_told_from_coloured_ones() -> None:
    grey = torch.rand(1, 1, 64, 64).expand(1, 3, 64, 64)
    sepia = torch.cat([grey[:, :1] ** 0.8, grey[:, :1], grey[:, :1] ** 1.3], dim=1)
    colour = torch.rand(1, 3, 64, 64)
    photos = torch.cat([grey, sepia, colour]) * 2 - 1
    assert is_toned(photos)[:, 0].tolist() == [True, True, False]


def test_a_flat_photo_counts_as_toned() -> None:
    assert is_toned(torch.full((1, 3, 64, 64), 0.3)).all()


def test_grey_stays_grey_under_the_common_curve() -> None:
    torch.manual_seed(0)
    head = ToneHead(ToneConfig())
    torch.nn.init.normal_(head.to_curve.weight)
    grey = (torch.rand(1, 1, 64, 64) * 2 - 1).expand(1, 3, 64, 64)
    own = head(grey)
    assert own.black.std() > 0  # or the test would show nothing
    corrected = apply_tone(grey, own.common(is_toned(grey)))
    assert torch.allclose(corrected[:, 0], corrected[:, 2], atol=1e-6)


def test_the_small_copy_is_an_area_mean() -> None:
    image = torch.rand(1, 3, 128, 192)
    assert thumbnail(image)[0, :, 0, 0].tolist() == pytest.approx(
        image[0, :, :2, :3].mean(dim=(1, 2)).tolist(), abs=1e-6
    )
