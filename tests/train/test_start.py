"""Stages start from runs and from weights files, and give files to restore with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import oldrestore
from oldrestore.checkpoint import read_checkpoint, write_checkpoint
from oldrestore.fill import paint_white
from oldrestore.mapping import MappingConfig, MappingNetwork, PaperMappingConfig
from oldrestore.mask import DetectorConfig, PaperDetector
from oldrestore.ops import set_backend
from oldrestore.pipeline import Restorer
from oldrestore.train import mapping, mask, vae
from oldrestore.train.config import MappingSettings, MaskSettings, VAESettings
from oldrestore.train.data import fixed_batch
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.presets import preset
from oldrestore.train.release import write_release
from oldrestore.train.state import read_source, read_state

CPU = torch.device("cpu")
MappingStage = Callable[..., Stage]


@pytest.fixture
def mapping_stage(clean_folder: Path) -> MappingStage:
    def make(init_from: Path | None, variant: str = "scratch", **changes: object) -> Stage:
        settings = replace(preset(MappingSettings, "paper-tiny", variant), **changes)  # type: ignore[arg-type]
        return mapping.make_stage(settings, clean=[clean_folder], init_from=init_from)

    return make


def _save(stage: Stage, settings: object, folder: Path) -> Path:
    Trainer(stage, settings, folder, CPU).save()  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("variant", ["quality", "scratch", "hr"])
def test_fine_tuning_starts_at_the_loss_of_the_file(
    mapping_stage: MappingStage, write_paper: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    weights = write_paper(tmp_path / "paper.safetensors", variant)
    stage = mapping_stage(weights, variant, lsgan=0.0, feature_matching=0.0, pixel=1.0)
    batch = fixed_batch(stage.samples, 3, 64)
    # with gradients small maps go through another backend than without
    set_backend(stage.players["mapping"].module, "reference")
    found = stage.players["mapping"].module(batch)

    restorer = Restorer.load(weights, backend="reference")
    clean_encoder = vae.VAE(restorer.config.vae).encoder
    tensors = read_checkpoint(weights).tensors
    prefix = "vae_clean.encoder."
    clean_encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    image, hole, target = batch["degraded"], batch["mask"], batch["target"]
    assert hole.any() == (variant != "quality")
    given = image if variant == "quality" else paint_white(image, hole)
    with torch.no_grad():
        mapped = restorer.mapping(restorer.vae_old_encoder(given), hole)
        latent = F.l1_loss(mapped, clean_encoder(target))
        weighed = (restorer.vae_clean_decoder(mapped) - target).abs() * (1 + 6.0 * hole)
    assert found["plain_latent"].item() == pytest.approx(latent.item(), rel=1e-5)
    assert found["pixel"].item() == pytest.approx(weighed.mean().item(), rel=1e-5)


@pytest.mark.parametrize("domain", ["old", "clean"])
def test_a_vae_starts_from_that_of_its_domain(
    domain: str, paper_weights: Path, clean_folder: Path, old_folder: Path
) -> None:
    settings = preset(VAESettings, "paper-tiny", domain)
    stage = vae.make_stage(
        settings, clean=[clean_folder], old=[old_folder], init_from=paper_weights
    )
    tensors = read_checkpoint(paper_weights).tensors
    for key, value in stage.networks["vae"].state_dict().items():
        assert torch.equal(value, tensors[f"vae_{domain}.{key}"])


def test_a_detector_starts_with_its_statistics(paper_weights: Path, clean_folder: Path) -> None:
    settings = preset(MaskSettings, "paper-tiny")
    stage = mask.make_stage(settings, clean=[clean_folder], init_from=paper_weights)
    tensors = read_checkpoint(paper_weights).tensors
    state = stage.networks["mask"].state_dict()
    assert any(key.endswith("running_var") for key in state)
    assert all(torch.equal(value, tensors[f"mask.{key}"]) for key, value in state.items())


def test_nothing_trained_is_released_unchanged(
    mapping_stage: MappingStage, paper_weights: Path, tmp_path: Path
) -> None:
    settings = preset(MappingSettings, "paper-tiny")
    run = _save(mapping_stage(paper_weights), settings, tmp_path / "run")
    output = tmp_path / "again.safetensors"
    write_release(output, mapping=run, mask=paper_weights, about={"data": "none"})
    before, after = read_checkpoint(paper_weights), read_checkpoint(output)
    assert after.config == before.config
    assert after.about == {"data": "none", "mapping_steps": 0}
    assert after.tensors.keys() == before.tensors.keys()  # both VAEs whole: it can be trained on
    for key, value in before.tensors.items():
        assert torch.equal(value, after.tensors[key]), key
    mapping_stage(output)
    restorer = oldrestore.Restorer.load(output)
    assert isinstance(restorer.detector, PaperDetector)
    photo = torch.rand(3, 40, 52)
    assert torch.equal(
        restorer.restore(photo).image, Restorer.load(paper_weights).restore(photo).image
    )


def test_a_deepened_detector_starts_as_the_one_it_starts_from(
    clean_folder: Path, tmp_path: Path
) -> None:
    settings = preset(MaskSettings, "tiny")
    assert isinstance(settings.network, DetectorConfig)
    run = _save(mask.make_stage(settings, clean=[clean_folder]), settings, tmp_path / "run")
    first = mask.make_stage(settings, clean=[clean_folder], init_from=run)
    deeper = replace(settings, network=replace(settings.network, blocks=(2, 1, 3)))
    second = mask.make_stage(deeper, clean=[clean_folder], init_from=run)
    before, after = first.networks["mask"], second.networks["mask"]
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before(image), after(image))
    after(image).mean().backward()  # and what is new is trained
    known = dict(before.named_parameters())
    new = {k: v for k, v in after.named_parameters() if k not in known and "conv2" in k}
    assert len(new) == 6
    assert all(v.grad is not None and v.grad.any() for v in new.values())
    shallower = replace(settings, network=replace(settings.network, blocks=(0, 1, 1)))
    with pytest.raises(ValueError, match=r"blocks is \[1, 1, 1\] there"):
        mask.make_stage(shallower, clean=[clean_folder], init_from=run)


def test_a_deepened_mapping_starts_as_the_one_it_starts_from(
    clean_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    settings = preset(MappingSettings, "tiny")
    network = settings.network
    assert isinstance(network, MappingConfig)
    runs = {}
    for domain in ("clean", "old"):
        of_domain = preset(VAESettings, "tiny", domain)
        stage = vae.make_stage(of_domain, clean=[clean_folder], old=[old_folder])
        runs[domain] = _save(stage, of_domain, tmp_path / domain)
    stage = mapping.make_stage(
        settings, clean=[clean_folder], vae_old=runs["old"], vae_clean=runs["clean"]
    )
    translator = stage.networks["mapping"]
    assert isinstance(translator, MappingNetwork)
    nn.init.normal_(translator.tail.weight, std=0.1)  # else it is the identity
    run = _save(stage, settings, tmp_path / "run")

    def started(layout: MappingConfig) -> Stage:
        grown = replace(settings, network=layout)
        return mapping.make_stage(grown, clean=[clean_folder], init_from=run)

    before = started(network).networks["mapping"]
    stage = started(replace(network, blocks=2, core_blocks=3))
    after = stage.networks["mapping"]
    latent, hole = torch.rand(1, 16, 16, 16), (torch.rand(1, 1, 64, 64) > 0.8).float()
    with torch.no_grad():
        assert torch.equal(before(latent, hole), after(latent, hole))
        assert not torch.equal(latent, after(latent, hole))
    found = stage.players["mapping"].module(fixed_batch(stage.samples, 2, 64))
    found["pixel"].backward()
    known = dict(before.named_parameters())
    new = {k: v for k, v in after.named_parameters() if k not in known and "conv2" in k}
    assert len(new) == 2 * (2 * 1 + 2 * 2)  # weight and bias, before and after the core
    assert all(v.grad is not None and v.grad.any() for v in new.values())
    with pytest.raises(ValueError, match="core_blocks is 1 there, 0"):
        started(replace(network, core_blocks=0))
    with pytest.raises(ValueError, match="channels is 16 there, 24"):
        started(replace(network, channels=24, blocks=2))


def test_a_published_mapping_is_released_without_a_detector(
    mapping_stage: MappingStage, write_paper: Callable[..., Path], tmp_path: Path
) -> None:
    weights = write_paper(tmp_path / "hr.safetensors", "hr")
    settings = preset(MappingSettings, "paper-tiny", "hr")
    run = _save(mapping_stage(weights, "hr"), settings, tmp_path / "run")
    output = tmp_path / "out.safetensors"
    write_release(output, mapping=run, about={}, defaults={"threshold": 0.3})
    config = Restorer.load(output).config
    assert config.mask is None
    # three times 3x3, as the published script; what is not given is the preset's
    assert (config.defaults.threshold, config.defaults.dilation_px) == (0.3, 3)
    assert config.defaults.tone_strength == 0


def test_of_several_networks_their_mean_is_released(weights: Path, tmp_path: Path) -> None:
    there = read_checkpoint(weights)
    moved = {key: value + 0.5 for key, value in there.tensors.items()}
    write_checkpoint(tmp_path / "moved.safetensors", moved, there.config, {})
    output = tmp_path / "out.safetensors"
    pair = [weights, tmp_path / "moved.safetensors"]
    write_release(output, mapping=weights, mask=pair[::-1], tone=pair, about={})
    found = read_checkpoint(output).tensors
    for key, value in found.items():
        added = 0.25 if key.startswith(("mask.", "tone.")) else 0.0
        expected = (there.tensors[key].float() + added).half()
        assert (value - expected).abs().max() <= 2.0**-10 * expected.abs().max()


def test_networks_of_other_layouts_have_no_mean(weights: Path, tmp_path: Path) -> None:
    there = read_checkpoint(weights)
    other = json.loads(json.dumps(there.config))
    other["tone"]["quantiles"] = [0.0, 1.0]
    write_checkpoint(tmp_path / "other.safetensors", there.tensors, other, {})
    pair = [weights, tmp_path / "other.safetensors"]
    with pytest.raises(ValueError, match=r"tone: .*other.safetensors does not fit .*tiny"):
        write_release(tmp_path / "out", mapping=weights, mask=weights, tone=pair, about={})


def test_a_release_does_not_mix_presets(
    mapping_stage: MappingStage, paper_weights: Path, weights: Path, tmp_path: Path
) -> None:
    run = _save(
        mapping_stage(paper_weights), preset(MappingSettings, "paper-tiny"), tmp_path / "run"
    )
    output = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"tone: .*is of preset compact, the mapping of paper"):
        write_release(output, mapping=run, tone=weights, about={})
    with pytest.raises(ValueError, match="mask, tone: networks of preset compact need it"):
        write_release(output, mapping=weights, about={})
    assert not output.exists()


def test_a_run_folder_gives_its_vaes_too(
    mapping_stage: MappingStage, paper_weights: Path, tmp_path: Path
) -> None:
    first = mapping_stage(paper_weights)
    run = _save(first, preset(MappingSettings, "paper-tiny"), tmp_path / "run")
    second = mapping_stage(run)
    ours, theirs = first.networks.state_dict(), second.networks.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_file_for_restoring_alone_says_what_it_lacks(
    mapping_stage: MappingStage, paper_weights: Path, clean_folder: Path, tmp_path: Path
) -> None:
    lean = tmp_path / "lean.safetensors"
    Restorer.load(paper_weights).save(lean, {})
    with pytest.raises(ValueError, match=r"lean\.safetensors: lacks vae_clean\.encoder, which"):
        mapping_stage(lean)
    with pytest.raises(ValueError, match=r"lacks vae_clean\.encoder"):
        vae.make_stage(preset(VAESettings, "paper-tiny"), clean=[clean_folder], init_from=lean)
    # without the losses of latents it is enough
    stage = mapping_stage(lean, plain_latent=0.0, pixel=1.0, trains="all")
    assert not any("vae_clean.encoder" in key for key in stage.networks.state_dict())
    losses = stage.players["mapping"].module(fixed_batch(stage.samples, 2, 32))
    assert set(losses) == {"pixel", "lsgan", "feature_matching"}


def test_other_networks_than_the_settings_are_named(
    mapping_stage: MappingStage, paper_weights: Path, clean_folder: Path, weights: Path
) -> None:
    with pytest.raises(ValueError, match="mapping does not fit: variant is scratch there, hr in"):
        mapping_stage(paper_weights, "hr")
    wide = PaperMappingConfig("scratch", latent_channels=8, channels=64, blocks=3)
    with pytest.raises(ValueError, match=r"channels is 32 there, 64 .*--network\.channels"):
        mapping_stage(paper_weights, network=wide)
    with pytest.raises(ValueError, match=r"VAE is of preset paper and has 8 .* is of compact"):
        mapping.make_stage(
            preset(MappingSettings, "tiny"), clean=[clean_folder], init_from=paper_weights
        )
    with pytest.raises(ValueError, match="holds networks of preset compact, not paper"):
        mask.make_stage(preset(MaskSettings, "paper-tiny"), clean=[clean_folder], init_from=weights)


def test_what_a_file_does_not_hold_is_named(
    mapping_stage: MappingStage, clean_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="vae_old: not given: name the run folder"):
        mapping_stage(None)
    settings = replace(preset(MaskSettings, "paper-tiny"))
    run = _save(mask.make_stage(settings, clean=[clean_folder]), settings, tmp_path / "mask")
    with pytest.raises(ValueError, match=r"config\.vae: expected a JSON object, got None"):
        mapping_stage(run)
    with pytest.raises(ValueError, match="expected a network vae or vae_clean, holds mask"):
        vae.make_stage(preset(VAESettings, "paper-tiny"), clean=[clean_folder], init_from=run)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        mapping_stage(tmp_path / "nowhere.safetensors")


def test_vaes_that_are_named_go_before_those_of_the_start(
    paper_weights: Path, write_paper: Callable[..., Path], clean_folder: Path, tmp_path: Path
) -> None:
    settings = preset(VAESettings, "paper-tiny")
    fresh = vae.make_stage(settings, clean=[clean_folder])
    run = _save(fresh, settings, tmp_path / "run")
    stage = mapping.make_stage(
        preset(MappingSettings, "paper-tiny"),
        clean=[clean_folder],
        vae_clean=run,
        init_from=paper_weights,
    )
    old, new = stage.networks["vae_old"], stage.networks["vae_clean"]
    name = "encoder.0.conv.weight"
    assert torch.equal(new.state_dict()[name], fresh.networks["vae"].state_dict()[name])
    tensors = read_checkpoint(paper_weights).tensors
    assert torch.equal(old.state_dict()[name], tensors[f"vae_old.{name}"])


def test_a_run_from_before_there_were_presets_is_compact(
    clean_folder: Path, tmp_path: Path
) -> None:
    settings = replace(preset(VAESettings, "tiny"), steps=3, crop_px=32)

    def make() -> Stage:
        return vae.make_stage(settings, clean=[clean_folder])

    Trainer(make(), settings, tmp_path, CPU).run(until=1)
    state = read_state(tmp_path / "state.pt")
    config, written = json.loads(state["config"]), json.loads(state["settings"])
    assert config.pop("preset") == "compact"
    del written["flat_share"], written["smallest_scale"]
    torch.save(
        state | {"config": json.dumps(config), "settings": json.dumps(written)},
        tmp_path / "state.pt",
    )
    assert read_source(tmp_path).kind == "compact"
    trainer = Trainer(make(), settings, tmp_path, CPU)  # goes on
    assert trainer.step == 1
