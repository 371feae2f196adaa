"""The blend modes against numbers worked out by hand, and the rule of the mask."""

import numpy as np
import pytest

from oldrestore.degradation.blending import (
    COVERED,
    TOUCHED,
    Layer,
    Mode,
    Window,
    blend,
    dilate,
    lay_over,
)
from oldrestore.degradation.fields import Array, per_channel

PICTURE, COLOR, ALPHA = 0.4, 0.75, 0.5


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("add", COLOR, 0.775),  # 0.4 + 0.5 * 0.75
        ("lighten", COLOR, 0.575),  # 0.4 + 0.5 * (0.75 - 0.4)
        ("lighten", 0.2, 0.4),  # darker than the picture: nothing
        ("screen", COLOR, 0.625),  # 0.4 + 0.5 * (1 - 0.6 * 0.25 - 0.4)
        ("multiply", COLOR, 0.35),  # 0.4 + 0.5 * (0.3 - 0.4)
        ("hole", COLOR, 0.575),  # 0.4 + 0.5 * (0.75 - 0.4)
        ("hole", 0.2, 0.3),  # 0.4 + 0.5 * (0.2 - 0.4)
    ],
)
def test_modes_follow_their_formulas(mode: Mode, color: float, expected: float) -> None:
    picture = np.full((3, 2, 2), PICTURE, np.float32)
    alpha = np.full((2, 2), ALPHA, np.float32)
    blended = blend(picture, per_channel((color, color, color)), alpha, mode)
    np.testing.assert_allclose(blended, expected, rtol=0, atol=1e-6)


def test_add_stops_at_white() -> None:
    picture, alpha = np.full((3, 1, 1), 0.9, np.float32), np.ones((1, 1), np.float32)
    assert blend(picture, per_channel((0.5, 0.5, 0.5)), alpha, "add").max() == 1.0


def test_unknown_mode_is_refused() -> None:
    picture, alpha = np.zeros((3, 1, 1), np.float32), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="mode"):
        blend(picture, picture, alpha, "dodge")  # type: ignore[arg-type]


def laid(alpha: Array, level: float, mode: Mode, picture: Array) -> tuple[Array, Array]:
    """The picture and mask after one layer at (1, 2) of one grey level."""
    damaged, mask = picture.copy(), np.zeros(picture.shape[1:], np.bool_)
    lay_over(damaged, Layer(Window(1, 2, alpha), per_channel((level,) * 3), mode), mask)
    return damaged, mask


def test_mask_holds_exactly_the_pixels_that_moved_visibly() -> None:
    picture = np.zeros((3, 8, 9), np.float32)
    # opacities around the threshold: black of 1 over a middle grey of 0 moves by alpha
    alpha = np.array([[0.0, 0.5 * TOUCHED, 0.99 * TOUCHED, 1.01 * TOUCHED, 0.3]], np.float32)
    damaged, mask = laid(alpha, 1.0, "lighten", picture)
    expected = np.zeros((8, 9), np.bool_)
    expected[1, 5:7] = True
    assert np.array_equal(mask, expected)
    assert np.array_equal((damaged != picture).any(axis=0), expected)


def test_hole_in_the_tone_of_the_paper_is_damage_where_it_is_opaque() -> None:
    picture = np.zeros((3, 8, 9), np.float32)
    alpha = np.array([[COVERED - 0.01, COVERED + 0.01]], np.float32)
    _, mask = laid(alpha, 0.5, "hole", picture)
    assert mask.sum() == 1
    assert mask[1, 3]


def test_bright_damage_on_white_is_no_damage() -> None:
    picture = np.ones((3, 8, 9), np.float32)
    damaged, mask = laid(np.ones((2, 2), np.float32), 1.0, "screen", picture)
    assert not mask.any()
    assert np.array_equal(damaged, picture)


@pytest.mark.parametrize("radius_px", [0, 1, 3, 50])
def test_dilation_is_a_square_cut_at_the_border(radius_px: int) -> None:
    mask = np.zeros((7, 11), np.bool_)
    mask[1, 8] = True
    expected = np.zeros((7, 11), np.bool_)
    expected[max(0, 1 - radius_px) : 2 + radius_px, max(0, 8 - radius_px) : 9 + radius_px] = True
    assert np.array_equal(dilate(mask, radius_px), expected)
