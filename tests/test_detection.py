"""Precision and recall with a tolerance, against what can be counted by hand."""

import pytest
import torch
from torch import Tensor

from oldrestore.detection import BINS, DetectionScores


def plane(*pixels: tuple[int, int], value: float = 1.0) -> Tensor:
    """(1, 1, 9, 9), ``value`` at some rows and columns."""
    picture = torch.zeros(1, 1, 9, 9)
    for row, column in pixels:
        picture[..., row, column] = value
    return picture


def test_a_pixel_beside_the_damage_is_right_and_finds_it() -> None:
    scores = DetectionScores()
    scores.add(plane((4, 5), value=0.9), plane((4, 4)), plane((4, 4)))
    assert scores.at(0.5) == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "flagged": 0.0}


def test_two_pixels_off_is_wrong() -> None:
    scores = DetectionScores()
    scores.add(plane((4, 6), value=0.9), plane((4, 4)), plane((4, 4)))
    at = scores.at(0.5)
    assert (at["precision"], at["recall"], at["f1"]) == (0, 0, 0)
    assert at["flagged"] == pytest.approx(1 / (81 - 9))


def test_what_hardly_shows_is_neither_right_nor_wrong() -> None:
    scores = DetectionScores()
    found = plane((4, 4), (1, 1), value=0.9)
    scores.add(found, plane((4, 4)), plane((4, 4), (1, 1)))
    assert scores.at(0.5)["precision"] == 1
    strict = DetectionScores()
    strict.add(found, plane((4, 4)), plane((4, 4)))
    assert strict.at(0.5)["precision"] == 0.5


def test_figures_of_several_pictures_are_counted_together() -> None:
    scores = DetectionScores(tolerance_px=0)
    scores.add(plane((0, 0), (0, 1), value=0.8), plane((0, 0)), plane((0, 0)))
    scores.add(plane((5, 5), value=0.3), plane((5, 5), (7, 7)), plane((5, 5), (7, 7)))
    at = scores.at(0.5)
    assert (at["precision"], at["recall"]) == pytest.approx((1 / 2, 1 / 3))
    at = scores.at(0.2)
    assert (at["precision"], at["recall"]) == pytest.approx((2 / 3, 2 / 3))
    assert scores.best_threshold() < 0.3
    # from the top: recall 0 -> 1/3 at precision 1/2, then -> 2/3 at 2/3, the last at 3/161 for all
    expected = (1 / 2 + 2 / 3 + 3 / 162) / 3
    assert scores.average_precision() == pytest.approx(expected, abs=1e-6)


def test_a_threshold_is_exceeded_not_met() -> None:
    scores = DetectionScores(tolerance_px=0)
    scores.add(plane((4, 4), value=0.5), plane((4, 4)), plane((4, 4)))
    assert scores.at(0.5)["recall"] == 0
    assert scores.at(0.499)["recall"] == 1


def test_random_probabilities_give_the_rate_as_average_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    visible = (torch.rand(1, 1, 400, 400, generator=generator) < 0.05).float()
    scores = DetectionScores(tolerance_px=0)
    scores.add(torch.rand(1, 1, 400, 400, generator=generator), visible, visible)
    assert scores.average_precision() == pytest.approx(0.05, abs=0.01)
    assert scores.f1().shape == (BINS,)


def test_nothing_damaged_and_nothing_found() -> None:
    scores = DetectionScores()
    scores.add(plane(), plane(), plane())
    assert scores.at(0.5) == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "flagged": 0.0}


def test_counts_are_those_of_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(1, 1, 23, 31, generator=generator)
    visible = (torch.rand(1, 1, 23, 31, generator=generator) < 0.05).float()
    scores = DetectionScores()
    scores.add(probability, visible, visible)
    for threshold in (0.1, 0.5, 0.9):
        flagged = probability[0, 0] > threshold
        is_damaged = visible[0, 0] > 0
        right = int((flagged & _near(is_damaged)).sum())
        at = scores.at(threshold)
        assert at["precision"] == pytest.approx(right / int(flagged.sum()))
        found = int((is_damaged & _near(flagged)).sum())
        assert at["recall"] == pytest.approx(found / int(is_damaged.sum()))


def _near(chosen: Tensor) -> Tensor:
    """Pixels within one of a chosen one, one by one."""
    found = torch.zeros_like(chosen)
    for row, column in chosen.nonzero().tolist():
        found[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
    return found
