"""The published settings, and that the optimisers get them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.degradation import DegradationSettings
from oldrestore.mapping import PaperMappingConfig
from oldrestore.train import mapping
from oldrestore.train.config import (
    DenoiseSettings,
    LoopSettings,
    MappingSettings,
    MaskSettings,
    ToneSettings,
    VAESettings,
)
from oldrestore.train.loop import Trainer, learning_rate
from oldrestore.train.presets import PRESETS, preset

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "batch", "epochs", "lr", "critic_lr", "betas", "spectral_norm"),
    [
        (preset(VAESettings, "paper", "old"), 100, 200, 2e-4, 2e-4, (0.5, 0.999), False),
        (preset(VAESettings, "paper", "clean"), 120, 200, 2e-4, 2e-4, (0.5, 0.999), False),
        (preset(MappingSettings, "paper", "quality"), 80, 250, 1e-4, 4e-4, (0.0, 0.9), False),
        (preset(MappingSettings, "paper", "scratch"), 36, 250, 2e-4, 2e-4, (0.5, 0.999), True),
        (preset(MappingSettings, "paper", "hr"), 36, 250, 2e-4, 2e-4, (0.5, 0.999), True),
    ],
)
def test_the_runs_are_those_that_were_published(
    settings: VAESettings | MappingSettings,
    batch: int,
    epochs: int,
    lr: float,
    critic_lr: float,
    betas: tuple[float, float],
    spectral_norm: bool,
) -> None:
    assert (settings.batch, settings.lr, settings.betas) == (batch, lr, betas)
    assert settings.adversary.lr == critic_lr
    assert settings.adversary.spectral_norm == spectral_norm
    assert (settings.adversary.channels, settings.adversary.scales) == (64, 2)
    assert (settings.lsgan, settings.feature_matching, settings.perceptual) == (1, 10, 10)
    assert abs(settings.steps * batch / 17_125 - epochs) < 0.01
    assert (settings.crop_px, settings.schedule) == (256, "linear")
    nothing = (settings.warmup, settings.weight_decay, settings.clip, settings.ema)
    assert nothing == (0, 0, 0, 0)


def test_the_learning_rate_is_flat_then_falls_to_zero() -> None:
    for settings, flat in (
        (preset(VAESettings, "paper", "old"), 100 / 200),
        (preset(MappingSettings, "paper", "scratch"), 150 / 250),
    ):
        end = settings.steps
        assert [learning_rate(settings, int(share * flat * end)) for share in (0, 0.5, 1)] == [
            1
        ] * 3
        halfway = int((1 + flat) / 2 * end)
        assert learning_rate(settings, halfway) == pytest.approx(0.5, abs=1e-4)
        assert learning_rate(settings, end - 1) < 1e-3


def test_the_variants_differ_in_their_damage() -> None:
    damage = {
        variant: preset(MappingSettings, "paper", variant).degradation
        for variant in ("quality", "scratch", "hr")
    }
    assert damage["quality"].p_structured == 0
    assert damage["scratch"] == damage["hr"]
    assert damage["scratch"].p_structured == 0.5
    for one in damage.values():
        assert {one.p_blur, one.p_noise, one.p_resampling, one.p_jpeg} == {0.7}
        assert (one.p_fading, one.p_grey, one.p_undamaged) == (0, 0.1, 0)


def test_the_blur_is_as_wide_as_the_published_one_cut_off() -> None:
    def deviation(size: int, sigma: float) -> float:
        place = np.arange(size) - size // 2
        weights = np.exp(-(place**2) / (2 * sigma**2))
        return float(np.sqrt((weights * place**2).sum() / weights.sum()))

    widths = [deviation(size, sigma) for size in (3, 5, 7) for sigma in (1.0, 5.0)]
    drawn = preset(VAESettings, "paper", "old").degradation.blur_sigma_px
    assert drawn == pytest.approx((min(widths), max(widths)), abs=0.005)


@pytest.mark.parametrize("variant", ["quality", "scratch"])
def test_the_optimisers_get_their_own_rates(
    variant: str, clean_folder: Path, paper_weights: Path, tmp_path: Path
) -> None:
    settings = replace(
        preset(MappingSettings, "paper", variant),
        network=PaperMappingConfig(variant=variant, latent_channels=8, channels=16, blocks=3),
        batch=2,
        crop_px=32,
        workers=0,
        perceptual=0.0,
        validate_every=10**6,
    )
    stage = mapping.make_stage(
        settings, clean=[clean_folder], vae_old=paper_weights, vae_clean=paper_weights
    )
    trainer = Trainer(stage, settings, tmp_path, CPU)
    trainer.run(until=1)
    groups = {name: o.param_groups[0] for name, o in trainer.optimizers.items()}
    assert groups["mapping"]["lr"] == settings.lr
    assert groups["discriminator"]["lr"] == settings.adversary.lr
    assert (groups["mapping"]["lr"] != groups["discriminator"]["lr"]) == (variant == "quality")
    assert all(group["betas"] == settings.betas for group in groups.values())
    assert all(group["weight_decay"] == 0 for group in groups.values())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", [VAESettings, MappingSettings, MaskSettings])
def test_every_preset_has_the_stages_of_both_systems(name: str, stage: type[LoopSettings]) -> None:
    assert isinstance(preset(stage, name), stage)


def test_the_small_presets_have_the_losses_of_the_large_ones() -> None:
    for stage, kinds in ((VAESettings, ("old", "clean")), (MappingSettings, ("hr", "quality"))):
        for kind in kinds:
            large, small = (preset(stage, name, kind) for name in ("paper", "paper-tiny"))
            for name in ("lsgan", "feature_matching", "betas", "schedule", "flat_share", "ema"):
                assert getattr(large, name) == getattr(small, name)
            assert type(large.network) is type(small.network)
            assert large.adversary.spectral_norm == small.adversary.spectral_norm


def test_what_a_preset_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="variant: preset compact has none, got 'hr'"):
        preset(MappingSettings, "compact", "hr")
    with pytest.raises(ValueError, match="variant: expected one of scratch, hr, quality"):
        preset(MappingSettings, "paper", "best")
    with pytest.raises(ValueError, match="domain: expected one of clean, old, got 'new'"):
        preset(VAESettings, "paper", "new")
    with pytest.raises(ValueError, match="preset: paper has no tone head"):
        preset(ToneSettings, "paper")
    with pytest.raises(ValueError, match="preset: paper has no denoise head"):
        preset(DenoiseSettings, "paper")


def test_presets_of_ours_are_as_they_were() -> None:
    settings = preset(MappingSettings, "compact")
    assert settings == MappingSettings(steps=40_000, late_crop_px=192)
    assert (settings.plain_latent, settings.smallest_scale, settings.flat_share) == (0, 0.5, 0.5)
    assert preset(VAESettings, "compact", "old") == VAESettings(steps=3000, domain="old")
    assert preset(MaskSettings, "compact").degradation == DegradationSettings(
        p_undamaged=0.1,
        p_structured=0.72,
        p_grey=0.5,
        p_film=0.35,
        p_large=0.15,
        p_blotches=0.15,
        p_texture=0.5,
        p_impulses=0,
        photo_px=(256, 1024),
    )
