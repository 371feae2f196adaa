"""Which damage shows."""

import numpy as np
import pytest

from oldrestore.degradation.visibility import visible

LEVEL = 1 / 127.5


def _ground(deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((1, 64, 64)) * deviation * LEVEL
    return np.repeat(noise, 3, axis=0).astype(np.float32)


def _square(side: int, change: float, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((64, 64), np.bool_)
    mask[30 : 30 + side, 30 : 30 + side] = True
    return ground + np.where(mask, change * LEVEL, 0).astype(np.float32), mask


@pytest.mark.parametrize(
    ("side", "change", "deviation", "shows"),
    [
        (3, 20, 0, True),
        (3, 10, 0, False),  # too faint anywhere
        (1, 20, 2, True),
        (1, 20, 10, False),  # twice the grain: one of many such pixels
        (1, 70, 10, True),
        (5, 20, 10, True),  # the same change, seen in 25 pixels together
        (5, 20, 40, False),
    ],
)
def test_a_detail_shows_by_its_contrast_its_size_and_its_ground(
    side: int, change: float, deviation: float, shows: bool
) -> None:
    sound = _ground(deviation)
    damaged, mask = _square(side, change, sound)
    found = visible(damaged, sound, mask)
    assert found[30 + side // 2, 30 + side // 2] == shows
    assert not found[~mask].any()


def test_damage_of_one_channel_shows() -> None:
    sound = _ground(1)
    damaged, mask = _square(3, 30, sound)
    damaged[:2] = sound[:2]
    assert visible(damaged, sound, mask)[mask].all()
