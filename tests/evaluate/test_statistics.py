"""Means, medians and intervals over photos."""

import numpy as np
import pytest

from oldrestore.evaluate.statistics import resampled, summary_of_mean, summary_of_pool


def test_a_summary_holds_mean_median_and_interval() -> None:
    values = np.random.default_rng(1).normal(30, 2, 50).tolist()
    found = summary_of_mean([*values, None])
    assert found is not None
    assert found.value == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    # of a normal sample the bootstrap gives about what the normal formula does
    width = 2 * 1.96 * np.std(values) / np.sqrt(50)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert found.low < found.value < found.high
    assert summary_of_mean([None, None]) is None


def test_intervals_are_the_same_at_every_call() -> None:
    assert np.array_equal(resampled(7), resampled(7))
    assert resampled(7).max() == 6
    assert summary_of_mean([1.0, 2.0, 4.0]) == summary_of_mean([1.0, 2.0, 4.0])


def test_a_pool_is_of_the_sums_and_its_interval_of_resampled_photos() -> None:
    parts = np.array([[1.0, 10.0], [8.0, 10.0], [3.0, 100.0]])

    def ratio(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    found = summary_of_pool(parts, ratio, ratio(parts))
    assert found.value == pytest.approx(12 / 120)
    assert found.median == pytest.approx(0.1)
    by_hand = [ratio(parts[picks].sum(axis=0)) for picks in resampled(3)]
    assert (found.low, found.high) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))
