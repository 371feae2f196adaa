"""What a detector learns from: damage that shows, and much that is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.degradation import TextureSet
from oldrestore.mask import make_detector
from oldrestore.train.config import MaskSettings
from oldrestore.train.mask import Detection, LabelledDamage, damaged_crops
from oldrestore.train.presets import preset

SETTINGS = MaskSettings(crop_px=64)


def draw(samples: LabelledDamage, count: int) -> dict[str, torch.Tensor]:
    drawn = [samples.draw(np.random.default_rng([1, i]), 64, i) for i in range(count)]
    return {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}


@pytest.fixture(scope="module")
def crops(clean_folder: Path, old_folder: Path) -> dict[str, torch.Tensor]:
    samples = damaged_crops(SETTINGS, [clean_folder], [old_folder], None, held_out=False)
    return draw(samples, 300)


def test_a_third_of_the_crops_is_undamaged(crops: dict[str, torch.Tensor]) -> None:
    undamaged = ~crops["damaged"].flatten(1).any(dim=1)
    assert 0.27 < float(undamaged.float().mean()) < 0.45


def test_labels_are_the_part_of_the_damage_that_shows(crops: dict[str, torch.Tensor]) -> None:
    assert (crops["label"] <= crops["damaged"]).all()
    assert crops["label"].sum() < crops["damaged"].sum()


def test_held_out_crops_are_of_two_mixes_in_turn(clean_folder: Path) -> None:
    samples = damaged_crops(SETTINGS, [clean_folder], [], None, held_out=True)
    batch = draw(samples, 120)
    assert batch["mix"].tolist() == [0, 1] * 60
    rates = [float(batch["label"][batch["mix"] == mix].mean()) for mix in (0, 1)]
    assert rates[1] < 0.01 < rates[0]


def test_textures_are_held_out_too(clean_folder: Path, tmp_path: Path) -> None:
    names = tuple(f"s/{i}.png" for i in range(100))
    pieces = TextureSet(tmp_path, {"s": names}, ())
    seen, unseen = (
        damaged_crops(SETTINGS, [clean_folder], [], pieces, held_out=held_out).textures
        for held_out in (False, True)
    )
    assert seen is not None
    assert unseen is not None
    assert not set(seen.stickers["s"]) & set(unseen.stickers["s"])


@pytest.mark.parametrize(("native_share", "sharp"), [(1.0, True), (0.0, False)])
def test_native_crops_are_photos_own_pixels(
    native_share: float, sharp: bool, clean_folder: Path
) -> None:
    plain = replace(SETTINGS.degradation, p_undamaged=1.0)
    settings = replace(SETTINGS, degradation=plain, native_share=native_share, distractor_share=0.0)
    samples = damaged_crops(settings, [clean_folder], [], None, held_out=False)
    photos = [samples.clean._decode(path) for path in samples.clean.groups[0]]
    corners = {tuple(p) for photo in photos for p in photo.reshape(-1, 3).tolist()}
    crop = ((draw(samples, 1)["degraded"][0] + 1) * 127.5).round().permute(1, 2, 0).reshape(-1, 3)
    known = np.mean([tuple(p) in corners for p in crop.int().tolist()])
    assert (known == 1) == sharp


def test_what_hardly_shows_teaches_nothing() -> None:
    settings = preset(MaskSettings, "tiny")
    side = Detection(make_detector(settings.network), settings)
    logits = torch.zeros(1, 1, 32, 32, requires_grad=True)
    side.detector.forward = lambda _: logits  # type: ignore[method-assign]
    label, damaged = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    label[..., :8, :] = 1
    damaged[..., :16, :] = 1
    found = side({"degraded": torch.zeros(1, 3, 32, 32), "label": label, "damaged": damaged})
    torch.stack(list(found.values())).sum().backward()
    assert logits.grad is not None
    taught = (logits.grad != 0).any(dim=3)[0, 0]
    assert taught.tolist() == [True] * 8 + [False] * 8 + [True] * 16
