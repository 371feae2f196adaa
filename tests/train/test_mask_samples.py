"""What a detector learns from: damage that shows, and much that is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.degradation import TextureSet
from oldrestore.mask import make_detector
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import batches
from oldrestore.train.loop import Trainer
from oldrestore.train.mask import (
    Detection,
    LabelledDamage,
    damaged_crops,
    held_out_crops,
    make_stage,
)
from oldrestore.train.presets import preset

SETTINGS = MaskSettings(crop_px=64)
AS_THEY_ARE = replace(SETTINGS, distractor_share=0.0, turned_share=0.0, varied_share=0.0)


def draw(samples: LabelledDamage, count: int) -> dict[str, torch.Tensor]:
    drawn = [samples.draw(np.random.default_rng([1, i]), 64, i) for i in range(count)]
    return {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}


@pytest.fixture(scope="module")
def crops(clean_folder: Path, old_folder: Path) -> dict[str, torch.Tensor]:
    samples = damaged_crops(SETTINGS, [clean_folder], None, old=[old_folder])
    return draw(samples, 300)


def test_a_third_of_the_crops_is_undamaged(crops: dict[str, torch.Tensor]) -> None:
    undamaged = ~crops["damaged"].flatten(1).any(dim=1)
    assert 0.27 < float(undamaged.float().mean()) < 0.45


def test_labels_are_the_part_of_the_damage_that_shows(crops: dict[str, torch.Tensor]) -> None:
    assert (crops["label"] <= crops["damaged"]).all()
    assert crops["label"].sum() < crops["damaged"].sum()


def test_held_out_crops_are_of_two_mixes_in_turn(clean_folder: Path) -> None:
    samples = held_out_crops(SETTINGS, [clean_folder], None)
    batch = draw(samples, 120)
    assert batch["mix"].tolist() == [0, 1] * 60
    rates = [float(batch["label"][batch["mix"] == mix].mean()) for mix in (0, 1)]
    assert rates[1] < 0.01 < rates[0]


def test_textures_are_held_out_too(clean_folder: Path, tmp_path: Path) -> None:
    names = tuple(f"s/{i}.png" for i in range(100))
    pieces = TextureSet(tmp_path, {"s": names}, ())
    seen = damaged_crops(SETTINGS, [clean_folder], pieces).textures
    unseen = held_out_crops(SETTINGS, [clean_folder], pieces).textures
    assert seen is not None
    assert unseen is not None
    assert not set(seen.stickers["s"]) & set(unseen.stickers["s"])


@pytest.mark.parametrize(("native_share", "sharp"), [(1.0, True), (0.0, False)])
def test_native_crops_are_photos_own_pixels(
    native_share: float, sharp: bool, clean_folder: Path
) -> None:
    plain = replace(SETTINGS.degradation, p_undamaged=1.0)
    settings = replace(AS_THEY_ARE, degradation=plain, native_share=native_share)
    samples = damaged_crops(settings, [clean_folder], None)
    photos = [samples.clean._decode(path) for path in samples.clean.groups[0]]
    corners = {tuple(p) for photo in photos for p in photo.reshape(-1, 3).tolist()}
    crop = ((draw(samples, 1)["degraded"][0] + 1) * 127.5).round().permute(1, 2, 0).reshape(-1, 3)
    known = np.mean([tuple(p) in corners for p in crop.int().tolist()])
    assert (known == 1) == sharp


def test_of_several_crops_the_one_with_most_detail_is_taken(clean_folder: Path) -> None:
    sound = replace(SETTINGS.degradation, p_undamaged=1.0)
    detail = {}
    for candidates in (1, 6):
        settings = replace(AS_THEY_ARE, degradation=sound, candidates=candidates)
        grounds = draw(damaged_crops(settings, [clean_folder], None), 60)["ground"]
        detail[candidates] = float(grounds.diff(dim=-1).abs().mean())
    assert detail[6] > 1.1 * detail[1]


@pytest.mark.parametrize("share", ["turned_share", "varied_share"])
def test_grounds_are_of_more_kinds_than_the_photos(share: str, clean_folder: Path) -> None:
    sound = replace(SETTINGS.degradation, p_undamaged=1.0)
    plain, more = (
        replace(AS_THEY_ARE, degradation=sound, **{share: value}) for value in (0.0, 1.0)
    )
    before, after = (
        draw(damaged_crops(x, [clean_folder], None), 40)["ground"] for x in (plain, more)
    )
    assert (before != after).flatten(1).any(dim=1).float().mean() > 0.4


def test_what_hardly_shows_teaches_nothing() -> None:
    settings = preset(MaskSettings, "tiny")
    side = Detection(make_detector(settings.network), settings)
    logits = torch.zeros(1, 1, 32, 32, requires_grad=True)
    side.detector.at_two_scales = lambda _: logits  # type: ignore[method-assign]
    label, damaged = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    label[..., :8, :] = 1
    damaged[..., :16, :] = 1
    image, is_old = torch.zeros(1, 3, 32, 32), torch.tensor([False])
    given = {"degraded": image, "ground": image, "is_old": is_old}
    found = side({**given, "label": label, "damaged": damaged})
    torch.stack(list(found.values())).sum().backward()
    assert logits.grad is not None
    taught = (logits.grad != 0).any(dim=3)[0, 0]
    assert taught.tolist() == [True] * 8 + [False] * 8 + [True] * 16


def test_the_own_damage_of_old_photos_teaches_nothing() -> None:
    settings = preset(MaskSettings, "tiny")
    teacher = make_detector(settings.network)

    def sure_of_bright(image: torch.Tensor) -> torch.Tensor:
        return 10 * image[:, :1]

    teacher.at_two_scales = sure_of_bright  # type: ignore[method-assign]
    side = Detection(make_detector(settings.network), settings, teacher)
    logits = torch.zeros(2, 1, 32, 32, requires_grad=True)
    side.detector.at_two_scales = lambda _: logits  # type: ignore[method-assign]
    none = torch.zeros(2, 1, 32, 32)
    ground = -torch.ones(2, 3, 32, 32)
    ground[..., :4, :] = 1
    given = {"degraded": ground, "ground": ground, "label": none, "damaged": none}
    found = side({**given, "is_old": torch.tensor([True, False])})
    torch.stack(list(found.values())).sum().backward()
    assert logits.grad is not None
    taught = (logits.grad != 0).all(dim=3)[:, 0]
    assert taught[0].tolist() == [False] * 4 + [True] * 28
    assert taught[1].all()  # not a real old one: what is bright there is picture


def test_a_run_that_starts_from_a_detector_has_it_as_teacher(
    clean_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    settings = replace(preset(MaskSettings, "tiny"), steps=2)
    first = make_stage(settings, clean=[clean_folder], old=[old_folder])
    assert not first.judges
    Trainer(first, settings, tmp_path / "first", torch.device("cpu")).save()
    second = make_stage(
        settings, clean=[clean_folder], old=[old_folder], init_from=tmp_path / "first"
    )
    (teacher,) = second.judges
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = Trainer(second, settings, tmp_path / "second", torch.device("cpu"))
    batch = next(batches(second.samples, settings))
    trainer.train_step(batch)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    own = second.networks["mask"].state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in own.items())
