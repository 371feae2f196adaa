"""Picture that looks like damage."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from oldrestore.train import distractors
from oldrestore.train.distractors import add_distractor


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_something_is_drawn_and_most_is_left(size: tuple[int, int]) -> None:
    image = torch.zeros(3, *size)
    shares = []
    for index in range(40):
        drawn = add_distractor(image, np.random.default_rng(index))
        assert drawn.shape == image.shape
        assert drawn.dtype == torch.float32
        assert drawn.abs().max() <= 1
        shares.append(float((drawn != 0).float().mean()))
    assert not image.any()  # the one given is left alone
    assert np.mean(np.array(shares) > 0) > 0.9
    assert np.mean(shares) < 0.5


def test_it_is_a_function_of_the_generator() -> None:
    image = torch.rand(3, 64, 64) * 2 - 1
    first, second = (add_distractor(image, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, add_distractor(image, np.random.default_rng(4)))


def test_lines_are_never_alone() -> None:
    for index in range(60):
        canvas = Image.new("L", (128 * distractors.OVERSAMPLING,) * 2)
        distractors._lines(ImageDraw.Draw(canvas), np.random.default_rng(index))
        drawn = np.pad(np.asarray(canvas), 1) > 0
        begins = [(np.diff(x.astype(int), axis=-1) > 0).sum(axis=-1) for x in (drawn, drawn.T)]
        assert max(count.max() for count in begins) >= 2  # along one row or column at least
