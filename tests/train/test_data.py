from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.train.config import VAESettings
from oldrestore.train.data import (
    PhotoFolders,
    batches,
    crop,
    crop_at,
    family,
    is_held_out,
    smallest_px,
    validation_crop_px,
)
from oldrestore.train.vae import CleanCrops


def settings(**changes: object) -> VAESettings:
    given = {"steps": 6, "batch": 4, "crop_px": 32, "workers": 0} | changes
    return VAESettings(**given)  # type: ignore[arg-type]


@pytest.fixture
def samples(clean_folder: Path) -> CleanCrops:
    return CleanCrops(PhotoFolders([clean_folder], held_out=False, smallest_px=64), 0.5)


def test_a_resumed_run_sees_the_batches_it_would_have_seen(samples: CleanCrops) -> None:
    whole = list(batches(samples, settings()))
    rest = list(batches(samples, settings(), first=4))
    assert len(whole) == 6
    for expected, batch in zip(whole[4:], rest, strict=True):
        assert torch.equal(expected["image"], batch["image"])


def test_processes_share_the_batch_of_one(samples: CleanCrops) -> None:
    whole = next(batches(samples, settings()))
    halves = [next(batches(samples, settings(), rank=r, world=2)) for r in (0, 1)]
    assert torch.equal(whole["image"], torch.cat([h["image"] for h in halves]))
    assert torch.equal(whole["seed"], torch.cat([h["seed"] for h in halves]))


def test_loading_processes_change_nothing(samples: CleanCrops) -> None:
    alone = [b["image"] for b in batches(samples, settings(steps=2))]
    loaded = [b["image"] for b in batches(samples, settings(steps=2, workers=1))]
    assert all(torch.equal(a, b) for a, b in zip(alone, loaded, strict=True))


def test_a_batch_that_does_not_divide_is_refused(samples: CleanCrops) -> None:
    with pytest.raises(ValueError, match="batch: 4 does not divide over 3"):
        batches(samples, settings(), world=3)


def test_late_crops_are_larger() -> None:
    late = settings(steps=100, late_crop_px=64, late_share=0.2)
    assert [crop_at(late, step) for step in (0, 79, 80, 99)] == [32, 32, 64, 64]


def test_held_out_crops_are_twice_as_large_but_not_larger_than_256() -> None:
    assert [validation_crop_px(settings(crop_px=px)) for px in (64, 128, 256)] == [128, 256, 256]
    late = settings(crop_px=128, late_crop_px=192)
    assert [smallest_px(late, held_out=held_out) for held_out in (False, True)] == [192, 256]


def test_crops_are_in_range_and_of_the_size(samples: CleanCrops) -> None:
    for seed in range(20):
        image = samples.draw(np.random.default_rng(seed), 48, seed)["image"]
        assert image.shape == (3, 48, 48)
        assert image.min() >= -1
        assert image.max() <= 1


def test_an_unshrunk_crop_has_the_photos_own_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = crop(pixels, 32, np.random.default_rng(1), smallest_scale=1.0)
    levels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[:, :, 0]
    assert (windows == levels).all(axis=(2, 3, 4)).any() or (windows == levels[:, ::-1]).all(
        axis=(2, 3, 4)
    ).any()


def test_pictures_of_one_scene_stay_in_one_split() -> None:
    scene = [Path(f"prokudin__plate-{c}.jpg") for c in "bgr"]
    assert len({family(p) for p in scene}) == 1
    assert family(Path("roof__crop.jpg")) == family(Path("roof.jpg"))
    assert family(Path("film__market_0012.png")) == family(Path("film__market_0013.png"))
    assert family(Path("cid22__110472.jpg")) != family(Path("cid22__225472.jpg"))


def test_splits_share_nothing(write_photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 24, seed=5)
    paths = sorted(folder.iterdir())
    held_out = [p for p in paths if is_held_out(p)]
    train = PhotoFolders([folder], held_out=False, smallest_px=16)
    assert sorted(train.groups[0]) == [p for p in paths if p not in held_out]


def test_folders_are_drawn_from_equally_often(
    write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    write_photos(tmp_path / "many", 20, seed=2)
    write_photos(tmp_path / "few", 2, seed=3)
    photos = PhotoFolders([tmp_path / "many", tmp_path / "few"], held_out=False, smallest_px=16)
    few = [photos._decode(path) for path in photos.groups[1]]
    rng = np.random.default_rng(0)
    drawn = sum(any(np.array_equal(photos.pick(rng), f) for f in few) for _ in range(200))
    assert 70 < drawn < 130


def test_unreadable_photos_are_skipped_counted_and_named(
    write_photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_photos(tmp_path / "photos", 3, seed=4)
    whole = (folder / "photo_ax.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    photos = PhotoFolders([folder], held_out=False, smallest_px=16)
    assert {p.name for p in photos.unreadable} == {"truncated.png", "empty.jpg", "text.jpg"}
    assert len(photos) == 3
    assert "truncated.png" in caplog.text
    assert "3 of 6 photos skipped" in caplog.text


def test_a_folder_without_photos_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        PhotoFolders([tmp_path / "nowhere"], held_out=False, smallest_px=16)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no readable photo in it \(1 tried\)"):
        PhotoFolders([tmp_path], held_out=False, smallest_px=16)


def test_small_photos_are_enlarged(write_photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 2, seed=6)
    photos = PhotoFolders([folder], held_out=False, smallest_px=300)
    assert min(photos.pick(np.random.default_rng(0)).shape[:2]) == 300
