"""Drawing a degradation: every chance there is, is taken here and nowhere else."""

from __future__ import annotations

import math

import numpy as np

from oldrestore.degradation import fading, unstructured
from oldrestore.degradation.chain import Degradation, Step, ToneStep, UnstructuredStep
from oldrestore.degradation.fields import draw_seed
from oldrestore.degradation.settings import DegradationSettings, Range
from oldrestore.degradation.structured import sample_structured
from oldrestore.degradation.textures import TextureSet

SMALLEST_PX = 8
"""Least height and width of a picture, the network's own limit."""

_SEVERITY_SHAPE = (1.1, 2.5)
"""Beta distribution of the severity: 0.31 on average, mild frequent."""

_GAUSSIAN_SHARE = 12 / 17
"""Of the noise that is not impulses; the rest grows with brightness."""

_GRAIN_SHARE = 0.65
"""Strength of grain over that of noise: correlated, it is as visible at a smaller deviation."""

_DEFAULT = DegradationSettings()


def sample_degradation(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    settings: DegradationSettings = _DEFAULT,
    textures: TextureSet | None = None,
) -> Degradation:
    """Draw what happens to a photo of ``height`` times ``width`` pixels.

    Args:
        rng: the only source of chance; its state moves on.
        height, width: at least 8.
        settings: how often and how strong.
        textures: textures of real damage to draw from, besides the synthetic kinds.

    Raises:
        ValueError: the picture is too small.
    """
    if min(height, width) < SMALLEST_PX:
        raise ValueError(
            f"height, width: expected at least {SMALLEST_PX}, got {height} and {width}"
        )
    if rng.random() < settings.p_undamaged:
        return Degradation(height, width, ())
    is_grey = bool(rng.random() < settings.p_grey)
    is_faded = bool(rng.random() < settings.p_fading)
    tone: list[Step] = [*_sample_tone(rng, height, width, is_grey, is_faded)]
    is_neutral = is_grey and not any(
        isinstance(step, (fading.Toning, fading.Yellowing)) for step in tone
    )
    low, high = settings.severity
    severity = low + (high - low) * float(rng.beta(*_SEVERITY_SHAPE))
    chain: list[Step] = [*_sample_unstructured(rng, severity, is_grey, settings)]
    if rng.random() < settings.p_structured:
        at = int(rng.integers(len(chain) + 1))
        chain[at:at] = sample_structured(
            rng, height, width, is_grey=is_neutral, settings=settings, textures=textures
        )
    return Degradation(height, width, (*tone, *chain))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _sample_grey(rng: np.random.Generator) -> fading.Grey:
    """Between the eye's weights and those of an emulsion that sees blue above all."""
    eye = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    emulsion = np.array([0.1, 0.35, 0.55])
    share = rng.uniform(0, 1) ** 2
    red, green, blue = (float(x) for x in (1 - share) * eye + share * emulsion)
    return fading.Grey((red, green, blue))


def _sample_tone(
    rng: np.random.Generator, height: int, width: int, is_grey: bool, is_faded: bool
) -> list[ToneStep]:
    """Grey first, then one to four kinds of fading."""
    steps: list[ToneStep] = [_sample_grey(rng)] if is_grey else []
    if not is_faded:
        return steps
    if is_grey and rng.random() < 0.45:
        strength = _uniform(rng, 0.2, 1.0)
        steps.append(fading.Toning((1 - 0.25 * strength, 1.0, 1 + 0.35 * strength)))
    if rng.random() < 0.75:
        black = abs(float(rng.normal(0, 0.13)))
        white = 1 - abs(float(rng.normal(0, 0.1)))
        gamma = math.exp(float(rng.normal(0, 0.18)))
        steps.append(fading.ContrastLoss(min(black, 0.4), max(white, 0.7), gamma))
    if not is_grey and rng.random() < 0.75:
        steps.append(_sample_color_cast(rng))
    if rng.random() < (0.35 if is_grey else 0.3):
        age = _uniform(rng, 0.1, 1.0)
        steps.append(fading.Yellowing((1 - 0.03 * age, 1 - 0.1 * age, 1 - 0.35 * age)))
    if rng.random() < 0.35:
        strength = _uniform(rng, 0.05, 0.35)
        size_px = max(height, width) * _uniform(rng, 0.4, 1.5)
        steps.append(fading.UnevenLight(strength, size_px, draw_seed(rng)))
    if rng.random() < 0.3:
        strength = _uniform(rng, 0.1, 0.45) * (1 if rng.random() < 0.65 else -1)
        center = (_uniform(rng, 0, 1), _uniform(rng, 0, 1))
        radius_px = max(height, width) * _uniform(rng, 0.6, 1.6)
        steps.append(fading.Vignette(strength, center, radius_px))
    if len(steps) == int(is_grey):  # nothing was drawn, but a faded photo is faded
        steps.append(fading.ContrastLoss(0.12, 0.92, 1.0))
    return steps


