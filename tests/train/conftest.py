"""Small folders of photos to train on, drawn by the tests themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw_photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with smooth shades, edges and texture, (H, W) RGB."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        a, b, c, d = rng.uniform(-3, 3, 4)
        shade = 0.5 + 0.3 * np.sin(a * x + b * y + c) + 0.1 * np.sin(9 * d * x * y)
        channels.append(shade)
    picture = np.stack(channels, axis=-1)
    for _ in range(6):
        top, left = rng.integers(height * 3 // 4), rng.integers(width * 3 // 4)
        tall, wide = rng.integers(8, height // 3), rng.integers(8, width // 3)
        picture[top : top + tall, left : left + wide] = rng.uniform(0, 1, 3)
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def _write_photos(folder: Path, count: int, *, seed: int, grey: bool = False) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        photo = draw_photo(rng, 144, 160)
        (photo.convert("L") if grey else photo).save(folder / f"photo_{chr(97 + i)}x.png")
    return folder


@pytest.fixture
def write_photos() -> Callable[..., Path]:
    """(folder, count, *, seed, grey=False): draw photos into a new folder."""
    return _write_photos


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_photos(tmp_path_factory.mktemp("data") / "clean", 12, seed=0)


@pytest.fixture(scope="session")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_photos(tmp_path_factory.mktemp("data") / "old", 8, seed=1, grey=True)
