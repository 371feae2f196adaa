"""Photos and textures that the tests of degradation share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from oldrestore.degradation import TextureSet


def make_photo(height: int, width: int, seed: int = 0) -> Tensor:
    """A (3, H, W) picture in [-0.9, 0.9] with gradients, edges and a little texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [np.sin(5 * x + 3 * y + channel) for channel in range(3)]
    photo = 0.6 * np.stack(planes) + 0.2 * (x > 0.5) + 0.02 * rng.standard_normal((height, width))
    return torch.from_numpy(np.clip(photo, -0.9, 0.9).astype(np.float32))


@pytest.fixture
def photo() -> Tensor:
    return make_photo(96, 128)


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> TextureSet:
    """Two kinds of stickers and one whole frame."""
    folder: Path = tmp_path_factory.mktemp("textures")
    for kind, box in (("dots", (10, 10, 30, 30)), ("lint", (4, 18, 36, 21))):
        (folder / "stickers" / kind).mkdir(parents=True)
        sticker = Image.new("L", (40, 40))
        ImageDraw.Draw(sticker).ellipse(box, fill=255)
        sticker.save(folder / "stickers" / kind / "1.png")
    frame = Image.new("L", (1200, 800))
    for index in range(40):
        left, top = 29 * index, (377 * index) % 780
        ImageDraw.Draw(frame).rectangle((left, top, left + 8, top + 8), fill=200)
    frame.save(folder / "frame.png")
    return TextureSet.from_folder(folder)