def _sample_color_cast(rng: np.random.Generator) -> fading.ColorCast:
    """Mostly towards red and yellow: the cyan dye of colour prints fades first, the blue light."""
    strength = _uniform(rng, 0.1, 1.0)
    lift = (
        0.14 * strength * _uniform(rng, 0.0, 1.0),
        0.07 * strength * _uniform(rng, 0.0, 1.0),
        0.1 * strength * _uniform(rng, 0.0, 1.0),
    )
    top = (
        1 - 0.05 * strength * _uniform(rng, 0.0, 1.0),
        1 - 0.15 * strength * _uniform(rng, 0.0, 1.0),
        1 - 0.25 * strength * _uniform(rng, 0.0, 1.0),
    )
    gain = (top[0] - lift[0], top[1] - lift[1], top[2] - lift[2])
    return fading.ColorCast(lift, gain, 1 - strength * _uniform(rng, 0.0, 0.65))


def _between(ends: Range, strength: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * strength


def _sample_unstructured(
    rng: np.random.Generator, severity: float, is_grey: bool, settings: DegradationSettings
) -> list[UnstructuredStep]:
    """Each kind with its probability, in random order, its strength around the severity."""

    def strength() -> float:
        return min(1.0, severity * _uniform(rng, 0.3, 1.4))

    steps: list[UnstructuredStep] = []
    if rng.random() < settings.p_blur:
        steps.append(_sample_blur(rng, _between(settings.blur_sigma_px, strength())))
    if rng.random() < settings.p_noise:
        sigma = _between(settings.noise_sigma_255, strength()) / 127.5
        is_neutral = is_grey or bool(rng.random() < 0.5)
        steps.append(_sample_noise(rng, sigma, is_neutral, settings.p_impulses))
    if rng.random() < settings.p_grain:
        sigma = _between(settings.noise_sigma_255, _GRAIN_SHARE * strength()) / 127.5
        steps.append(unstructured.FilmGrain(sigma, _uniform(rng, 0.4, 1.2), draw_seed(rng)))
    if rng.random() < settings.p_resampling:
        factor = _between(settings.resampling_factor, strength())
        down: unstructured.Filter = "bicubic" if rng.random() < 0.6 else "bilinear"
        up: unstructured.Filter = ("bicubic", "bilinear", "nearest")[
            int(rng.choice(3, p=[0.5, 0.4, 0.1]))
        ]
        steps.append(unstructured.Resampling(factor, down, up))
    if rng.random() < settings.p_jpeg:
        low, high = settings.jpeg_quality
        quality = round(_between((high, low), strength()))
        steps.append(unstructured.Jpeg(max(1, min(95, quality)), bool(rng.random() < 0.6)))
    return [steps[int(index)] for index in rng.permutation(len(steps))]


def _sample_blur(rng: np.random.Generator, sigma_px: float) -> unstructured.Blur:
    draw, angle_deg = rng.random(), _uniform(rng, 0, 180)
    if draw < 0.6:
        return unstructured.Blur("gaussian", sigma_px)
    if draw < 0.8:
        return unstructured.Blur("gaussian", sigma_px, _uniform(rng, 0.3, 0.9), angle_deg)
    if draw < 0.9:
        return unstructured.Blur("motion", sigma_px, angle_deg=angle_deg)
    return unstructured.Blur("defocus", sigma_px)


def _sample_noise(
    rng: np.random.Generator, sigma: float, is_grey: bool, p_impulses: float
) -> unstructured.GaussianNoise | unstructured.SpeckleNoise | unstructured.SaltAndPepper:
    draw = rng.random()
    if draw < _GAUSSIAN_SHARE * (1 - p_impulses):
        return unstructured.GaussianNoise(sigma, is_grey, draw_seed(rng))
    if draw < 1 - p_impulses:
        return unstructured.SpeckleNoise(sigma, is_grey, draw_seed(rng))
    # lost pixels are as visible as noise when a few in a thousand are lost
    amount = min(0.01, 0.03 * sigma)
    return unstructured.SaltAndPepper(amount, _uniform(rng, 0.3, 0.8), is_grey, draw_seed(rng))
