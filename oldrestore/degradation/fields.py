"""Random fields and filters that the degradations share.

Everything here is NumPy on one thread: the same seed gives the same pixels whatever the number of
threads, and a data loader's worker stays within its core.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
"""float32 array; a picture is (B, 3, H, W) in [-1, 1], sRGB-encoded."""

Color = tuple[float, float, float]
"""Red, green and blue, in [0, 1] unless said otherwise."""

GAUSSIAN_REACH = 3.0
"""A Gaussian is cut off at this many standard deviations (0.3 % of its weight is beyond)."""


def per_channel(color: Color) -> Array:
    """Three values as (3, 1, 1)."""
    return np.asarray(color, dtype=np.float32).reshape(3, 1, 1)


def generator(seed: int) -> np.random.Generator:
    """The random generator that a step's ``seed`` stands for."""
    return np.random.Generator(np.random.PCG64(seed))


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for one step, in [0, 2**32)."""
    return int(rng.integers(2**32))


def resize(plane: Array, height: int, width: int, method: Image.Resampling) -> Array:
    """Resize a float32 (H, W) plane; shrinking is antialiased by the filter's own support."""
    resized = Image.fromarray(plane).resize((width, height), method)
    return np.asarray(resized, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, height: int, width: int, size_px: float) -> Array:
    """(H, W) noise of about unit variance whose blotches are ``size_px`` pixels wide."""
    rows, columns = math.ceil(height / size_px) + 4, math.ceil(width / size_px) + 4
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    # the window starts past the two border cells, where the bicubic filter has all its neighbours
    window = (2.0, 2.0, 2.0 + width / size_px, 2.0 + height / size_px)
    field = grid.resize((width, height), Image.Resampling.BICUBIC, box=window)
    return np.asarray(field, dtype=np.float32)


def smooth_noise_1d(rng: np.random.Generator, count: int, size: float) -> Array:
    """(count,) noise of about unit variance, linear between knots ``size`` samples apart."""
    knots = rng.standard_normal(math.ceil(count / size) + 2)
    noise = np.interp(np.arange(count) / size, np.arange(len(knots)), knots)
    return noise.astype(np.float32)


def gaussian_weights(sigma_px: float) -> Array:
    """Normalised weights of a Gaussian, (2 * radius + 1,)."""
    radius = max(1, math.ceil(GAUSSIAN_REACH * sigma_px))
    offsets = np.arange(-radius, radius + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    normalised: Array = (weights / weights.sum()).astype(np.float32)
    return normalised


def pad_mirrored(picture: Array, radius: int) -> Array:
    """Pad the last two axes by mirroring about the border pixels, for any radius and size."""
    for axis in (-2, -1):
        size = picture.shape[axis]
        index = np.abs(np.arange(-radius, size + radius))
        if size > 1:
            index %= 2 * (size - 1)
            index = np.minimum(index, 2 * (size - 1) - index)
        else:
            index[:] = 0
        picture = picture.take(index, axis=axis)
    return picture


def convolve_separable(picture: Array, weights: Array) -> Array:
    """Filter the last two axes with the same symmetric ``weights``, mirrored at the borders."""
    radius = len(weights) // 2
    height, width = picture.shape[-2:]
    padded = pad_mirrored(picture, radius)
    rows = padded[..., radius : radius + height, :] * weights[radius]
    for offset in range(1, radius + 1):
        pair = (
            padded[..., radius - offset : radius - offset + height, :]
            + (padded[..., radius + offset : radius + offset + height, :])
        )
        pair *= weights[radius + offset]
        rows += pair
    filtered: Array = rows[..., radius : radius + width] * weights[radius]
    for offset in range(1, radius + 1):
        pair = (
            rows[..., radius - offset : radius - offset + width]
            + (rows[..., radius + offset : radius + offset + width])
        )
        pair *= weights[radius + offset]
        filtered += pair
    return filtered


def convolve(picture: Array, psf: Array) -> Array:
    """Filter the last two axes with a small (K, K) ``psf``, K odd, mirrored at the borders."""
    radius = psf.shape[0] // 2
    height, width = picture.shape[-2:]
    padded = pad_mirrored(picture, radius)
    filtered, part = np.zeros_like(picture), np.empty_like(picture)
    for row, column in np.argwhere(psf > 0):
        window = padded[..., row : row + height, column : column + width]
        filtered += np.multiply(window, psf[row, column], out=part)
    return filtered
