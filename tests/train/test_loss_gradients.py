"""The gradient of each published loss, against its formula written out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oldrestore.perceptual import load_backbone
from oldrestore.train import losses
from oldrestore.train.config import MaskSettings, VAESettings
from oldrestore.train.mask import Detection
from oldrestore.train.players import Adversary
from oldrestore.train.presets import preset


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_kl_at_unit_variance_weighs_as_the_published_mean_square() -> None:
    mean = draw(2, 4, 5, 3)
    loss = preset(VAESettings, "paper").kl * losses.kl_to_prior(mean, torch.zeros_like(mean))
    assert loss.item() == pytest.approx(mean.square().mean().item(), rel=1e-12)
    assert same(gradient(loss, mean), 2 * mean / mean.numel())


def test_lsgan_pulls_every_score_to_one() -> None:
    large, small = draw(2, 1, 5, 4), draw(2, 1, 3, 2, seed=1)
    loss = losses.lsgan([large, small], is_real=True)
    for scores in (large, small):  # summed over scales, mean within one
        found = torch.autograd.grad(loss, scores, retain_graph=True)[0]
        assert same(found, 2 * (scores - 1) / scores.numel())


class Scores(nn.Module):
    """A discriminator that takes its input for scores."""

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        return [[x], [2 * x]]


def test_the_discriminator_counts_real_and_fake_by_halves() -> None:
    fake, real = draw(2, 1, 4, 3), draw(2, 1, 4, 3, seed=1)
    adversary = Adversary("discriminator", Scores())  # type: ignore[arg-type]
    adversary.judged = (fake, real)
    loss = adversary({})["discriminator"]
    n = fake.numel()
    of_fake, of_real = torch.autograd.grad(loss, (fake, real))
    assert same(of_fake, 0.5 * (2 * fake + 2 * 2 * (2 * fake)) / n)
    assert same(of_real, 0.5 * (2 * (real - 1) + 2 * 2 * (2 * real - 1)) / n)


def test_feature_matching_weighs_as_in_pix2pixhd() -> None:
    layers, scales = 5, 2  # of the published discriminators: three strided convolutions and two
    fake = [[draw(2, 3, 4, 4, seed=10 * s + i) for i in range(layers)] for s in range(scales)]
    real = [[draw(2, 3, 4, 4, seed=99 + 10 * s + i) for i in range(layers)] for s in range(scales)]
    loss = losses.feature_matching(fake, real)
    total = torch.zeros(())
    for ours, theirs in zip(fake, real, strict=True):
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            total = total + (1 / scales) * (4 / (3 + 1)) * (a - b).abs().mean()
            found = torch.autograd.grad(loss, a, retain_graph=True)[0]
            assert same(found, (a - b).sign() / (scales * a.numel()))
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)


def test_the_perceptual_gradient_is_that_of_five_layers(vgg_weights: Path) -> None:
    backbone = load_backbone(vgg_weights).double()
    restored, clean = (
        torch.tanh(draw(1, 3, 32, 32, seed=seed)).detach().requires_grad_() for seed in (0, 1)
    )
    found = gradient(backbone.perceptual_loss(restored, clean), restored)
    expected = torch.zeros_like(restored)
    x, y = restored, clean.detach()  # as they are: without ImageNet's normalisation
    for index, layer in enumerate(backbone.trunk):
        x, y = layer(x), layer(y)
        if index in (1, 6, 11, 20, 29):
            weight = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}[index]
            sign = weight * (x - y).sign() / x.numel()
            expected += torch.autograd.grad(x, restored, sign.detach(), retain_graph=True)[0]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


def detection(logits: Tensor, label: Tensor, **weights: float) -> Tensor:
    """The one loss of the detector's stage that has a weight, of a network that does nothing."""
    nothing = {"cross_entropy": 0.0, "focal": 0.0, "dice": 0.0}
    settings = replace(MaskSettings(), **(nothing | weights))  # type: ignore[arg-type]
    batch = {
        "degraded": logits,
        "label": label,
        "damaged": torch.zeros_like(label),
        "is_old": torch.zeros(len(label), dtype=torch.bool),
    }
    found = Detection(nn.Identity(), settings)(batch)  # type: ignore[arg-type]
    (loss,) = found.values()
    return loss


@pytest.fixture
def label() -> Tensor:
    return (draw(3, 1, 5, 4, seed=5).detach() > 0.5).double()


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_damaged_pixels_count_more_often_in_cross_entropy(label: Tensor, weight: float) -> None:
    logits = draw(3, 1, 5, 4)
    p = logits.sigmoid()
    found = gradient(detection(logits, label, cross_entropy=1.0, positive_weight=weight), logits)
    assert same(found, (p * (1 - label) - weight * (1 - p) * label) / logits.numel())


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_focal_loss_has_the_gradient_of_its_paper(label: Tensor, gamma: float) -> None:
    logits = draw(3, 1, 5, 4)
    side = 2 * label - 1
    p = (side * logits).sigmoid()  # of the right answer
    loss = detection(logits, label, focal=1.0, focal_gamma=gamma)
    assert loss.item() == pytest.approx((-((1 - p) ** gamma) * p.log()).mean().item(), rel=1e-12)
    expected = side * (1 - p) ** gamma * (gamma * p * p.log() + p - 1) / logits.numel()
    assert same(gradient(loss, logits), expected)


def test_dice_has_the_gradient_of_a_quotient(label: Tensor) -> None:
    logits = draw(3, 1, 5, 4)
    p = logits.sigmoid()
    both, either = (p * label).sum(), (p + label).sum()
    by_p = -(2 * label * (either + 1) - (2 * both + 1)) / (either + 1) ** 2
    found = gradient(detection(logits, label, dice=1.0), logits)
    assert same(found, by_p * p * (1 - p))


@pytest.mark.parametrize("value", [60.0, -60.0])
def test_losses_of_a_certain_detector_stay_finite(value: float) -> None:
    logits = torch.full((1, 1, 2, 2), value, requires_grad=True)
    truth = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    for name in ("cross_entropy", "focal", "dice"):
        loss = detection(logits, truth, **{name: 1.0})
        assert loss.isfinite()
        assert gradient(loss, logits).isfinite().all()
