"""What many photos say together: means, medians, and how sure of them one may be.

The photos measured are a sample of all photos; intervals are percentiles of the statistic over
2000 samples drawn anew from them (bootstrap; Efron, 1979), with a seed of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
COVERED = 0.95  # of the interval
_SEED = 0

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A statistic of photos.

    value: the statistic: the mean, or what pools all photos. low, high: its 95 % interval.
    median: of the photos one by one.
    """

    value: float
    median: float
    low: float
    high: float


def resampled(count: int) -> NDArray[np.intp]:
    """Which of ``count`` photos each resample holds, (2000, count); the same at every call."""
    return np.random.default_rng(_SEED).integers(0, count, (RESAMPLES, count))


def summary_of_mean(values: Sequence[float | None]) -> Summary | None:
    """Of the numbers among ``values``, one a photo; None if there are none."""
    numbers = np.array([value for value in values if value is not None], np.float64)
    if not len(numbers):
        return None
    return _summary(float(numbers.mean()), numbers, numbers[resampled(len(numbers))].mean(axis=1))


def summary_of_pool(
    parts: Numbers, statistic: Callable[[Numbers], Numbers], each: Numbers
) -> Summary:
    """Of a statistic of sums over photos.

    Args:
        parts: (photos, n): what each photo adds to the sums.
        statistic: sums (..., n) -> (...).
        each: (photos,), the photos' own values, for the median.
    """
    pooled = float(statistic(parts.sum(axis=0)))
    drawn = resampled(len(parts))
    times = np.stack([np.bincount(photos, minlength=len(parts)) for photos in drawn])
    return _summary(pooled, each, statistic(times @ parts))


def _summary(value: float, each: Numbers, resamples: Numbers) -> Summary:
    low, high = np.quantile(resamples, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Summary(value, float(np.median(each)), float(low), float(high))
