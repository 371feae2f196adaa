"""Alignment: five landmarks -> a similarity transform to the template; pictures warped by one.

Coordinates are pixels, x to the right and y down; the centre of the first pixel is (0.5, 0.5).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# where the published code puts eyes, nose and corners of the mouth, in a crop of 256 px: indices of
# pixels there, centres of pixels here
TEMPLATE_PX = 256
TEMPLATE = (
    np.array([(89.0, 108.5), (167.0, 108.5), (128.0, 147.5), (104.6, 195.9), (151.4, 195.9)]) + 0.5
) / TEMPLATE_PX

Array = np.ndarray[Any, Any]
Points = Sequence[tuple[float, float]] | Array


def similarity(source: Points, target: Points) -> Array:
    """The rotation, scale and shift that bring points nearest to others, in the least squares.

        minimise over s, R, t:  sum_i | target_i - (s R source_i + t) |^2

    Umeyama, "Least-squares estimation of transformation parameters", IEEE TPAMI 1991, eq. 40 to 42.

    Args:
        source, target: (N, 2), N at least 2.

    Returns:
        (2, 3): [s R | t]. Never mirrored.

    Raises:
        ValueError: fewer than two points, other shapes, or all of the source in one place.
    """
    ours, theirs = (np.asarray(points, dtype=np.float64) for points in (source, target))
    if ours.shape != theirs.shape or ours.ndim != 2 or ours.shape[1] != 2 or len(ours) < 2:
        raise ValueError(f"source, target: expected both (N, 2), got {ours.shape}, {theirs.shape}")
    mean, goal = ours.mean(axis=0), theirs.mean(axis=0)
    variance = float((ours - mean).var(axis=0).sum())
    if not variance > 0 or not np.isfinite(theirs).all():
        raise ValueError("source: expected finite points that are not all in one place")
    covariance = (theirs - goal).T @ (ours - mean) / len(ours)
    left, stretch, right = np.linalg.svd(covariance)
    sign = np.array([1.0, 1.0 if np.linalg.det(left @ right) > 0 else -1.0])
    rotation = left @ np.diag(sign) @ right
    scaled = rotation * float(stretch @ sign) / variance
    return np.concatenate([scaled, (goal - scaled @ mean)[:, None]], axis=1)


def to_template(landmarks: Points, side_px: int) -> Array:
    """The similarity (2, 3) from a photo to the aligned crop of ``side_px``."""
    return similarity(landmarks, TEMPLATE * side_px)


def inverse(matrix: Array) -> Array:
    """The similarity the other way round."""
    turned = np.linalg.inv(matrix[:, :2])
    return np.concatenate([turned, -(turned @ matrix[:, 2:])], axis=1)


def shifted(matrix: Array, right_px: float, down_px: float) -> Array:
    """The transform of a picture that begins at (``right_px``, ``down_px``) of the old one."""
    origin = np.array([[right_px], [down_px]])
    return np.concatenate([matrix[:, :2], matrix[:, :2] @ origin + matrix[:, 2:]], axis=1)


def scale_of(matrix: Array) -> float:
    """How much larger a similarity makes things."""
    return float(abs(np.linalg.det(matrix[:, :2])) ** 0.5)


def corners(side_px: float, matrix: Array) -> Array:
    """Where ``matrix`` brings the corners of a square crop: (4, 2)."""
    square = np.array([(0, 0), (side_px, 0), (side_px, side_px), (0, side_px)], dtype=np.float64)
    placed: Array = square @ matrix[:, :2].T + matrix[:, 2]
    return placed


def warp(image: Tensor, matrix: Array, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """What ``matrix`` makes of a picture; beyond its border it goes on with its last pixels.

    Shrinking is done in two steps, the first of which averages: thin lines do not alias.

    Args:
        image: (B, C, H, W) floating point.
        matrix: (2, 3), from pixels of ``image`` to those of the result.
        size: height and width of the result.
        mode: "bicubic" or "bilinear".

    Returns:
        (B, C, *size), within the range of ``image``.
    """
    scale = scale_of(matrix)
    height, width = image.shape[2:]
    low, high = image.amin(), image.amax()
    small = [max(1, round(side * min(scale, 1.0))) for side in (height, width)]
    if small != [height, width]:
        image = F.interpolate(image, small, mode="bilinear", align_corners=False, antialias=True)
    back = inverse(matrix)
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in size)
    x = back[0, 0] * columns + (back[0, 1] * rows + back[0, 2])[:, None]  # (rows, columns)
    y = back[1, 0] * columns + (back[1, 1] * rows + back[1, 2])[:, None]
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1).to(image)
    grid = grid.expand(len(image), -1, -1, -1)
    warped = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return warped.clamp(low, high)
