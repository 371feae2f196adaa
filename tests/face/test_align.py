"""Alignment is the least-squares similarity; warping there and back gives the picture again."""

import numpy as np
import pytest
import torch

from oldrestore.face.align import (
    TEMPLATE,
    corners,
    inverse,
    scale_of,
    shifted,
    similarity,
    to_template,
    warp,
)


def _matrix(scale: float, degrees: float, right: float, down: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([turn, [[right], [down]]], axis=1)


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, -120])
def test_a_similarity_is_found_again(degrees: float) -> None:
    matrix = _matrix(0.37, degrees, 12, -5)
    points = TEMPLATE * 256
    np.testing.assert_allclose(similarity(points, _apply(matrix, points)), matrix, atol=1e-9)
    np.testing.assert_allclose(inverse(inverse(matrix)), matrix, atol=1e-12)
    assert scale_of(matrix) == pytest.approx(0.37)


def test_no_other_similarity_is_nearer() -> None:
    rng = np.random.default_rng(0)
    points, goal = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    best = similarity(points, goal)
    error = np.square(_apply(best, points) - goal).sum()
    for _ in range(100):
        step = rng.normal(scale=1e-3, size=4)
        a, b = best[0, 0] + step[0], best[1, 0] + step[1]
        other = np.array([[a, -b, best[0, 2] + step[2]], [b, a, best[1, 2] + step[3]]])
        assert np.square(_apply(other, points) - goal).sum() >= error


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(to_template(mirrored, 256)[:, :2]) > 0


def test_points_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="not all in one place"):
        similarity(np.ones((5, 2)), TEMPLATE)
    with pytest.raises(ValueError, match="expected both"):
        similarity(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="finite"):
        similarity(np.full((5, 2), np.nan), TEMPLATE)


def _soft(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.sin(x / 9) * torch.cos(y / 7)
    return torch.stack([picture, -picture, picture / 2])[None].float()


def test_the_identity_changes_nothing() -> None:
    image = _soft(21, 34)
    assert torch.allclose(warp(image, np.eye(2, 3), (21, 34)), image, atol=1e-5)
    moved = warp(image, _matrix(1, 0, -4, -3), (18, 30))
    assert torch.allclose(moved, image[..., 3:21, 4:34], atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.3])
def test_there_and_back_gives_the_picture_again(scale: float) -> None:
    image = _soft(96, 96)
    matrix = _matrix(scale, 20, 30 * scale, 5 * scale)
    side = round(160 * scale)
    again = warp(warp(image, matrix, (side, side)), inverse(matrix), (96, 96))
    middle = (..., slice(24, 72), slice(24, 72))
    assert (again[middle] - image[middle]).abs().max() < 0.08


def test_shrinking_averages() -> None:
    """Lines of one pixel give their mean: taken one in five they would be black, or white."""
    lines = torch.zeros(1, 1, 200, 200)
    lines[..., ::2] = 1
    small = warp(lines, _matrix(0.2, 0, 0, 0), (40, 40))
    assert (small[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.05


def test_a_window_is_warped_as_the_whole_is() -> None:
    image = _soft(80, 90)
    matrix = _matrix(1.4, 15, -20, -30)
    whole = warp(image, matrix, (64, 64))
    window = warp(image[..., 10:, 7:], shifted(matrix, 7, 10), (64, 64))
    inside = warp(torch.ones(1, 1, 70, 83), shifted(matrix, 7, 10), (64, 64))
    assert inside.shape == (1, 1, 64, 64)
    assert (whole - window)[..., 20:60, 20:60].abs().max() < 1e-3


def test_corners_go_where_the_matrix_brings_them() -> None:
    found = corners(10, _matrix(2, 90, 1, 1))
    np.testing.assert_allclose(found, [(1, 1), (1, 21), (-19, 21), (-19, 1)], atol=1e-9)
