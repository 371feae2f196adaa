"""Tone steps: numbers worked out by hand, and no change of detail."""

from collections.abc import Callable

import numpy as np
import pytest

from oldrestore.degradation import fading
from oldrestore.degradation.fields import Array

GREY = fading.Grey((0.2, 0.5, 0.3))
POINTWISE: list[tuple[Callable[..., Array], object]] = [
    (fading.make_grey, GREY),
    (fading.lose_contrast, fading.ContrastLoss(0.1, 0.9, 1.2)),
    (fading.cast_color, fading.ColorCast((0.1, 0.0, 0.05), (0.8, 0.9, 0.7), 0.6)),
    (fading.tone, fading.Toning((0.8, 1.0, 1.3))),
    (fading.yellow, fading.Yellowing((1.0, 0.9, 0.7))),
]
FIELDS: list[tuple[Callable[..., Array], object]] = [
    (fading.light_unevenly, fading.UnevenLight(0.3, 60.0, 5)),
    (fading.vignette, fading.Vignette(0.4, (0.5, 0.5), 80.0)),
    (fading.vignette, fading.Vignette(-0.4, (0.2, 1.3), 80.0)),
]


def random_picture() -> Array:
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, 40, 50)).astype(np.float32)


def test_contrast_loss_lifts_black_and_dulls_white() -> None:
    picture = np.array([-1.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 3).repeat(3, axis=1)
    faded = fading.lose_contrast(picture, fading.ContrastLoss(0.2, 0.8, 2.0))
    # on [0, 1]: 0.2, 0.2 + 0.6 * 0.25, 0.8
    np.testing.assert_allclose(faded[0, 0, 0], [-0.6, -0.3, 0.6], rtol=0, atol=1e-6)


def test_grey_is_the_weighted_sum() -> None:
    picture = np.array([0.5, -0.5, 1.0], np.float32).reshape(1, 3, 1, 1)
    grey = fading.make_grey(picture, GREY)
    np.testing.assert_allclose(grey.ravel(), 0.1 - 0.25 + 0.3, rtol=0, atol=1e-6)


def test_toning_keeps_black_and_white_and_warms_the_middle() -> None:
    picture = np.array([-1.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 3).repeat(3, axis=1)
    toned = fading.tone(picture, fading.Toning((0.8, 1.0, 1.3)))[0, :, 0]
    assert np.array_equal(toned[:, [0, 2]], np.array([[-1.0, 1.0]] * 3))
    assert toned[0, 1] > toned[1, 1] > toned[2, 1]


def test_color_cast_without_saturation_is_grey_before_it_is_cast() -> None:
    cast = fading.ColorCast((0.0, 0.1, 0.2), (1.0, 0.9, 0.8), 0.0)
    unit = (fading.cast_color(random_picture(), cast) + 1) / 2
    grey = unit[:, 0]
    np.testing.assert_allclose(unit[:, 1], 0.1 + 0.9 * grey, rtol=0, atol=1e-6)
    np.testing.assert_allclose(unit[:, 2], 0.2 + 0.8 * grey, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("apply", "step"), POINTWISE)
def test_curves_treat_every_pixel_alike(apply: Callable[..., Array], step: object) -> None:
    picture = random_picture()
    order = np.random.default_rng(1).permutation(40 * 50)
    shuffled = picture.reshape(1, 3, -1)[..., order].reshape(picture.shape)
    expected = apply(picture, step).reshape(1, 3, -1)[..., order].reshape(picture.shape)
    np.testing.assert_allclose(apply(shuffled, step), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("apply", "step"), FIELDS)
def test_light_adds_no_detail(apply: Callable[..., Array], step: object) -> None:
    lit = apply(np.zeros((1, 3, 96, 128), np.float32), step)
    assert float(lit.std()) > 0.01
    # a field that needs some 60 px for its 0.6 moves by a few hundredths a pixel
    for axis in (-2, -1):
        assert np.abs(np.diff(lit, axis=axis)).max() < 0.03
    assert np.array_equal(lit[:, 0], lit[:, 2])


@pytest.mark.parametrize(("apply", "step"), POINTWISE + FIELDS)
def test_tone_stays_in_range_and_type(apply: Callable[..., Array], step: object) -> None:
    toned = apply(random_picture(), step)
    assert toned.dtype == np.float32
    assert toned.shape == (1, 3, 40, 50)
    assert toned.min() >= -1
    assert toned.max() <= 1


def test_vignette_darkens_or_bleaches_away_from_its_centre() -> None:
    grey = np.zeros((1, 3, 41, 41), np.float32)
    dark = fading.vignette(grey, fading.Vignette(0.4, (0.5, 0.5), 20.0))[0, 0]
    light = fading.vignette(grey, fading.Vignette(-0.4, (0.5, 0.5), 20.0))[0, 0]
    assert abs(float(dark[20, 20])) < 1e-2
    assert dark[0, 0] < -0.3
    assert light[0, 0] > 0.3
