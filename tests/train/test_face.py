"""The stage "face" learns on a CPU, keeps what it made, and its release is what restoring reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.face.align import TEMPLATE
from oldrestore.face.detect import Face
from oldrestore.face.enhancer import FaceConfig, FaceEnhancer
from oldrestore.face.network import FaceNetwork
from oldrestore.train import face
from oldrestore.train.cli import app
from oldrestore.train.config import FaceSettings
from oldrestore.train.loop import Trainer
from oldrestore.train.presets import preset


class Middle:
    """Takes the middle of every photo for a face."""

    def detect(self, image: Tensor) -> list[Face]:
        height, width = image.shape[1:]
        points = (TEMPLATE - 0.5) * min(height, width) * 0.8 + (width / 2, height / 2)
        return [Face((0, 0, width, height), tuple(map(tuple, points.tolist())), 0.9)]


class Blind:
    def detect(self, image: Tensor) -> list[Face]:
        return []


def test_it_learns_and_its_release_is_read(
    clean_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = preset(FaceSettings, "tiny")
    blur = replace(
        settings.degradation,
        p_undamaged=0.0,
        p_structured=0.0,
        p_noise=0.0,
        p_grain=0.0,
        p_jpeg=0.0,
        p_resampling=0.0,
        p_grey=0.0,
        p_blur=1.0,
        severity=(1.0, 1.0),
        blur_sigma_px=(1.5, 1.6),
    )
    settings = replace(settings, degradation=blur, smallest_scale=1.0, steps=150, lr=4e-3, ema=0.9)
    stage = face.make_stage(settings, clean=[clean_folder], weights=weights, detector=Middle())
    # tiny, untrained networks spoil a photo: what is learnt here is to mend a blur
    object.__setattr__(stage.samples.restorer, "restore_tensor", lambda image, mask: image)  # type: ignore[attr-defined]
    folder = tmp_path / "face"
    Trainer(stage, settings, folder, torch.device("cpu")).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "validation/psnr_after" in line][-1]
    assert last["validation/psnr_after"] > last["validation/psnr_before"] + 0.15
    output = tmp_path / "faces.safetensors"
    app(
        ["release-face", str(output), "--face", str(folder)],
        exit_on_error=False,
        result_action="return_value",
    )
    loaded = FaceNetwork.load(output, torch.device("cpu"))
    assert loaded.about["face_steps"] == 150
    assert loaded.side_px == settings.crop_px
    crop = torch.zeros(1, 3, 64, 64)
    assert loaded.enhance(crop).shape == crop.shape
    going_on = face.make_stage(
        settings, clean=[clean_folder], weights=weights, detector=Middle(), init_from=output
    ).networks["face"]
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(going_on.state_dict()[name], value)


def test_the_judge_sees_both_in_one_view_and_all_views_are_drawn(
    clean_folder: Path, weights: Path
) -> None:
    settings = preset(FaceSettings, "tiny")
    samples = face.make_stage(
        settings, clean=[clean_folder], weights=weights, detector=Middle()
    ).samples
    rng = np.random.default_rng(0)
    views = torch.stack([samples.draw(rng, settings.crop_px, i)["view"] for i in range(60)])
    assert set(views[:, 0].tolist()) == set(range(8))
    assert set(views[:, 1].tolist()) == set(range(6))
    crops = torch.rand(2, 3, 192, 192)
    assert torch.equal(face.seen_as(crops, torch.zeros(5, dtype=torch.int64)), crops)
    seen = face.seen_as(crops, torch.tensor([5, 3, 2, 7, 1]))
    assert seen.shape == (2, 3, 92, 95)  # a quarter turn of 190 x 185, halved
    assert set(face.ORDERS[3]) == {0, 1, 2}
    means = crops[:, list(face.ORDERS[3]), 2:, 7:].mean(dim=(2, 3))
    torch.testing.assert_close(seen.mean(dim=(2, 3)), means, atol=0.01, rtol=0)


def test_a_sample_is_made_once_and_is_the_same_again(clean_folder: Path, weights: Path) -> None:
    settings = preset(FaceSettings, "tiny")
    samples = [
        face.make_stage(settings, clean=[clean_folder], weights=weights, detector=Middle()).samples
        for _ in range(2)
    ]
    first, again = (one.draw(np.random.default_rng(3), 64, 0) for one in samples)
    assert torch.equal(first["image"], again["image"])
    assert first["image"].shape == first["target"].shape == (3, 64, 64)
    made = samples[0]._made  # type: ignore[attr-defined]
    assert len(made) == 1
    samples[0].draw(np.random.default_rng(3), 64, 1)
    assert len(made) == 1


def test_portraits_without_a_face_are_named(clean_folder: Path, weights: Path) -> None:
    settings = preset(FaceSettings, "tiny")
    stage = face.make_stage(settings, clean=[clean_folder], weights=weights, detector=Blind())
    with pytest.raises(ValueError, match="no face found in 100 photos"):
        stage.samples.draw(np.random.default_rng(0), 64, 0)


def test_settings_that_make_no_sense_are_named(clean_folder: Path, weights: Path) -> None:
    settings = replace(preset(FaceSettings, "tiny"), crop_px=80, network=FaceConfig())
    with pytest.raises(ValueError, match="crop_px: expected a multiple of 32"):
        face.make_stage(settings, clean=[clean_folder], weights=weights, detector=Middle())
    with pytest.raises(ValueError, match="paper has no face stage"):
        preset(FaceSettings, "paper")


def test_the_network_fits_its_file_and_starts_as_the_identity() -> None:
    network = FaceEnhancer(FaceConfig())
    assert 2 * sum(p.numel() for p in network.parameters()) < 6e6  # bytes of float16
    crop = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(network(crop), crop)
    with pytest.raises(ValueError, match=r"\(B, 3, S, S\), S a multiple of 32"):
        network(torch.zeros(1, 3, 100, 100))
    with pytest.raises(ValueError, match="channels, blocks"):
        FaceConfig(channels=(4, 8), blocks=(1,))
