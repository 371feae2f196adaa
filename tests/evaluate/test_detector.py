"""Counting of found damage, against counts made pixel by pixel."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oldrestore.degradation.scratches import Dust, Hair, Scratch
from oldrestore.degradation.structured import StructuredStep
from oldrestore.evaluate.detector import (
    OURS,
    RIVAL,
    _sample_film,
    evaluate_detector,
    median_difference,
)
from oldrestore.pipeline import Restorer


def test_the_median_differs_where_something_small_is() -> None:
    pixels = np.full((40, 40, 3), 100, np.uint8)
    pixels[10:12, 20:22] = 220
    found = median_difference(pixels)
    assert found[10:12, 20:22] == pytest.approx(120 / 255)
    found[10:12, 20:22] = 0
    assert (found == 0).all()


def test_films_have_dust_hairs_and_scratches_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = _sample_film(rng, (128, 128)).steps
        structured = [step for step in steps if isinstance(step, StructuredStep)]
        assert structured
        assert all(isinstance(step, (Dust, Hair, Scratch)) for step in structured)


class Oracle:
    """In place of a detector: bright pixels are damaged."""

    def __init__(self, restorer: Restorer) -> None:
        self.config = restorer.config

    def damage_probability(self, image: torch.Tensor) -> torch.Tensor:
        return (image.mean(dim=1, keepdim=True) + 1) / 2


def test_the_table_holds_what_the_counts_say(
    clean_folder: Path, restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluate_detector(clean_folder, Oracle(restorer), seed=1)  # type: ignore[arg-type]
    again = evaluate_detector(clean_folder, Oracle(restorer), seed=1)  # type: ignore[arg-type]
    assert results == again
    assert results.photos == 4
    film, rival, ordinary, _ = results.detections
    assert (film.detector, rival.detector) == (OURS, RIVAL)
    assert 0 < film.damaged < 0.02
    assert ordinary.damaged > film.damaged
    assert film.threshold == restorer.config.defaults.threshold
    assert rival.f1.value == rival.best_f1
    for one in results.detections:
        both = one.precision + one.recall
        assert one.f1.value == pytest.approx(2 * one.precision * one.recall / both)
        assert one.f1.value <= one.best_f1
        assert one.f1.low <= one.f1.value <= one.f1.high
    lines = results.tables()[0].markdown().splitlines()
    assert lines[2].startswith(f"| film-like: ours | {film.damaged:.2%} | {film.precision:.2f} | ")
    assert len(lines) == 8
    assert f"ours {results.flagged[OURS].value:.2%}" in lines[-1]


def test_flagged_is_the_share_above_the_threshold(clean_folder: Path, restorer: Restorer) -> None:
    defaults = dataclasses.replace(restorer.config.defaults, threshold=0.6)
    restorer.config = dataclasses.replace(restorer.config, defaults=defaults)
    results = evaluate_detector(clean_folder, Oracle(restorer), limit=1)  # type: ignore[arg-type]
    bright = np.asarray(Image.open(clean_folder / "0.png")).mean(axis=2) / 255
    # a pixel of just 0.6 may fall on either side
    assert results.flagged[OURS].value == pytest.approx((bright > 0.6).mean(), abs=0.01)


def test_weights_without_a_detector_are_refused(clean_folder: Path, restorer: Restorer) -> None:
    restorer.detector = None
    with pytest.raises(ValueError, match="have no scratch detector"):
        evaluate_detector(clean_folder, restorer)
