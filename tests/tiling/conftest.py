"""What the tests of tiling share: photos, and a way to force bands on small ones."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from oldrestore import pipeline
from oldrestore.tiling import plan


@pytest.fixture
def in_bands(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[None]]:
    """Inside, every photo is worked on in bands of so many rows."""

    @contextmanager
    def force(rows: int = 64) -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "is_best_whole", lambda *_: False)
            patched.setattr(plan, "BANDS", (rows,))
            yield

    return force


def _photo_of(height: int, width: int, kind: type = np.uint8, channels: int = 3) -> np.ndarray:
    """Soft shapes with grain and some scratches."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    soft = np.stack([np.sin(x / 40 + i) * np.cos(y / 30) for i in range(channels)], axis=2)
    values = 0.5 + 0.3 * soft + rng.normal(0, 0.03, soft.shape)
    values[:, width // 3 : width // 3 + 2] = 0.95
    values[height // 2] = 0.05
    scale = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1
    return (values.clip(0, 1) * scale).astype(kind)


@pytest.fixture
def photo_of() -> Callable[..., np.ndarray]:
    """(height, width, kind, channels) -> a photo."""
    return _photo_of
