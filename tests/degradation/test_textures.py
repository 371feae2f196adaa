"""Textures of real damage: found by folder, kept by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oldrestore.degradation import Degradation, TextureSet, degrade
from oldrestore.degradation.textures import FilmFrame, Sticker

WHITE = (1.0, 1.0, 1.0)


def test_stickers_and_frames_are_told_apart(textures: TextureSet) -> None:
    assert textures.frames == ("frame.png",)
    assert textures.stickers == {
        "stickers/dots": ("stickers/dots/1.png",),
        "stickers/lint": ("stickers/lint/1.png",),
    }


def test_empty_border_of_a_sticker_is_cut(textures: TextureSet) -> None:
    assert textures.pixels("stickers/dots/1.png").shape == (21, 21)
    assert textures.pixels("frame.png").shape == (800, 1200)
    assert 0.7 < textures.density("stickers/dots/1.png") < 0.9  # pi / 4 for a disc


def test_set_travels_to_a_worker(textures: TextureSet) -> None:
    copy = pickle.loads(pickle.dumps(textures))
    assert copy == textures
    assert np.array_equal(copy.pixels("frame.png"), textures.pixels("frame.png"))


def test_sticker_lies_where_it_is_put(textures: TextureSet) -> None:
    sticker = Sticker("stickers/dots/1.png", (30.0, 70.0), 1.0, 20.0, False, 1.0, WHITE, "hole")
    degraded = degrade(torch.zeros(3, 96, 128), Degradation(96, 128, (sticker,)), textures)
    rows, columns = degraded.mask[0].nonzero(as_tuple=True)
    assert float(rows.float().mean()) == pytest.approx(30, abs=1)
    assert float(columns.float().mean()) == pytest.approx(70, abs=1)
    # a disc of diameter 21
    assert int(degraded.mask.sum()) == pytest.approx(np.pi * 10.5**2, rel=0.15)


def test_frame_covers_a_picture_that_is_larger(textures: TextureSet) -> None:
    # at this scale the frame has 300 x 200 pixels, and is enlarged
    frame = FilmFrame("frame.png", (0.5, 0.5), 0.25, False, 0, 1.0, WHITE, "hole")
    degraded = degrade(torch.zeros(3, 300, 400), Degradation(300, 400, (frame,)), textures)
    # 40 squares of 9 px in 1200 x 800, here 3 px and at most a soft pixel to each side
    share = 40 * 81 / (1200 * 800)
    assert share < float(degraded.mask.mean()) < share * (5 / 3) ** 2
    assert degraded.mask[0, 200:].any()
    assert degraded.mask[0, :, 300:].any()


def test_frame_keeps_its_proportions(textures: TextureSet) -> None:
    # a picture of 400 rows needs the whole height of the frame, however narrow it is
    wide, narrow = (
        degrade(
            torch.zeros(3, 400, width),
            Degradation(
                400, width, (FilmFrame("frame.png", (0, 0), 0.25, False, 0, 1.0, WHITE, "hole"),)
            ),
            textures,
        ).image
        for width in (600, 200)
    )
    # but for the last columns, where the filter sees the cut
    assert torch.equal(wide[:, :, :195], narrow[:, :, :195])


def test_folder_without_textures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG"):
        TextureSet.from_folder(tmp_path)
    with pytest.raises(ValueError, match="PNG"):
        TextureSet.from_folder(tmp_path / "missing")


def test_unreadable_texture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        TextureSet.from_folder(tmp_path)


def test_truncated_texture_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "short.png")
    data = (tmp_path / "short.png").read_bytes()
    (tmp_path / "short.png").write_bytes(data[: len(data) // 2])
    textures = TextureSet.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"short\.png"):
        textures.pixels("short.png")


def test_missing_textures_are_named(textures: TextureSet) -> None:
    sticker = Sticker("stickers/dots/9.png", (5.0, 5.0), 1.0, 0.0, False, 1.0, WHITE, "hole")
    degradation = Degradation(16, 16, (sticker,))
    with pytest.raises(ValueError, match=r"stickers/dots/9\.png"):
        degrade(torch.zeros(3, 16, 16), degradation, textures)
    with pytest.raises(ValueError, match="textures"):
        degrade(torch.zeros(3, 16, 16), degradation)
