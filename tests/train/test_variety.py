"""Sound ground of more kinds than there are photos."""

import numpy as np
import pytest
import torch

from oldrestore.train import variety
from oldrestore.train.variety import turned, varied

GROUND = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
ANOTHER = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
SHARES = ("BLENDED_SHARE", "NEGATIVE_SHARE", "TONED_SHARE")


def only(monkeypatch: pytest.MonkeyPatch, wanted: str) -> torch.Tensor:
    for name in SHARES:
        monkeypatch.setattr(variety, name, float(name == wanted))
    return varied(GROUND, ANOTHER, np.random.default_rng(0))


def test_all_eight_turns_and_no_other_are_drawn() -> None:
    quarters = [GROUND.rot90(k, (1, 2)) for k in range(4)]
    wanted = {t.numpy().tobytes() for square in quarters for t in (square, square.flip(1))}
    rng = np.random.default_rng(3)
    assert {turned(GROUND, rng).contiguous().numpy().tobytes() for _ in range(120)} == wanted


def test_photos_are_laid_over_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    share = (only(monkeypatch, "BLENDED_SHARE") - GROUND) / (ANOTHER - GROUND)
    share = share[(ANOTHER - GROUND).abs() > 0.1]
    assert 0.25 <= float(share.median()) <= 0.75
    torch.testing.assert_close(share, share.median().expand_as(share), rtol=0, atol=1e-5)


def test_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(only(monkeypatch, "NEGATIVE_SHARE"), -GROUND)


def test_another_tone_keeps_the_order_of_tones_and_the_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toned = only(monkeypatch, "TONED_SHARE")
    assert not torch.equal(toned, GROUND)
    assert toned.abs().max() <= 1
    orders = {tuple(plane.flatten().argsort().tolist()) for plane in GROUND}
    assert {tuple(plane.flatten().argsort().tolist()) for plane in toned} == orders


def test_chance_comes_from_the_generator_alone() -> None:
    first, second = (varied(GROUND, ANOTHER, np.random.default_rng(8)) for _ in range(2))
    assert torch.equal(first, second)
    drawn = [varied(GROUND, ANOTHER, np.random.default_rng(i)) for i in range(60)]
    unchanged = sum(torch.equal(crop, GROUND) for crop in drawn)
    assert 10 <= unchanged <= 32  # (1 - 0.3) (1 - 0.2) (1 - 0.4) of 60 is 20
