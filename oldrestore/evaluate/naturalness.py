"""Scores of photos that have no target: how natural, how noisy, how sharp they look.

Naturalness is NIQE (Mittal, Soundararajan and Bovik, IEEE Signal Processing Letters, 2013): the
distance between statistics of the photo's patches and those of sound photos. The sound photos are
the clean ones of the evaluation, so numbers compare within an evaluation, not with other papers'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oldrestore.evaluate.samples import Pixels
from oldrestore.layers import LUMA

PATCH_PX = 96  # at the photo's scale; half of it at the second scale
WINDOW_PX, WINDOW_SIGMA = 7, 7 / 6  # of the local mean and deviation
SCALES = 2
SHARP_SHARE = 0.75  # of sound photos, patches at least so sharp as this share of the sharpest count
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are looked at

Numbers = NDArray[np.float64]
_SHAPES = np.arange(0.2, 10.0, 0.001)  # of generalised Gaussians, as in the published code


@dataclass(frozen=True)
class Naturalness:
    """A Gaussian of patch features, 18 at each of two scales.

    mean: (36,). covariance: (36, 36).
    """

    mean: Numbers
    covariance: Numbers

    def distance(self, pixels: Pixels) -> float | None:
        """How far a photo (H, W, 3) is from these, >= 0; None if it has fewer than two patches."""
        features, _ = patch_features(pixels)
        if len(features) < 2:
            return None
        between = self.mean - features.mean(axis=0)
        pooled = (self.covariance + np.cov(features, rowvar=False)) / 2
        return float(np.sqrt(max(0.0, float(between @ np.linalg.pinv(pooled) @ between))))


def fit_naturalness(photos: Sequence[Pixels]) -> Naturalness:
    """From the sharp patches of sound photos.

    Raises:
        ValueError: they have fewer than two such patches.
    """
    chosen = []
    for pixels in photos:
        features, sharpness = patch_features(pixels)
        if len(features):
            chosen.append(features[sharpness >= SHARP_SHARE * sharpness.max()])
    patches = np.concatenate(chosen) if chosen else np.zeros((0, 36))
    if len(patches) < 2:
        raise ValueError(f"photos: expected some of {PATCH_PX} px and more a side, got none")
    return Naturalness(patches.mean(axis=0), np.cov(patches, rowvar=False))


def patch_features(pixels: Pixels) -> tuple[Numbers, Numbers]:
    """Features (n, 36) of the photo's patches of 96 px, and their sharpness (n,)."""
    luma = _luma(pixels)
    rows, columns = (side // PATCH_PX for side in luma.shape[2:])
    luma = luma[..., : rows * PATCH_PX, : columns * PATCH_PX]
    if rows * columns == 0:
        return np.zeros((0, 36)), np.zeros(0)
    found, sharpness = [], np.zeros(0)
    for scale in range(SCALES):
        normalised, deviation = _normalised(luma)
        side = PATCH_PX >> scale
        patches = _patches(normalised, side)
        if scale == 0:
            sharpness = _patches(deviation, side).mean(axis=(1, 2))
        found.append(_features(patches))
        luma = F.avg_pool2d(luma, 2)
    return np.concatenate(found, axis=1), sharpness


def sharpness_of(pixels: Pixels) -> float:
    """Mean gradient of the luma over its deviation: fine structure, noise counted too."""
    luma = _luma(pixels)[0, 0].numpy()
    down, across = np.gradient(luma)
    return float(np.hypot(down, across).mean() / max(luma.std(), 1.0))


def _luma(pixels: Pixels) -> Tensor:
    """(H, W, 3) of 8 bits -> (1, 1, H, W), 0..255."""
    values = torch.from_numpy(pixels.astype(np.float64))
    return (values @ values.new_tensor(LUMA))[None, None]


def _normalised(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Less the local mean, over the local deviation (plus one level); and that deviation."""
    reach = WINDOW_PX // 2
    place = torch.arange(-reach, reach + 1).double()
    bell = torch.exp(-(place**2) / (2 * WINDOW_SIGMA**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.pad(values, (reach,) * 4, mode="replicate"), window)

    around = mean(luma)
    deviation = (mean(luma**2) - around**2).clamp(min=0).sqrt()
    return (luma - around) / (deviation + 1), deviation


def _patches(values: Tensor, side: int) -> Numbers:
    """(1, 1, H, W) -> (n, side, side), beside each other."""
    cut = F.unfold(values, side, stride=side)[0].T.reshape(-1, side, side)
    patches: Numbers = cut.numpy()
    return patches


def _features(patches: Numbers) -> Numbers:
    """(n, side, side) -> (n, 18): shapes of the values' and of neighbours' products' spread."""
    shape, left, right, _ = _generalised_gaussian(patches)
    found = [shape, (left + right) / 2]
    for down, across in SHIFTS:
        shifted = np.roll(patches, (down, across), axis=(1, 2))
        shape, left, right, mean = _generalised_gaussian(patches * shifted)
        found += [shape, mean, left, right]
    return np.stack(found, axis=1)


def _generalised_gaussian(patches: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Asymmetric generalised Gaussians by moments (Lasmar et al., 2009): shape, scales, mean."""
    values = patches.reshape(len(patches), -1)
    negative, positive = values < 0, values > 0

    def deviation(side: NDArray[np.bool_]) -> Numbers:
        squares = np.square(values * side).sum(axis=1) / np.maximum(side.sum(axis=1), 1)
        root: Numbers = np.sqrt(np.maximum(squares, 1e-12))
        return root

    left, right = deviation(negative), deviation(positive)
    ratio = left / right
    moments = np.abs(values).mean(axis=1) ** 2 / np.maximum(np.square(values).mean(axis=1), 1e-12)
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    gamma_1, gamma_2, gamma_3 = (_gamma(k / _SHAPES) for k in (1, 2, 3))
    # the ratio of moments grows with the shape
    place = np.searchsorted(gamma_2**2 / (gamma_1 * gamma_3), wanted).clip(0, len(_SHAPES) - 1)
    shape = _SHAPES[place]
    spread = np.sqrt(gamma_1 / gamma_3)[place]
    left, right = left * spread, right * spread
    return shape, left, right, (right - left) * (gamma_2 / gamma_1)[place]


def _gamma(values: Numbers) -> Numbers:
    return torch.lgamma(torch.from_numpy(values)).exp().numpy()
