"""A refiner is taught, lies in the file, and is left behind where a detector is trained on."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from oldrestore.checkpoint import read_checkpoint, write_checkpoint
from oldrestore.mask import DetectorConfig
from oldrestore.perceptual import load_backbone
from oldrestore.pipeline import Restorer
from oldrestore.refiner import Refiner, Trunk
from oldrestore.train import mask
from oldrestore.train.cli import app
from oldrestore.train.config import MaskSettings
from oldrestore.train.presets import preset
from oldrestore.train.refiner import Cells, learn, load_trunk, refine
from oldrestore.train.state import check_settings
from oldrestore.train.threshold import choose_threshold

SETTINGS = replace(preset(MaskSettings, "tiny"), crop_px=64, workers=0)
LAYERS = (1, 3, 6, 13)  # of MobileNetV2, whose maps are taken
Teach = Callable[..., Path]


@pytest.fixture
def teach(weights: Path, mobilenet_file: Path, clean_folder: Path, tmp_path: Path) -> Teach:
    def run(name: str = "refined.safetensors", **changes: object) -> Path:
        path = tmp_path / name
        asked = {"weights": weights, "clean": [clean_folder], "crops": 8, "steps": 20, "width": 8}
        settings = changes.pop("settings", SETTINGS)
        given = {"backbone": mobilenet_file, **asked, **changes}
        refine(path, settings, **given)  # type: ignore[arg-type]
        return path

    return run


def test_the_trunk_sees_what_mobilenet_sees(mobilenet_file: Path) -> None:
    trunk = Trunk()
    load_trunk(trunk, mobilenet_file)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        found = trunk(image)
        x, expected = trunk.normalised(image), []
        for index, layer in enumerate(load_backbone(mobilenet_file).trunk):
            x = layer(x)
            if index in LAYERS:
                expected.append(x)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_everything_else_stays_as_it_was(teach: Teach, weights: Path) -> None:
    before, after = read_checkpoint(weights), read_checkpoint(teach())
    new = after.tensors.keys() - before.tensors.keys()
    assert new
    assert all(key.startswith("mask.refiner.") for key in new)
    assert all(torch.equal(value, after.tensors[key]) for key, value in before.tensors.items())
    assert after.config["mask"].pop("refiner") == 8
    del before.config["mask"]["refiner"]
    assert after.config == before.config
    assert after.about == before.about


def test_the_file_restores_and_finds_otherwise(teach: Teach, weights: Path) -> None:
    photo = torch.rand(1, 3, 50, 70) * 2 - 1
    found = [Restorer.load(path).damage_probability(photo) for path in (weights, teach())]
    assert found[0].shape == found[1].shape == (1, 1, 50, 70)
    assert (found[0] - found[1]).abs().max() > 1e-4
    Restorer.load(teach()).restore((photo[0] + 1) / 2)


def test_the_same_seed_teaches_the_same(teach: Teach, old_folder: Path) -> None:
    def taught(name: str, seed: int) -> dict[str, torch.Tensor]:
        path = teach(name, old=[old_folder], settings=replace(SETTINGS, seed=seed))
        return read_checkpoint(path).tensors

    first, again, other = (taught(f"{n}.safetensors", seed) for n, seed in enumerate((0, 0, 1)))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["mask.refiner.hidden.weight"], other["mask.refiner.hidden.weight"])


def test_what_is_learnt_of_standardised_features_is_what_the_refiner_does() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    refiner = Refiner(16)
    width = sum(refiner.trunk.widths) + 8
    seen = (torch.randn(4000, width, generator=generator) * 3 + 1).half()
    labels = (seen[:, :4].float() > 1).float()  # damage shows in the first features
    logits = torch.randn(4000, 4, generator=generator)
    cells = Cells(seen, logits, labels, torch.ones(4000, 4))
    report = learn(refiner, cells, steps=300, seed=0)
    assert report["cells"] == 4000
    assert report["before"] > 0.7
    assert report["after"] < 0.3
    # the same through the refiner's own layers
    parts = torch.split(seen.float().T[None, :, :, None], [*refiner.trunk.widths, 8], dim=1)
    with torch.no_grad():
        sums = [take(x) for take, x in zip(refiner.take, parts, strict=False)]
        change = refiner.judged(sum(sums) + refiner.see(parts[-1]))
    cell = change[0, :, :, 0].T
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits + cell, labels)
    assert float(loss) == pytest.approx(report["after"], abs=1e-4)


def test_a_detector_that_is_trained_on_leaves_its_refiner(teach: Teach, clean_folder: Path) -> None:
    refined = teach()
    layout = DetectorConfig(channels=(4, 8), blocks=(1, 1))
    settings = replace(SETTINGS, network=layout)
    stage = mask.make_stage(settings, clean=[clean_folder], init_from=refined)
    tensors = read_checkpoint(refined).tensors
    for key, value in stage.networks["mask"].state_dict().items():
        assert torch.equal(value, tensors[f"mask.{key}"].float()), key
    with_one = replace(settings, network=replace(layout, refiner=8))
    with pytest.raises(ValueError, match=r"network\.refiner: train without"):
        mask.make_stage(with_one, clean=[clean_folder])
    found = choose_threshold(refined, settings, clean=[clean_folder], crops=6)
    assert 0 <= found["threshold"] < 1
    teach("again.safetensors", weights=refined)  # a new one takes the place of the old


def test_files_and_runs_from_before_there_were_refiners_have_none(
    weights: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(weights)
    del checkpoint.config["mask"]["refiner"]
    older = tmp_path / "older.safetensors"
    write_checkpoint(older, checkpoint.tensors, checkpoint.config, checkpoint.about)
    detector = Restorer.load(older).detector
    assert detector is not None
    assert detector.refiner is None
    written = json.loads(json.dumps(asdict(SETTINGS)))
    del written["network"]["refiner"]
    check_settings(written, SETTINGS, tmp_path)


def test_what_cannot_be_is_said(
    teach: Teach, weights: Path, vgg_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="crop_px: expected a multiple of 16, got 40"):
        teach(settings=replace(SETTINGS, crop_px=40))
    with pytest.raises(ValueError, match="batches: expected at least 1, got 0"):
        teach(steps=0)
    with pytest.raises(ValueError, match="its folder does not exist"):
        teach("nowhere/refined.safetensors")
    with pytest.raises(ValueError, match="holds vgg19, got 'mobilenet_v2'"):
        teach(backbone=vgg_weights)
    sure = read_checkpoint(weights)
    sure.tensors["mask.tail.0.bias"] -= 100
    write_checkpoint(tmp_path / "sure.safetensors", sure.tensors, sure.config, sure.about)
    with pytest.raises(ValueError, match="nothing suspect in 4 of them"):
        teach(weights=tmp_path / "sure.safetensors", crops=4)
    with pytest.raises(FileNotFoundError):
        teach(weights=tmp_path / "none.safetensors")
    assert not (tmp_path / "refined.safetensors").exists()


def test_the_command_says_what_it_learnt(
    weights: Path,
    mobilenet_file: Path,
    clean_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "refined.safetensors"
    arguments = f"--init-from {weights} --backbone {mobilenet_file} --clean {clean_folder}"
    sizes = "--crop-px 64 --crops 6 --batches 10 --width 8 --workers 0"
    app(["refiner", str(output), *arguments.split(), *sizes.split()], result_action="return_value")
    said = json.loads(capsys.readouterr().out)
    assert said["cells"] > 0
    assert Restorer.load(output).config.mask.refiner == 8  # type: ignore[union-attr]
