"""Blur, noise, grain, resampling and JPEG do what their parameters say."""

from collections.abc import Callable

import numpy as np
import pytest

from oldrestore.degradation import unstructured as u
from oldrestore.degradation.fields import Array

STEPS: list[tuple[Callable[..., Array], object]] = [
    (u.add_blur, u.Blur("gaussian", 1.5)),
    (u.add_blur, u.Blur("gaussian", 2.0, 0.4, 30.0)),
    (u.add_blur, u.Blur("motion", 1.5, angle_deg=70.0)),
    (u.add_blur, u.Blur("defocus", 1.0)),
    (u.add_gaussian_noise, u.GaussianNoise(0.2, False, 7)),
    (u.add_speckle_noise, u.SpeckleNoise(0.2, True, 7)),
    (u.add_salt_and_pepper, u.SaltAndPepper(0.01, 0.5, False, 7)),
    (u.add_film_grain, u.FilmGrain(0.15, 0.8, 7)),
    (u.resample, u.Resampling(2.3, "bicubic", "nearest")),
    (u.compress_jpeg, u.Jpeg(40, True)),
]


def grey(level: float, height: int = 128, width: int = 128) -> Array:
    return np.full((1, 3, height, width), level, np.float32)


@pytest.mark.parametrize(("apply", "step"), STEPS)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (33, 64)])
def test_every_size_stays_in_range(
    apply: Callable[..., Array], step: object, size: tuple[int, int]
) -> None:
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    before = picture.copy()
    damaged = apply(picture, step)
    assert damaged.shape == picture.shape
    assert damaged.dtype == np.float32
    assert damaged.min() >= -1
    assert damaged.max() <= 1
    assert np.array_equal(damaged, apply(picture, step))
    assert np.array_equal(picture, before)


@pytest.mark.parametrize(("apply", "step"), STEPS)
def test_two_versions_of_a_photo_get_the_same_noise(
    apply: Callable[..., Array], step: object
) -> None:
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, 20, 24)).astype(np.float32)
    both = apply(picture.repeat(2, axis=0), step)
    assert np.array_equal(both[0], both[1])
    assert np.array_equal(both[:1], apply(picture, step))


@pytest.mark.parametrize(
    "blur",
    [
        u.Blur("gaussian", 1.5),
        u.Blur("gaussian", 2.0, 0.4, 30.0),
        u.Blur("motion", 1.5, angle_deg=70.0),
        u.Blur("defocus", 1.0),
    ],
)
def test_psf_keeps_light(blur: u.Blur) -> None:
    dot = grey(-1.0, 41, 41)
    dot[..., 20, 20] = 1.0
    spread = u.add_blur(dot, blur)
    assert float((spread[0, 0] + 1).sum()) == pytest.approx(2.0, abs=1e-3)
    assert spread[0, 0, 20, 20] < 0.5
    np.testing.assert_allclose(u.add_blur(grey(0.3), blur), 0.3, rtol=0, atol=1e-5)


def test_gaussian_blur_has_the_sigma_asked_for() -> None:
    dot = grey(-1.0, 41, 41)
    dot[..., 20, 20] = 1.0
    light = (u.add_blur(dot, u.Blur("gaussian", 1.5))[0, 0] + 1).sum(axis=0) / 2
    variance = float((light * (np.arange(41) - 20) ** 2).sum())
    # cut at 3 sigma, a Gaussian has 97.3 % of its variance
    assert variance == pytest.approx(1.5**2, rel=0.05)


def test_motion_blurs_along_its_angle() -> None:
    dot = grey(-1.0, 41, 41)
    dot[..., 20, 20] = 1.0
    light = u.add_blur(dot, u.Blur("motion", 2.0, angle_deg=0.0))[0, 0] + 1
    assert light[20, 17] > 0.1
    assert light[17, 20] == 0


@pytest.mark.parametrize("is_grey", [True, False])
def test_gaussian_noise_has_its_deviation(is_grey: bool) -> None:
    noise = u.add_gaussian_noise(grey(0.0), u.GaussianNoise(0.1, is_grey, 5))
    # of 128^2 independent values the deviation is known to 1 / sqrt(2 * 128^2) = 0.6 %
    assert float(noise[0, 0].std()) == pytest.approx(0.1, rel=0.03)
    assert np.array_equal(noise[0, 0], noise[0, 1]) == is_grey


def test_speckle_grows_with_the_light() -> None:
    speckle = u.SpeckleNoise(0.1, True, 5)
    assert np.array_equal(u.add_speckle_noise(grey(-1.0), speckle), grey(-1.0))
    assert float(u.add_speckle_noise(grey(0.0), speckle).std()) == pytest.approx(0.05, rel=0.03)


def test_salt_and_pepper_loses_the_share_asked_for() -> None:
    lost = u.add_salt_and_pepper(grey(0.0), u.SaltAndPepper(0.1, 0.25, True, 5))[0, 0]
    # 1638 of 16384 pixels are known to some 40, the white fourth to some 20
    assert float((lost != 0).mean()) == pytest.approx(0.1, abs=0.01)
    assert float((lost == 1).mean()) == pytest.approx(0.025, abs=0.005)


def test_grain_is_correlated_and_strongest_in_middle_tones() -> None:
    grain = u.FilmGrain(0.1, 0.8, 5)
    middle = u.add_film_grain(grey(0.0), grain)[0, 0]
    bright = u.add_film_grain(grey(0.8), grain)[0, 0]
    assert float(middle.std()) == pytest.approx(0.1, rel=0.1)
    assert bright.std() < 0.7 * middle.std()
    neighbours = np.corrcoef(middle[:, :-1].ravel(), middle[:, 1:].ravel())[0, 1]
    assert neighbours > 0.4


def test_resampling_loses_fine_detail_and_keeps_the_mean() -> None:
    stripes = grey(0.0)
    stripes[..., ::2], stripes[..., 1::2] = 0.5, -0.5
    coarse = u.resample(stripes, u.Resampling(2.0, "bicubic", "bicubic"))
    assert float(coarse.std()) < 0.1
    assert abs(float(coarse.mean())) < 0.01


def test_jpeg_error_grows_as_quality_falls() -> None:
    picture = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3, 64, 64)).astype(np.float32)
    errors = [
        float(np.abs(u.compress_jpeg(picture, u.Jpeg(quality, False)) - picture).mean())
        for quality in (95, 60, 30)
    ]
    assert errors[0] < errors[1] < errors[2]
    # an even grey of a whole level of 8 bits passes unchanged
    even = grey(100 / 127.5 - 1)
    np.testing.assert_allclose(u.compress_jpeg(even, u.Jpeg(95, True)), even, rtol=0, atol=1e-6)
