"""Tone of an old photo: grey conversion, fading, toning, yellowing, uneven light.

These steps come first in a degradation and change no detail: each is a curve per pixel, at most
times a smooth field. The released code of Wan et al. (CVPR 2020) has none of them, although the
paper lists fading among the defects. Functions take and give pictures (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oldrestore.degradation.fields import Array, Color, generator, per_channel, smooth_noise


def _to_unit(picture: Array) -> Array:
    unit: Array = picture * np.float32(0.5) + np.float32(0.5)
    return unit


def _from_unit(picture: Array) -> Array:
    image: Array = np.clip(picture, 0.0, 1.0) * np.float32(2.0) - np.float32(1.0)
    return image


@dataclass(frozen=True)
class Grey:
    """A grey photo: one weighted sum in all three channels.

    weights: of red, green and blue; they sum to 1. Early emulsions were blind to red, so that
        skin and lips come out dark and skies white; later film is close to the eye.
    """

    weights: Color


def make_grey(picture: Array, grey: Grey) -> Array:
    """Replace the colours by their weighted sum; a grey picture stays as it is but for rounding."""
    red, green, blue = (np.float32(weight) for weight in grey.weights)
    luminance = red * picture[:, 0] + green * picture[:, 1] + blue * picture[:, 2]
    clipped: Array = np.clip(luminance, -1.0, 1.0)
    return np.repeat(clipped[:, None], 3, axis=1)


@dataclass(frozen=True)
class ContrastLoss:
    """Lifted blacks and dulled whites: ``black + (white - black) * x ** gamma`` on [0, 1].

    black, white: what black and white fade to, in [0, 1].
    gamma: exponent; above 1 darkens the middle tones.
    """

    black: float
    white: float
    gamma: float


def lose_contrast(picture: Array, loss: ContrastLoss) -> Array:
    """Fade towards grey with the same curve in each channel."""
    curve = _to_unit(picture) ** np.float32(loss.gamma)
    return _from_unit(loss.black + np.float32(loss.white - loss.black) * curve)


@dataclass(frozen=True)
class ColorCast:
    """Dyes of a colour photo that faded unevenly.

    lift, gain: per channel, ``lift + gain * x`` on [0, 1].
    saturation: 1 keeps the colours, 0 is grey.
    """

    lift: Color
    gain: Color
    saturation: float


def cast_color(picture: Array, cast: ColorCast) -> Array:
    """Desaturate, then move each channel by its own line."""
    unit = _to_unit(picture)
    mean = unit.mean(axis=1, keepdims=True, dtype=np.float32)
    unit = mean + np.float32(cast.saturation) * (unit - mean)
    return _from_unit(per_channel(cast.lift) + per_channel(cast.gain) * unit)


@dataclass(frozen=True)
class Toning:
    """Sepia and its relatives: exponents that pull the channels of a grey photo apart.

    exponents: per channel, on [0, 1]; black stays black and white stays white.
    """

    exponents: Color


def tone(picture: Array, toning: Toning) -> Array:
    """Tone a photo; below 1 an exponent brightens its channel."""
    unit = _to_unit(picture)
    toned = np.empty_like(unit)
    for channel, exponent in enumerate(toning.exponents):
        np.power(unit[:, channel], np.float32(exponent), out=toned[:, channel])
    return _from_unit(toned)


@dataclass(frozen=True)
class Yellowing:
    """Paper that has yellowed: the picture times the colour of the paper.

    paper: red, green and blue of the paper, in [0, 1].
    """

    paper: Color


def yellow(picture: Array, yellowing: Yellowing) -> Array:
    """Print the picture on the coloured paper."""
    return _from_unit(_to_unit(picture) * per_channel(yellowing.paper))


@dataclass(frozen=True)
class UnevenLight:
    """Patches that were bleached or kept in the dark.

    strength: largest share of the way to white (or, negative field, to black), in [0, 1].
    size_px: width of the patches.
    seed: of the field.
    """

    strength: float
    size_px: float
    seed: int


def light_unevenly(picture: Array, light: UnevenLight) -> Array:
    """Move each pixel towards white or black by a smooth field within ``strength``."""
    height, width = picture.shape[-2:]
    noise = smooth_noise(generator(light.seed), height, width, light.size_px)
    field = np.float32(light.strength) * np.tanh(noise)
    unit = _to_unit(picture)
    return _from_unit(unit + np.maximum(field, 0.0) * (1.0 - unit) + np.minimum(field, 0.0) * unit)


@dataclass(frozen=True)
class Vignette:
    """Corners that the lens left dark, or that time has bleached.

    strength: at one radius from the centre, in [-1, 1]: positive is the share of light lost,
        negative the share of the way to white.
    center: row and column in units of the picture's height and width; may lie outside.
    radius_px: where ``strength`` is reached.
    """

    strength: float
    center: tuple[float, float]
    radius_px: float


def vignette(picture: Array, shade: Vignette) -> Array:
    """Darken or bleach with the square of the distance from the centre, to twice the strength."""
    height, width = picture.shape[-2:]
    rows = (np.arange(height, dtype=np.float32) - shade.center[0] * height) / shade.radius_px
    columns = (np.arange(width, dtype=np.float32) - shade.center[1] * width) / shade.radius_px
    distance = np.minimum(rows[:, None] ** 2 + columns[None, :] ** 2, np.float32(1.5))
    share = np.minimum(np.float32(abs(shade.strength)) * distance, np.float32(0.9))
    unit = _to_unit(picture)
    if shade.strength < 0:
        return _from_unit(unit + share * (1.0 - unit))
    return _from_unit(unit * (1.0 - share))
