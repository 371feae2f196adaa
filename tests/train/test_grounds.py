"""The sound pictures that damage is laid on: many kinds, and those a detector is mistaken in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.mask import DetectorConfig, PaperDetectorConfig, make_detector
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import PhotoFolders
from oldrestore.train.grounds import Grounds, mined

SIDE_PX = 64
AS_THEY_ARE = MaskSettings(
    crop_px=SIDE_PX, distractor_share=0.0, turned_share=0.0, varied_share=0.0, mined=40
)


def of(folder: Path, **changes: Any) -> Grounds:
    photos = PhotoFolders([folder], held_out=False, smallest_px=SIDE_PX)
    return Grounds(photos, None, replace(AS_THEY_ARE, **changes))


def draw(grounds: Grounds, count: int) -> Tensor:
    drawn = [grounds.draw(np.random.default_rng([1, i]), SIDE_PX) for i in range(count)]
    assert not any(is_old for _, is_old in drawn)
    return torch.stack([ground for ground, _ in drawn])


@pytest.mark.parametrize(("native_share", "sharp"), [(1.0, True), (0.0, False)])
def test_native_crops_are_photos_own_pixels(
    native_share: float, sharp: bool, clean_folder: Path
) -> None:
    grounds = of(clean_folder, native_share=native_share)
    photos = [grounds.clean._decode(path) for path in grounds.clean.groups[0]]
    corners = {tuple(p) for photo in photos for p in photo.reshape(-1, 3).tolist()}
    crop = ((draw(grounds, 1)[0] + 1) * 127.5).round().permute(1, 2, 0).reshape(-1, 3)
    known = np.mean([tuple(p) in corners for p in crop.int().tolist()])
    assert (known == 1) == sharp


def test_of_several_crops_the_one_with_most_detail_is_taken(clean_folder: Path) -> None:
    detail = {}
    for candidates in (1, 6):
        crops = draw(of(clean_folder, candidates=candidates), 60)
        detail[candidates] = float(crops.diff(dim=-1).abs().mean())
    assert detail[6] > 1.1 * detail[1]


@pytest.mark.parametrize("share", ["turned_share", "varied_share"])
def test_grounds_are_of_more_kinds_than_the_photos(share: str, clean_folder: Path) -> None:
    before, after = (draw(of(clean_folder, **{share: value}), 40) for value in (0.0, 1.0))
    assert (before != after).flatten(1).any(dim=1).float().mean() > 0.4


def mined_by_brightness(folder: Path, **changes: Any) -> Grounds:
    """Of a detector that is sure of bright pixels."""
    detector = make_detector(DetectorConfig(channels=(4, 4), blocks=(1, 1)))
    detector.at_two_scales = lambda image: 10 * image[:, :1]  # type: ignore[method-assign]
    return mined(of(folder, **changes), detector)


def test_a_tenth_of_the_candidates_is_kept_the_most_mistaken(clean_folder: Path) -> None:
    found = mined_by_brightness(clean_folder)
    bright = [
        float(((10 * found.candidate(n, SIDE_PX)[0]).sigmoid() - 0.5).clamp(min=0).sum())
        for n in range(40)
    ]
    assert len(found.mined) == 4
    assert min(bright[n] for n in found.mined) >= sorted(bright)[-4]


def test_of_a_detector_that_is_never_mistaken_nothing_is_kept(clean_folder: Path) -> None:
    detector = make_detector(DetectorConfig(channels=(4, 4), blocks=(1, 1)))
    detector.at_two_scales = lambda image: -10 + 0 * image[:, :1]  # type: ignore[method-assign]
    assert mined(of(clean_folder), detector).mined == ()


def test_mined_grounds_are_drawn_at_their_own_size_alone(clean_folder: Path) -> None:
    found = mined_by_brightness(clean_folder, mined_share=1.0)
    known = [found.candidate(n, SIDE_PX) for n in found.mined]
    for ground in draw(found, 20):
        assert any(torch.equal(ground, one) for one in known)
    larger, _ = found.draw(np.random.default_rng(0), 2 * SIDE_PX)
    assert larger.shape == (3, 2 * SIDE_PX, 2 * SIDE_PX)


def test_mining_changes_no_detector(clean_folder: Path) -> None:
    detector = make_detector(PaperDetectorConfig(channels=4)).train()  # with batch norm
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    mined(of(clean_folder), detector)
    assert detector.training
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
