import math

import pytest
import torch
from torch import Tensor

from oldrestore.train import losses


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_kl_is_that_of_two_gaussians(generator: torch.Generator) -> None:
    mean = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    logvar = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior).mean()
    assert losses.kl_to_prior(mean, logvar).item() == pytest.approx(expected.item(), rel=1e-12)


def test_pixel_loss_weighs_holes() -> None:
    restored, clean = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert losses.pixel_l1(restored, clean, mask, 4.0).item() == pytest.approx((5 + 3) / 4)


def test_latent_loss_is_in_deviations_of_the_target(generator: torch.Generator) -> None:
    target = torch.randn(2, 4, 8, 8, generator=generator)
    mapped = target + 0.5
    scaled = losses.latent_l1(10 * mapped, 10 * target)
    assert losses.latent_l1(mapped, target).item() == pytest.approx(scaled.item(), rel=1e-5)
    direct = (0.5 / target.std(dim=(2, 3))).mean()
    assert losses.latent_l1(mapped, target).item() == pytest.approx(direct.item(), rel=1e-5)


def test_lsgan_sums_over_scales() -> None:
    scores = [torch.full((2, 1, 3, 3), 0.25), torch.full((2, 1, 2, 2), 0.5)]
    assert losses.lsgan(scores, is_real=True).item() == pytest.approx(0.75**2 + 0.5**2)
    assert losses.lsgan(scores, is_real=False).item() == pytest.approx(0.25**2 + 0.5**2)


def test_feature_matching_leaves_out_the_scores_and_moves_only_the_fake() -> None:
    fake = [[torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 1, requires_grad=True)]]
    real = [[torch.full((1, 2), 2.0, requires_grad=True), torch.full((1, 1), 9.0)]]
    loss = losses.feature_matching(fake, real)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 4 * 2  # one layer beside the score, counted four times
    assert fake[0][0].grad is not None
    assert fake[0][1].grad is None
    assert real[0][0].grad is None


def test_dice_is_zero_for_a_certain_right_answer_and_one_for_a_wrong_one() -> None:
    label = torch.zeros(2, 1, 8, 8)
    label[:, :, :4] = 1
    certain = (label * 2 - 1) * 50
    assert losses.dice(certain, label).item() == pytest.approx(0, abs=1e-6)
    assert losses.dice(-certain, label).item() == pytest.approx(1, abs=0.02)


def test_dice_counts_pixels_not_samples() -> None:
    label = torch.zeros(2, 1, 8, 8)
    label[0] = 1
    wrong = (label * 2 - 1) * 50
    wrong[1, 0, 0, 0] = 50  # one pixel of the undamaged sample: a loss of 1/2, sample by sample
    assert losses.dice(wrong, label).item() == pytest.approx(1 - 129 / 130, abs=1e-6)


def test_tone_of_a_toned_photo_is_judged_by_its_brightness() -> None:
    corrected = torch.zeros(2, 3, 2, 2)
    clean = corrected + torch.tensor([0.1, 0.0, -0.1])[None, :, None, None]
    toned = torch.tensor([[True], [False]])
    luma_error = (0.1 * losses.LUMA[0] - 0.1 * losses.LUMA[2]) ** 2
    errors = [math.log(error + losses.TONE_ERROR_FLOOR) for error in (luma_error, 0.02 / 3)]
    found = losses.tone_log_error(corrected, clean, toned).item()
    assert found == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_psnr_is_of_images_from_minus_one_to_one() -> None:
    clean = torch.zeros(2, 3, 4, 4)
    restored = clean.clone()
    restored[0] += 0.2  # a tenth of the range
    restored[1] += 0.02
    assert losses.psnr(restored, clean).tolist() == pytest.approx([20, 40], abs=1e-3)


def _all_losses(x: Tensor, y: Tensor) -> list[Tensor]:
    mask = (y[:, :1] > 0).to(x.dtype)
    return [
        losses.kl_to_prior(x, y),
        losses.pixel_l1(x, y, mask, 3.0),
        losses.latent_l1(x, y),
        losses.lsgan([x, y], is_real=True),
        losses.feature_matching([[x, x * 2, x]], [[y, y, y]]),
        losses.focal(x[:, :1], mask, 2.0),
    ]


@pytest.mark.parametrize("which", range(6))
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(
    which: int, generator: torch.Generator
) -> None:
    # what makes data-parallel training equal to training on one device
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    (whole,) = torch.autograd.grad(_all_losses(x, y)[which], x)
    parts = [
        torch.autograd.grad(_all_losses(x[i : i + 1], y[i : i + 1])[which], x)[0] for i in (0, 1)
    ]
    assert torch.allclose(whole, (parts[0] + parts[1]) / 2, rtol=1e-12, atol=1e-15)
