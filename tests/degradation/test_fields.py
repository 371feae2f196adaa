"""Filters and random fields."""

import numpy as np
import pytest

from oldrestore.degradation.fields import (
    convolve,
    convolve_separable,
    gaussian_weights,
    generator,
    pad_mirrored,
    smooth_noise,
    smooth_noise_1d,
)


@pytest.mark.parametrize("size", [(8, 8), (1, 5), (17, 40)])
@pytest.mark.parametrize("radius", [1, 8, 30])
def test_padding_mirrors_about_the_border(size: tuple[int, int], radius: int) -> None:
    picture = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    expected = np.pad(picture, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    assert np.array_equal(pad_mirrored(picture, radius), expected)


def test_both_convolutions_agree_with_the_sum_over_a_window() -> None:
    picture = np.random.default_rng(0).random((1, 3, 9, 14), dtype=np.float32)
    weights = gaussian_weights(0.8)
    psf = np.outer(weights, weights)
    windows = np.lib.stride_tricks.sliding_window_view(
        pad_mirrored(picture, len(weights) // 2), psf.shape, axis=(-2, -1)
    )
    expected = (windows.astype(np.float64) * psf).sum(axis=(-2, -1))
    # 49 products of float32 in [0, 1] whose weights sum to 1
    allowed = 49 * np.finfo(np.float32).eps
    assert np.abs(convolve(picture, psf) - expected).max() <= allowed
    assert np.abs(convolve_separable(picture, weights) - expected).max() <= allowed


def test_smooth_noise_has_unit_scale_and_the_size_asked_for() -> None:
    field = smooth_noise(generator(3), 200, 300, 10.0)
    assert field.shape == (200, 300)
    assert abs(float(field.mean())) < 0.15
    assert 0.5 < float(field.std()) < 1.2
    step = np.abs(np.diff(field, axis=0)).mean()
    assert step < 0.2 * field.std()
    assert np.array_equal(field, smooth_noise(generator(3), 200, 300, 10.0))
    assert not np.array_equal(field, smooth_noise(generator(4), 200, 300, 10.0))


def test_smooth_noise_along_a_line_covers_every_sample() -> None:
    noise = smooth_noise_1d(generator(3), 500, 7.0)
    assert noise.shape == (500,)
    assert 0.5 < float(noise.std()) < 1.2
