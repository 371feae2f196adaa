"""Wide holes, and gains of one row over another, photo by photo."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oldrestore.evaluate import evaluate
from oldrestore.evaluate.samples import draw_sample, wide_part


@pytest.mark.parametrize(("width", "is_wide"), [(12, False), (13, True), (20, True)])
def test_a_hole_is_wide_from_13_px_on(width: int, is_wide: bool) -> None:
    mask = np.zeros((60, 70), np.uint8)
    mask[20 : 20 + width, 5:65] = 1
    mask[:, 40:43] = 1  # a scratch across it stays out
    expected = np.zeros_like(mask)
    expected[20 : 20 + width, 5:65] = is_wide
    assert np.array_equal(wide_part(mask), expected)


def test_a_hole_cut_by_the_border_is_as_wide_as_it_may_be() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:7, 10:30] = 1
    assert np.array_equal(wide_part(mask), mask)
    assert not wide_part(np.zeros((40, 40), np.uint8)).any()


@pytest.fixture
def large_folder(clean_folder: Path, tmp_path: Path) -> Path:
    """The same photos, large enough for large holes."""
    for path in clean_folder.iterdir():
        with Image.open(path) as photo:
            photo.resize((320, 320)).save(tmp_path / path.name)
    return tmp_path


def test_gains_are_paired_and_pooled_inside_holes(large_folder: Path) -> None:
    columns = ["not-faded", "wide-holes"]
    results = evaluate(large_folder, None, rows=["input", "fill"], columns=columns)
    gain = results.gain("fill", "input", "not-faded")
    psnr = {
        row: np.array(
            [s.psnr for s in results.scores if (s.row, s.column) == (row, "not-faded")], float
        )
        for row in ("input", "fill")
    }
    difference = psnr["fill"] - psnr["input"]
    assert gain.psnr is not None
    assert gain.psnr.value == pytest.approx(difference.mean())
    assert gain.psnr.median == pytest.approx(np.median(difference))
    # paired: the interval is that of the differences, not of two means
    assert difference.min() <= gain.psnr.low <= gain.psnr.high <= difference.max()
    inside = [results.cell(row, "wide-holes").psnr for row in ("fill", "input")]
    pooled = results.gain("fill", "input", "wide-holes").psnr
    assert pooled is not None
    assert pooled.value == pytest.approx(inside[0].value - inside[1].value)
    with pytest.raises(ValueError, match="was not measured"):
        results.gain("ours", "input", "not-faded")


def test_wide_holes_are_compared_where_they_are_wide(large_folder: Path) -> None:
    results = evaluate(large_folder, None, rows=["input"], columns=["wide-holes"])
    error, compared = 0.0, 0
    for index, path in enumerate(sorted(large_folder.iterdir())):
        sample = draw_sample(np.asarray(Image.open(path)), "large-holes", 0, index)
        inside = wide_part(sample.mask) > 0
        difference = (sample.degraded[inside].astype(float) - sample.kept[inside]) / 255
        error += float(np.square(difference).sum())
        compared += difference.size
    assert compared > 0
    cell = results.cell("input", "wide-holes").psnr
    assert cell is not None
    assert cell.value == pytest.approx(10 * math.log10(compared / error))
