"""Unstructured damage: blur, noise, grain, resampling, JPEG.

The kinds of Wan et al. (CVPR 2020), section 3, with film grain and psfs of motion and defocus
besides. Functions take and give pictures (B, 3, H, W) in [-1, 1]; the noise field of a step is
the same for every picture of the batch, so that two versions of one photo stay comparable.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from oldrestore.degradation.fields import (
    GAUSSIAN_REACH,
    Array,
    convolve,
    convolve_separable,
    gaussian_weights,
    generator,
    resize,
)

Psf = Literal["gaussian", "motion", "defocus"]
Filter = Literal["nearest", "bilinear", "bicubic"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_SMALLEST_WEIGHT = 1e-2
"""Weights of a two-dimensional psf below this share of the largest are dropped."""

_GRAIN_FLOOR = 0.35
"""Grain in black and white, as a share of the grain in middle grey."""


def _clip(picture: Array) -> Array:
    clipped: Array = np.clip(picture, -1.0, 1.0)
    return clipped


@dataclass(frozen=True)
class Blur:
    """What a lens, a shake or a print does to sharpness.

    psf: "gaussian", "motion" (a line) or "defocus" (a disc).
    sigma_px: of the Gaussian; for a line a quarter of its length, for a disc half its radius.
    ratio: width of a Gaussian across ``angle_deg`` over its width along it, in (0, 1].
    angle_deg: direction of a line or of a long Gaussian, from the x axis.
    """

    psf: Psf
    sigma_px: float
    ratio: float = 1.0
    angle_deg: float = 0.0


def _psf_array(blur: Blur) -> Array:
    """(K, K) weights of a psf that does not separate."""
    radius = max(1, math.ceil(GAUSSIAN_REACH * blur.sigma_px))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    angle = math.radians(blur.angle_deg)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if blur.psf == "gaussian":
        weights = np.exp(
            -0.5 * (along / blur.sigma_px) ** 2 - 0.5 * (across / (blur.sigma_px * blur.ratio)) ** 2
        )
    elif blur.psf == "motion":
        beyond = np.maximum(np.abs(along) - 2 * blur.sigma_px, 0.0)
        weights = np.clip(1.0 - np.hypot(beyond, across), 0.0, 1.0)
    else:
        weights = np.clip(2 * blur.sigma_px + 0.5 - np.hypot(x, y), 0.0, 1.0)
    weights[weights < _SMALLEST_WEIGHT * weights.max()] = 0.0
    normalised: Array = (weights / weights.sum()).astype(np.float32)
    return normalised


def add_blur(picture: Array, blur: Blur) -> Array:
    """Convolve with the psf; the borders are mirrored."""
    if blur.psf == "gaussian" and blur.ratio == 1.0:
        return _clip(convolve_separable(picture, gaussian_weights(blur.sigma_px)))
    return _clip(convolve(picture, _psf_array(blur)))


def _noise(seed: int, picture: Array, is_grey: bool) -> Array:
    """(1 or 3, H, W) normal noise."""
    shape = (1 if is_grey else 3, *picture.shape[-2:])
    return generator(seed).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of a sensor: independent, the same everywhere.

    sigma: standard deviation, in units of the [-1, 1] image range.
    is_grey: one field for the three channels.
    seed: of the field.
    """

    sigma: float
    is_grey: bool
    seed: int


def add_gaussian_noise(picture: Array, noise: GaussianNoise) -> Array:
    """Add the field and clip."""
    field = _noise(noise.seed, picture, noise.is_grey)
    field *= np.float32(noise.sigma)
    return _clip(picture + field)


@dataclass(frozen=True)
class SpeckleNoise:
    """Multiplicative noise: it grows with the light.

    sigma: standard deviation in white, in units of the [-1, 1] image range.
    is_grey: one field for the three channels.
    seed: of the field.
    """

    sigma: float
    is_grey: bool
    seed: int


