"""Every published stage, at its `paper-tiny` preset, learns; together they make a file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import oldrestore
from oldrestore.checkpoint import read_checkpoint
from oldrestore.train import mapping, mask, vae
from oldrestore.train.config import LoopSettings, MappingSettings, MaskSettings, VAESettings
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.presets import preset
from oldrestore.train.release import write_release

Lines = list[dict[str, float]]
SHORT = {"steps": 50, "crop_px": 48, "validate_every": 50, "sheet_every": 50}


def _train(stage: Stage, settings: LoopSettings, folder: Path) -> tuple[Lines, Lines]:
    """Train to the end; losses, and figures of the held-out crops before and after."""
    trainer = Trainer(stage, settings, folder, torch.device("cpu"))
    trainer.run(until=1)
    trainer.run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if any(name.startswith("validation/") for name in line)]
    return [line for line in lines if "lr" in line], held_out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def vaes(runs: Path, clean_folder: Path, old_folder: Path) -> dict[str, tuple[Lines, Lines]]:
    found = {}
    for domain in ("clean", "old"):
        settings = replace(preset(VAESettings, "paper-tiny", domain), **SHORT)  # type: ignore[arg-type]
        stage = vae.make_stage(settings, clean=[clean_folder], old=[old_folder])
        found[domain] = _train(stage, settings, runs / domain)
    return found


@pytest.fixture(scope="module")
def mappings(vaes: object, runs: Path, clean_folder: Path) -> dict[str, tuple[Lines, Lines]]:
    found = {}
    for variant in ("scratch", "hr", "quality"):
        settings = replace(preset(MappingSettings, "paper-tiny", variant), **SHORT | {"steps": 45})  # type: ignore[arg-type]
        stage = mapping.make_stage(
            settings, clean=[clean_folder], vae_old=runs / "old", vae_clean=runs / "clean"
        )
        found[variant] = _train(stage, settings, runs / variant)
    return found


@pytest.fixture(scope="module")
def detector(runs: Path, clean_folder: Path) -> tuple[Lines, Lines]:
    settings = replace(preset(MaskSettings, "paper-tiny"), steps=100)
    stage = mask.make_stage(settings, clean=[clean_folder])
    return _train(stage, settings, runs / "mask")


@pytest.mark.parametrize(("domain", "figure"), [("clean", "psnr"), ("old", "psnr_real")])
def test_the_vaes_learn_to_reconstruct_without_a_pixel_loss(
    vaes: dict[str, tuple[Lines, Lines]], domain: str, figure: str
) -> None:
    losses, held_out = vaes[domain]
    assert "reconstruction" not in losses[0]
    assert held_out[-1][f"validation/{figure}"] > held_out[0][f"validation/{figure}"] + 1
    for name in ("kl", "lsgan", "feature_matching"):
        assert losses[-1][name] < 0.95 * losses[0][name], name


def test_only_the_old_domain_has_a_judge_of_latents(
    vaes: dict[str, tuple[Lines, Lines]],
) -> None:
    old, clean = vaes["old"][0], vaes["clean"][0]
    assert old[-1]["latent_adversary"] < old[0]["latent_adversary"]
    assert "latent_adversary" not in clean[0]


@pytest.mark.parametrize("variant", ["scratch", "hr", "quality"])
def test_the_mappings_learn_to_reach_the_clean_latents(
    mappings: dict[str, tuple[Lines, Lines]], variant: str
) -> None:
    losses, held_out = mappings[variant]
    assert losses[-1]["plain_latent"] < 0.9 * losses[0]["plain_latent"]
    assert losses[-1]["lsgan"] < 0.9 * losses[0]["lsgan"]
    assert "pixel" not in losses[0]
    assert ("validation/psnr_holes" in held_out[-1]) == (variant != "quality")
    assert all(np.isfinite(value) for line in held_out for value in line.values())


def test_the_detector_learns_to_find_damage(detector: tuple[Lines, Lines]) -> None:
    losses, held_out = detector
    best = [line["validation/ordinary_f1_best"] for line in held_out]
    assert best[-1] > best[0] + 0.05
    assert losses[-1]["cross_entropy"] < losses[0]["cross_entropy"]
    assert losses[-1]["focal"] < 0.8 * losses[0]["focal"]
    assert "dice" not in losses[0]


@pytest.mark.parametrize("variant", ["scratch", "hr", "quality"])
def test_the_stages_together_restore(
    mappings: object, detector: object, runs: Path, tmp_path: Path, variant: str
) -> None:
    weights = tmp_path / "tiny.safetensors"
    write_release(weights, mapping=runs / variant, mask=runs / "mask", about={})
    assert read_checkpoint(weights).about == {"mapping_steps": 45, "mask_steps": 100}
    restorer = oldrestore.Restorer.load(weights)
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    restored = restorer.restore(photo)
    assert restored.image.shape == photo.shape
    assert not np.array_equal(restored.image, photo)


@pytest.mark.parametrize("stage", ["vae", "mapping"])
def test_vgg_takes_part_where_its_file_is_given(
    stage: str, vgg_weights: Path, paper_weights: Path, clean_folder: Path, tmp_path: Path
) -> None:
    short = {"steps": 1, "batch": 2, "crop_px": 32, "log_every": 1, "perceptual": 10.0}
    if stage == "vae":
        settings: LoopSettings = replace(preset(VAESettings, "paper-tiny"), **short)  # type: ignore[arg-type]
        made = vae.make_stage(settings, clean=[clean_folder], backbone=vgg_weights)  # type: ignore[arg-type]
    else:
        settings = replace(preset(MappingSettings, "paper-tiny"), **short)  # type: ignore[arg-type]
        made = mapping.make_stage(
            settings,  # type: ignore[arg-type]
            clean=[clean_folder],
            backbone=vgg_weights,
            init_from=paper_weights,
        )
    (vgg,) = made.judges  # what the loop brings to the device of the networks
    before = [value.clone() for value in vgg.state_dict().values()]
    trained = sum(p.numel() for p in made.players[stage].module.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in made.networks[stage].parameters())
    losses, _ = _train(made, settings, tmp_path)
    assert losses[0]["perceptual"] > 0
    after = vgg.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
