"""Two small folders: clean photos, and old ones that are grey and grainy."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = ((112, 200), (128, 104), (100, 120), (104, 104))


def _photo(seed: int, height: int, width: int, grain: float) -> np.ndarray:
    """Large shades, small ones on them, and grain."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, strength in ((5, 1.0), (24, 0.25)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += strength * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noisy = picture / 1.25 + rng.normal(0, grain, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clean photos in colour, of 100 px and more a side."""
    folder = tmp_path_factory.mktemp("clean")
    for index, (height, width) in enumerate(SIZES):
        Image.fromarray(_photo(index, height, width, 2.0)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four grey photos with much grain, and a file that is no photo."""
    folder = tmp_path_factory.mktemp("old")
    for index, (height, width) in enumerate(SIZES):
        picture = Image.fromarray(_photo(10 + index, height, width, 12.0)).convert("L")
        picture.save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder
