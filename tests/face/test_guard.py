"""The guard lets a sharper face pass and holds back another one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oldrestore.face.align import TEMPLATE
from oldrestore.face.detect import Face
from oldrestore.face.guard import (
    LEAST_LIKENESS,
    MOST_MOVED,
    Likeness,
    landmarks_moved,
    nearest,
    pattern_likeness,
)


@pytest.fixture(scope="module")
def crop() -> Tensor:
    """The head of an old portrait, (1, 3, 256, 256)."""
    path = Path(__file__).parents[1] / "photos" / "carte-de-visite.jpg"
    with Image.open(path) as photo:
        small = photo.convert("RGB").resize((256, 256), box=(0, 0, photo.width, photo.width))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 127.5 - 1


def _face(shift: float = 0, size: float = 200) -> Face:
    points = TEMPLATE * 256 + shift
    return Face((28, 28, 28 + size, 28 + size), tuple(map(tuple, points.tolist())), 0.9)


def test_the_same_and_a_sharper_face_pass(crop: Tensor) -> None:
    blurred = F.avg_pool2d(F.pad(crop, (2,) * 4, mode="replicate"), 5, 1)
    assert pattern_likeness(crop, crop) == pytest.approx(1)
    for other in (blurred, (2 * crop - blurred).clamp(-1, 1), crop * 0.7 + 0.2):
        assert pattern_likeness(crop, other) > LEAST_LIKENESS
    assert Likeness(0.03, 0.95).objection() is None


def test_another_pattern_is_held_back(crop: Tensor) -> None:
    for other in (crop.flip(-1), crop.flip(-2), crop.roll(16, dims=-1)):
        alike = pattern_likeness(crop, other)
        assert alike < LEAST_LIKENESS
        assert "alike only" in (Likeness(None, alike).objection() or "")


def test_a_picture_of_nothing_is_like_nothing(crop: Tensor) -> None:
    assert pattern_likeness(crop, torch.zeros_like(crop)) == 0
    assert pattern_likeness(torch.zeros_like(crop), torch.zeros_like(crop)) == 1


def test_features_that_move_are_held_back() -> None:
    eyes = float(np.linalg.norm((TEMPLATE[1] - TEMPLATE[0]) * 256))
    assert landmarks_moved(_face(), _face()) == 0
    moved = landmarks_moved(_face(), _face(shift=eyes * MOST_MOVED))
    assert moved == pytest.approx(MOST_MOVED * 2**0.5)
    assert "would move by 14%" in (Likeness(moved, 1.0).objection() or "")
    assert landmarks_moved(None, _face()) is None
    assert landmarks_moved(_face(), None) is None


def test_the_face_of_a_crop_is_the_large_one_in_its_middle() -> None:
    bystander, small = _face(shift=90), _face(size=30)
    assert nearest([bystander, small, _face()], 256) == _face()
    assert nearest([small], 256) is None