def add_speckle_noise(picture: Array, noise: SpeckleNoise) -> Array:
    """Multiply the light, black being 0, by one plus the field and clip."""
    field = _noise(noise.seed, picture, noise.is_grey)
    field *= np.float32(0.5 * noise.sigma)
    return _clip(picture + (picture + np.float32(1.0)) * field)


@dataclass(frozen=True)
class SaltAndPepper:
    """Single pixels lost to white or black.

    amount: share of pixels, in [0, 1]; salt_share: of those, the white ones.
    is_grey: the three channels are lost together.
    seed: of the field.
    """

    amount: float
    salt_share: float
    is_grey: bool
    seed: int


def add_salt_and_pepper(picture: Array, noise: SaltAndPepper) -> Array:
    """Replace the drawn values by -1 or 1."""
    shape = (1 if noise.is_grey else 3, *picture.shape[-2:])
    draw = generator(noise.seed).random(shape, dtype=np.float32)
    peppered = np.where(draw < noise.amount, np.float32(-1.0), picture)
    salted: Array = np.where(draw < noise.amount * noise.salt_share, np.float32(1.0), peppered)
    return salted


@dataclass(frozen=True)
class FilmGrain:
    """Grain of a photographic emulsion, the same in the three channels.

    sigma: standard deviation in middle grey, in units of the [-1, 1] image range.
    size_px: standard deviation of the Gaussian that correlates the grain.
    seed: seed of the noise field.
    """

    sigma: float
    size_px: float
    seed: int


def add_film_grain(picture: Array, grain: FilmGrain) -> Array:
    """Add correlated noise, strongest in the middle tones, and clip."""
    weights = gaussian_weights(grain.size_px)
    field = convolve_separable(_noise(grain.seed, picture, True), weights)
    # a separable filter divides the standard deviation of white noise by the sum of w^2
    field *= np.float32(grain.sigma) / np.square(weights).sum()
    luminance = picture.mean(axis=1, keepdims=True, dtype=np.float32)
    visible = np.float32(1.0) - np.float32(1.0 - _GRAIN_FLOOR) * np.square(luminance)
    return _clip(picture + visible * field)


@dataclass(frozen=True)
class Resampling:
    """A scan or a copy at a lower resolution, brought back to size.

    factor: how many times fewer pixels a side, at least 1.
    down, up: the filters.
    """

    factor: float
    down: Filter
    up: Filter


def resample(picture: Array, resampling: Resampling) -> Array:
    """Shrink, then enlarge to the size it had, and clip."""
    height, width = picture.shape[-2:]
    low = (
        max(1, round(height / resampling.factor)),
        max(1, round(width / resampling.factor)),
    )
    planes = picture.reshape(-1, height, width)
    resampled = np.empty_like(planes)
    for index, plane in enumerate(planes):
        small = resize(plane, *low, _FILTERS[resampling.down])
        resampled[index] = resize(small, height, width, _FILTERS[resampling.up])
    return _clip(resampled.reshape(picture.shape))


@dataclass(frozen=True)
class Jpeg:
    """Compression of the scan.

    quality: 1 to 95, as Pillow counts.
    halves_color: whether the colours are stored at half the resolution (4:2:0).
    """

    quality: int
    halves_color: bool


def compress_jpeg(picture: Array, jpeg: Jpeg) -> Array:
    """Round to 8 bits, encode, decode."""
    compressed = np.empty_like(picture)
    levels = np.rint((picture + np.float32(1.0)) * np.float32(127.5)).astype(np.uint8)
    for index, image in enumerate(levels):
        data = io.BytesIO()
        pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        subsampling = 2 if jpeg.halves_color else 0
        pixels.save(data, "JPEG", quality=jpeg.quality, subsampling=subsampling)
        decoded = np.asarray(Image.open(data), dtype=np.float32)
        compressed[index] = decoded.transpose(2, 0, 1)
    compressed *= np.float32(1 / 127.5)
    compressed -= np.float32(1.0)
    return compressed
