"""Every stage, at its `tiny` preset, measurably learns; together they make a file that restores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import oldrestore
from oldrestore.checkpoint import read_checkpoint
from oldrestore.train import denoise, mapping, mask, tone, vae
from oldrestore.train.config import (
    DenoiseSettings,
    LoopSettings,
    MappingSettings,
    MaskSettings,
    ToneSettings,
    VAESettings,
)
from oldrestore.train.data import Batch, fixed_batch
from oldrestore.train.finder import Finder
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.presets import preset
from oldrestore.train.release import write_release

Figures = dict[str, float]


def _train(stage: Stage, settings: LoopSettings, folder: Path) -> tuple[Figures, Figures]:
    """Train to the end; validation figures of the first and of the last step."""
    trainer = Trainer(stage, settings, folder, torch.device("cpu"))
    trainer.run(until=1)
    trainer.run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [
        {k.removeprefix("validation/"): v for k, v in line.items()}
        for line in lines
        if any(name.startswith("validation/") for name in line)
    ]
    return figures[0], figures[-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def clean_vae(runs: Path, clean_folder: Path) -> tuple[Figures, Figures]:
    settings = preset(VAESettings, "tiny")
    stage = vae.make_stage(settings, clean=[clean_folder])
    return _train(stage, settings, runs / "clean")


@pytest.fixture(scope="module")
def old_vae(
    clean_vae: object, runs: Path, clean_folder: Path, old_folder: Path
) -> tuple[Figures, Figures]:
    settings = replace(preset(VAESettings, "tiny"), domain="old", steps=80)
    stage = vae.make_stage(
        settings, clean=[clean_folder], old=[old_folder], init_from=runs / "clean"
    )
    return _train(stage, settings, runs / "old")


@pytest.fixture(scope="module")
def mapped(old_vae: object, runs: Path, clean_folder: Path) -> tuple[Figures, Figures]:
    settings = replace(preset(MappingSettings, "tiny"), trains="all")
    stage = mapping.make_stage(
        settings, clean=[clean_folder], vae_old=runs / "old", vae_clean=runs / "clean"
    )
    return _train(stage, settings, runs / "mapping")


@pytest.fixture(scope="module")
def detector(runs: Path, clean_folder: Path) -> tuple[Figures, Figures]:
    settings = preset(MaskSettings, "tiny")
    return _train(mask.make_stage(settings, clean=[clean_folder]), settings, runs / "mask")


@pytest.fixture(scope="module")
def toned(runs: Path, clean_folder: Path) -> tuple[Figures, Figures]:
    settings = preset(ToneSettings, "tiny")
    return _train(tone.make_stage(settings, clean=[clean_folder]), settings, runs / "tone")


@pytest.fixture(scope="module")
def denoising(
    mapped: object, detector: object, toned: object, runs: Path, clean_folder: Path
) -> tuple[Figures, Figures]:
    weights = runs / "before.safetensors"
    write_release(
        weights, mapping=runs / "mapping", mask=runs / "mask", tone=runs / "tone", about={}
    )
    settings = preset(DenoiseSettings, "tiny")
    stage = denoise.make_stage(settings, clean=[clean_folder], weights=weights)
    return _train(stage, settings, runs / "denoise")


def test_the_clean_vae_learns_to_reconstruct(clean_vae: tuple[Figures, Figures]) -> None:
    first, last = clean_vae
    assert last["psnr"] > first["psnr"] + 6


def test_the_old_vae_learns_real_photos_too(old_vae: tuple[Figures, Figures]) -> None:
    first, last = old_vae
    assert last["psnr_real"] > first["psnr_real"]


def test_the_mapping_learns_to_mend(mapped: tuple[Figures, Figures]) -> None:
    first, last = mapped
    assert last["psnr"] > first["psnr"] + 1


def test_the_detector_learns_to_find_damage(detector: tuple[Figures, Figures]) -> None:
    first, last = detector
    assert last["ordinary_f1_best"] > first["ordinary_f1_best"] + 0.3


def test_the_tone_head_learns_to_undo_fading(toned: tuple[Figures, Figures]) -> None:
    _, last = toned
    assert last["faded_after"] > last["faded_before"]


def test_the_denoise_head_learns_which_photos_need_the_networks(
    denoising: tuple[Figures, Figures],
) -> None:
    _, last = denoising
    assert last["psnr_fixed"] < last["psnr_chosen"] <= last["psnr_best"]


def test_the_stages_together_restore(
    mapped: object,
    detector: object,
    toned: object,
    denoising: object,
    runs: Path,
    tmp_path: Path,
) -> None:
    weights = tmp_path / "tiny.safetensors"
    write_release(
        weights,
        mapping=runs / "mapping",
        mask=runs / "mask",
        tone=runs / "tone",
        denoise=runs / "denoise",
        about={"data": "drawn by the tests"},
    )
    checkpoint = read_checkpoint(weights)
    assert not any("vae_clean.encoder" in key or "logvar" in key for key in checkpoint.tensors)
    restorer = oldrestore.Restorer.load(weights)
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    restored = restorer.restore(photo)
    assert isinstance(restored.image, np.ndarray)
    assert restored.image.shape == photo.shape
    (share,) = restored.denoise
    assert 0 <= share <= 1
    hole = np.zeros((70, 90), np.uint8)
    hole[20:30, 20:60] = 1
    mended = restorer.restore(photo, mask=hole, denoise=0.5).image
    assert isinstance(mended, np.ndarray)
    changed = (mended != photo).any(axis=2)
    assert changed[hole > 0].mean() > 0.9
    assert changed[hole == 0].any()
    assert checkpoint.about["denoise_steps"] == preset(DenoiseSettings, "tiny").steps


@pytest.fixture(scope="module")
def released(mapped: object, detector: object, toned: object, runs: Path) -> Path:
    weights = runs / "released.safetensors"
    parts = {name: runs / name for name in ("mapping", "mask", "tone")}
    write_release(weights, **parts, about={}, defaults={"threshold": 0.3})
    return weights


def test_masks_of_a_detector_are_those_of_restoring(released: Path) -> None:
    restorer = oldrestore.Restorer.load(released, "cpu")
    image = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image[:, :, 20:23] = 1.0
    found = Finder(released)(image)
    assert torch.equal(found, restorer.detect_tensor(image, 0.3))
    assert 0 < found.mean() < 1


def test_a_share_of_the_samples_has_a_detectors_mask(
    released: Path, clean_folder: Path, tmp_path: Path
) -> None:
    settings = replace(
        preset(MappingSettings, "tiny"), trains="all", detected_share=0.5, steps=3, hole_weight=50.0
    )
    stage = mapping.make_stage(
        settings,
        clean=[clean_folder],
        vae_old=released.parent / "old",
        vae_clean=released.parent / "clean",
        detector=released,
    )
    (finder,) = stage.judges
    assert isinstance(finder, Finder)
    drawn = [
        stage.samples.draw(np.random.default_rng(i), settings.crop_px, i)["is_detected"]
        for i in range(40)
    ]
    assert 10 < sum(map(int, drawn)) < 30

    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hole = torch.zeros(2, 1, 64, 64)
    hole[..., 8:24, 8:24] = 1
    pair = {"degraded": image, "mask": hole, "target": image.where(hole == 0, -image)}
    finder.threshold = 1.0  # finds nothing: the second sample's hole is not filled

    def loss(*is_detected: bool) -> torch.Tensor:
        batch = pair | {"is_detected": torch.tensor(is_detected)}
        return stage.players["mapping"].module(batch)["pixel"]

    assert loss(False, True) != loss(False, False)
    # what the detector missed counts as a hole: nearly all of the loss is there
    sound = torch.zeros_like(hole)
    unmarked = pair | {"mask": sound, "is_detected": torch.tensor([True, True])}
    assert loss(True, True) > 2 * stage.players["mapping"].module(unmarked)["pixel"]

    first, last = _train(stage, settings, tmp_path)
    assert {"psnr", "psnr_detected"} <= first.keys() & last.keys()
    assert first["psnr_detected"] != first["psnr"]


def test_what_a_mapping_needs_besides_is_named(
    old_vae: object, runs: Path, clean_folder: Path
) -> None:
    plain = replace(preset(MappingSettings, "tiny"), trains="all")
    vaes = {"vae_old": runs / "old", "vae_clean": runs / "clean"}
    with pytest.raises(ValueError, match="detector: a share of the samples"):
        mapping.make_stage(replace(plain, detected_share=0.5), clean=[clean_folder], **vaes)
    with pytest.raises(ValueError, match="detected_share: expected 0 to 1, got 2"):
        replace(plain, detected_share=2)
    with pytest.raises(ValueError, match="expected a weights file of compact"):
        Finder(runs / "old")


def test_real_photos_hold_the_old_encoder(
    old_vae: object, runs: Path, clean_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    settings = replace(
        preset(MappingSettings, "tiny"),
        trains="all",
        latent_adversary=0.1,
        real_reconstruction=1.0,
        steps=4,
    )
    stage = mapping.make_stage(
        settings,
        clean=[clean_folder],
        old=[old_folder],
        vae_old=runs / "old",
        vae_clean=runs / "clean",
    )
    assert set(stage.players) == {"mapping", "latent_discriminator"}
    module, old = stage.players["mapping"].module, stage.networks["vae_old"]

    def gradients(name: str, batch: Batch) -> dict[str, float]:
        stage.networks.zero_grad()
        module(batch)[name].backward()
        sums: dict[str, float] = {}
        for key, value in old.named_parameters():
            part = key.split(".")[0]
            sums[part] = sums.get(part, 0.0) + float(
                0 if value.grad is None else value.grad.abs().sum()
            )
        return sums

    batch = fixed_batch(stage.samples, 2, settings.crop_px)
    pushed = gradients("latent_adversary", batch)
    assert pushed["encoder"] > 0
    assert pushed["decoder"] == 0
    shown_again = gradients("real_reconstruction", batch)
    assert shown_again["encoder"] > 0
    assert shown_again["decoder"] > 0
    # what is synthetic is the goal, and is not moved
    other = batch | {"degraded": batch["degraded"].flip(-1)}
    assert gradients("latent_adversary", other) == pushed

    _train(stage, replace(settings, log_every=2), tmp_path)
    logged = (tmp_path / "metrics.jsonl").read_text()
    for name in ("latent_adversary", "real_reconstruction", "latent_discriminator"):
        assert name in logged


def test_real_photos_without_a_loss_are_refused_and_the_other_way_round(
    old_vae: object, runs: Path, clean_folder: Path, old_folder: Path
) -> None:
    plain = replace(preset(MappingSettings, "tiny"), trains="all")
    folders = {"clean": [clean_folder], "vae_old": runs / "old", "vae_clean": runs / "clean"}
    with pytest.raises(ValueError, match="old: no loss is about real old photos"):
        mapping.make_stage(plain, old=[old_folder], **folders)
    with pytest.raises(ValueError, match="old: latent_adversary and real_reconstruction are about"):
        mapping.make_stage(replace(plain, latent_adversary=0.1), **folders)
    with pytest.raises(ValueError, match="expected trains 'all', got 'mapping'"):
        replace(plain, trains="mapping", real_reconstruction=1.0)


def test_a_frozen_mapping_stage_leaves_both_vaes_alone(
    old_vae: object, runs: Path, clean_folder: Path, tmp_path: Path
) -> None:
    settings = replace(preset(MappingSettings, "tiny"), trains="mapping", steps=2)
    stage = mapping.make_stage(
        settings, clean=[clean_folder], vae_old=runs / "old", vae_clean=runs / "clean"
    )
    before = {k: v.clone() for k, v in stage.networks.state_dict().items()}
    Trainer(stage, settings, tmp_path, torch.device("cpu")).run()
    changed = {
        k.split(".")[0]
        for k, v in stage.networks.state_dict().items()
        if not torch.equal(v, before[k])
    }
    assert changed == {"mapping"}


def test_real_latents_are_pushed_and_synthetic_ones_are_not(
    clean_folder: Path, old_folder: Path
) -> None:
    settings = replace(preset(VAESettings, "tiny"), domain="old", reconstruction=0.0, kl=0.0)
    stage = vae.make_stage(settings, clean=[clean_folder], old=[old_folder])
    player = stage.players["vae"]
    image = torch.rand(4, 3, 32, 32) * 2 - 1
    image.requires_grad_(True)
    batch = {
        "image": image,
        "is_real": torch.tensor([True, False, True, False]),
        "seed": torch.arange(4),
    }
    player.module(batch)["latent_adversary"].backward()
    assert image.grad is not None
    moved = image.grad.abs().amax(dim=(1, 2, 3)) > 0
    assert moved.tolist() == [True, False, True, False]


def _restored(weights: Path, *, use_nonlocal: bool) -> torch.Tensor:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:40, 16:40] = 1
    return oldrestore.Restorer.load(weights).restore_tensor(image, mask, use_nonlocal=use_nonlocal)


def test_a_mapping_trained_without_its_nonlocal_block_restores_without(
    old_vae: object, detector: object, toned: object, runs: Path, clean_folder: Path, tmp_path: Path
) -> None:
    for use_nonlocal in (True, False):
        settings = replace(
            preset(MappingSettings, "tiny"), trains="all", steps=3, use_nonlocal=use_nonlocal
        )
        stage = mapping.make_stage(
            settings, clean=[clean_folder], vae_old=runs / "old", vae_clean=runs / "clean"
        )
        run, weights = tmp_path / str(use_nonlocal), tmp_path / f"{use_nonlocal}.safetensors"
        Trainer(stage, settings, run, torch.device("cpu")).run()
        write_release(weights, mapping=run, mask=runs / "mask", tone=runs / "tone", about={})
        both = [_restored(weights, use_nonlocal=use) for use in (True, False)]
        assert torch.equal(*both) != use_nonlocal


def test_one_network_end_to_end_learns_from_random_numbers(
    detector: object, toned: object, runs: Path, clean_folder: Path, tmp_path: Path
) -> None:
    settings = replace(preset(MappingSettings, "tiny"), trains="end-to-end", latent=0.0, steps=60)
    stage = mapping.make_stage(settings, clean=[clean_folder])
    first, last = _train(stage, settings, tmp_path / "run")
    assert last["psnr"] > first["psnr"] + 3
    weights = tmp_path / "whole.safetensors"
    write_release(
        weights, mapping=tmp_path / "run", mask=runs / "mask", tone=runs / "tone", about={}
    )
    assert _restored(weights, use_nonlocal=True).isfinite().all()


def test_end_to_end_takes_nothing_and_compares_no_latents(runs: Path, clean_folder: Path) -> None:
    with pytest.raises(ValueError, match="there are no latents to compare with"):
        replace(preset(MappingSettings, "tiny"), trains="end-to-end")
    settings = replace(preset(MappingSettings, "tiny"), trains="end-to-end", latent=0.0)
    with pytest.raises(ValueError, match="vae_old: trained end-to-end, all starts from random"):
        mapping.make_stage(settings, clean=[clean_folder], vae_old=runs / "old")
    other = replace(settings, vae=replace(settings.vae, latent_channels=8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vae: of preset compact with 8 channels"):
        mapping.make_stage(other, clean=[clean_folder])


def test_published_mappings_cannot_be_trained_without_their_block(
    clean_folder: Path, paper_weights: Path
) -> None:
    settings = replace(preset(MappingSettings, "paper-tiny", "scratch"), use_nonlocal=False)
    with pytest.raises(ValueError, match="use_nonlocal: only the mapping of compact"):
        mapping.make_stage(settings, clean=[clean_folder], init_from=paper_weights)
