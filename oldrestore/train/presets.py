"""Presets: the settings of every stage, by name.

    tiny        `compact` made small: learns something within a minute on a CPU
    compact     the networks that are shipped
    paper-tiny  `paper` made small, likewise
    paper       the published networks at their published settings

Of `paper`, after the code that Wan et al. released (CVPR 2020). Steps are its epochs over the
17,125 photos of Pascal VOC 2012. What differs:

* Damage is laid on the crop; the VAEs and the quality mapping were shown crops of damaged photos.
* Each kind of damage has the published probability and the ends of its published range, but all
  kinds of a photo share one severity, mostly mild, instead of one uniform draw each. A fifth of the
  blurs are skewed Gaussians, another fifth motion and defocus. One factor shrinks both sides, JPEG
  stops at quality 95, values are rounded to 8 bits by JPEG alone, not cut to them after each step.
* The published Gaussian of sigma 1 to 5 px is cut off after 1, 2 or 3 px: its standard deviation is
  0.74 to 1.94 px, which is what ours, not cut off, is given.
* Holes are the shapes of our structured damage, not a set of irregular masks; they are painted
  white all the same, and half of the samples have none.
* Photos with a side under 256 px are enlarged, not left out; 4 % of the photos are held out.
* The learning rate falls with every step, not with every epoch.
* The 5,718 real old photos were not released; whatever is given in their place is drawn from.

The detector's training was never released. Its layers, the kinds of its losses (class-weighted
cross-entropy and focal loss) and the side of 256 px are published; the weights of the losses, the
optimiser, the batch, the steps and the damage are ours.
"""

from dataclasses import replace
from typing import Any, TypeVar

from oldrestore.degradation import DegradationSettings
from oldrestore.denoise import DenoiseConfig
from oldrestore.face.enhancer import FaceConfig
from oldrestore.mapping import MappingConfig, PaperMappingConfig
from oldrestore.mask import DetectorConfig, PaperDetectorConfig
from oldrestore.tone import ToneConfig
from oldrestore.train.config import (
    AdversarySettings,
    DenoiseSettings,
    FaceSettings,
    LoopSettings,
    MappingSettings,
    MaskSettings,
    ToneSettings,
    VAESettings,
)
from oldrestore.vae import PaperVAEConfig, VAEConfig

Settings = TypeVar("Settings", bound=LoopSettings)
Changes = dict[str, Any]

PRESETS = ("tiny", "compact", "paper-tiny", "paper")

_TINY_LOOP: Changes = {
    "steps": 150,
    "batch": 4,
    "crop_px": 64,
    "warmup": 10,
    "ema": 0.98,
    "workers": 0,
    "log_every": 10,
    "validate_every": 50,
    "sheet_every": 50,
}
_TINY_VAE = VAEConfig(latent_channels=16, half_channels=8, quarter_channels=16, quarter_blocks=1)
_TINY_MAPPING = MappingConfig(
    latent_channels=16,
    channels=16,
    blocks=1,
    core_channels=24,
    core_blocks=1,
    attention_channels=8,
    attention_block=4,
    attention_halo=4,
)

VOC_PHOTOS = 17_125  # of Pascal VOC 2012, the published clean domain
_PAPER_LOOP: Changes = {
    "crop_px": 256,
    "lr": 2e-4,
    "betas": (0.5, 0.999),
    "weight_decay": 0.0,
    "warmup": 0,
    "schedule": "linear",
    "clip": 0.0,
    "ema": 0.0,
}
_PAPER_DAMAGE = DegradationSettings(
    p_undamaged=0.0,
    p_grey=0.1,
    p_fading=0.0,
    p_structured=0.0,
    p_blur=0.7,
    p_noise=0.7,
    p_grain=0.0,
    p_resampling=0.7,
    p_jpeg=0.7,
    severity=(0.0, 1.0),
    blur_sigma_px=(0.74, 1.94),  # of sigma 1 to 5 px, cut off: see above
    noise_sigma_255=(5.0, 50.0),
    resampling_factor=(1.0, 2.0),
    jpeg_quality=(40.0, 100.0),
)
_PAPER_LOSSES: Changes = {"lsgan": 1.0, "feature_matching": 10.0, "perceptual": 10.0}

_PAPER_TINY_LOOP: Changes = {
    "steps": 150,
    "batch": 4,
    "crop_px": 64,
    "workers": 0,
    "log_every": 10,
    "validate_every": 50,
    "sheet_every": 50,
}
# narrow networks bear, and so few steps need, a higher learning rate; not the discriminators, which
# would run away from them
_PAPER_TINY_SPEED = 20
_PAPER_TINY_CHANNELS = 8  # of the discriminators


def _steps(epochs: int, batch: int) -> int:
    return -(-epochs * VOC_PHOTOS // batch)


def _paper_vae(domain: str) -> Changes:
    batch = 100 if domain == "old" else 120
    return {
        **_PAPER_LOOP,
        **_PAPER_LOSSES,
        "domain": domain,
        "network": PaperVAEConfig(),
        "adversary": AdversarySettings(channels=64, scales=2, lr=2e-4),
        "degradation": _PAPER_DAMAGE,
        "smallest_scale": 1.0,
        "batch": batch,
        "steps": _steps(100 + 100, batch),
        "flat_share": 0.5,
        "reconstruction": 0.0,
        # published: mean(h^2), once; at unit variance the divergence to the prior is half of it
        "kl": 2.0,
        "latent_adversary": 1.0,
    }


def _paper_mapping(variant: str) -> Changes:
    is_quality = (
        variant == "quality"
    )  # alone was trained with two time scales (Heusel et al., 2017)
    batch = 80 if is_quality else 36
    return {
        **_PAPER_LOOP,
        **_PAPER_LOSSES,
        "network": PaperMappingConfig(variant=variant),
        "vae": PaperVAEConfig(),
        "adversary": AdversarySettings(
            channels=64, scales=2, lr=4e-4 if is_quality else 2e-4, spectral_norm=not is_quality
        ),
        "lr": 1e-4 if is_quality else 2e-4,
        "betas": (0.0, 0.9) if is_quality else (0.5, 0.999),
        "degradation": replace(_PAPER_DAMAGE, p_structured=0.0 if is_quality else 0.5),
        "smallest_scale": 1.0,
        "batch": batch,
        "steps": _steps(150 + 100, batch),
        "flat_share": 150 / (150 + 100),
        "pixel": 0.0,
        "latent": 0.0,
        "plain_latent": 60.0,
        "mask_dilation_px": 0,
    }


_PAPER_MASK: Changes = {
    **_PAPER_LOOP,
    "network": PaperDetectorConfig(),
    "batch": 16,
    "steps": 50_000,
    "candidates": 1,
    "turned_share": 0.0,
    "varied_share": 0.0,
    "cross_entropy": 1.0,
    "positive_weight": 5.0,
    "focal": 1.0,
    "dice": 0.0,
}


def _short(changes: Changes, network: Any) -> Changes:
    """Published settings for a narrow network and few steps on small crops."""
    return {
        **changes,
        **_PAPER_TINY_LOOP,
        "network": network,
        "lr": _PAPER_TINY_SPEED * changes["lr"],
    }


def _short_game(changes: Changes, network: Any) -> Changes:
    """The same of a stage with adversaries, and without the loss that asks for a file of VGG-19."""
    adversary = replace(changes["adversary"], channels=_PAPER_TINY_CHANNELS)
    return {**_short(changes, network), "adversary": adversary, "perceptual": 0.0}


def _paper_tiny_vae(domain: str) -> Changes:
    return _short_game(_paper_vae(domain), PaperVAEConfig(latent_channels=8))


def _paper_tiny_mapping(variant: str) -> Changes:
    network = PaperMappingConfig(variant=variant, latent_channels=8, channels=32, blocks=3)
    narrow = PaperVAEConfig(latent_channels=network.latent_channels)
    return {**_short_game(_paper_mapping(variant), network), "vae": narrow}


# nothing but what is to be found: a short run has no time to learn what is not
_PLAIN_DAMAGE = DegradationSettings(
    p_undamaged=0.0,
    p_grey=0.5,
    p_fading=0.0,
    p_structured=1.0,
    p_blur=0.0,
    p_noise=0.0,
    p_grain=0.0,
    p_resampling=0.0,
    p_jpeg=0.0,
    coverage=(0.02, 0.2),
)
_PAPER_TINY_MASK: Changes = {
    **_short(_PAPER_MASK, PaperDetectorConfig(channels=4)),
    "lr": 5e-4,
    "degradation": _PLAIN_DAMAGE,
}

_DOMAINS = ("clean", "old")
_VARIANTS = ("scratch", "hr", "quality")
_OURS_ALONE: dict[type[LoopSettings], str] = {
    ToneSettings: "tone head",
    DenoiseSettings: "denoise head",
    FaceSettings: "face stage",
}
_KIND_NAMES: dict[type[LoopSettings], str] = {VAESettings: "domain", MappingSettings: "variant"}

# what a preset changes of a stage's defaults, by the kind of the stage; the first is the default
_PRESETS: dict[tuple[str, type[LoopSettings]], dict[str | None, Changes]] = {
    ("tiny", VAESettings): {
        domain: {"domain": domain, "network": _TINY_VAE, **_TINY_LOOP} for domain in _DOMAINS
    },
    ("tiny", MappingSettings): {None: {"network": _TINY_MAPPING, "vae": _TINY_VAE, **_TINY_LOOP}},
    ("tiny", MaskSettings): {
        None: {
            "network": DetectorConfig(channels=(12, 16, 24), blocks=(1, 1, 1)),
            **_TINY_LOOP,
            "steps": 400,
            "lr": 4e-3,
            "candidates": 1,
            "distractor_share": 0.0,
            "turned_share": 0.0,
            "varied_share": 0.0,
            "degradation": _PLAIN_DAMAGE,
        }
    },
    ("tiny", ToneSettings): {
        None: {"network": ToneConfig(channels=(8, 16)), **_TINY_LOOP, "steps": 300, "lr": 3e-3}
    },
    ("tiny", DenoiseSettings): {
        None: {
            "network": DenoiseConfig(channels=(8, 16), hidden=16),
            **_TINY_LOOP,
            "samples": 100,
            "lr": 3e-3,
        }
    },
    ("tiny", FaceSettings): {
        None: {
            "network": FaceConfig(channels=(8, 16, 24), blocks=(0, 1, 1)),
            **_TINY_LOOP,
            "variants": 1,
            "distance": 0.0,
        }
    },
    ("compact", VAESettings): {domain: {"domain": domain, "steps": 3000} for domain in _DOMAINS},
    ("compact", MappingSettings): {None: {"steps": 40_000, "late_crop_px": 192}},
    ("compact", MaskSettings): {None: {"steps": 10_000, "lr": 1.5e-3, "crop_px": 192}},
    ("compact", ToneSettings): {None: {"steps": 6000, "batch": 16}},
    ("compact", DenoiseSettings): {None: {"steps": 4000, "batch": 32}},
    ("compact", FaceSettings): {None: {"steps": 20_000}},
    ("paper-tiny", VAESettings): {domain: _paper_tiny_vae(domain) for domain in _DOMAINS},
    ("paper-tiny", MappingSettings): {v: _paper_tiny_mapping(v) for v in _VARIANTS},
    ("paper-tiny", MaskSettings): {None: _PAPER_TINY_MASK},
    ("paper", VAESettings): {domain: _paper_vae(domain) for domain in _DOMAINS},
    ("paper", MappingSettings): {variant: _paper_mapping(variant) for variant in _VARIANTS},
    ("paper", MaskSettings): {None: _PAPER_MASK},
}


def preset(stage: type[Settings], name: str, kind: str | None = None) -> Settings:
    """The settings of a stage at a preset.

    Args:
        stage: class of the settings.
        name: one of ``PRESETS``.
        kind: domain of a VAE ("clean" if not given), variant of a published mapping ("scratch" if
            not given). Other stages have no kinds.

    Raises:
        ValueError: no such preset or kind, or the preset has no such stage.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    kinds = _PRESETS.get((name, stage))
    if kinds is None:  # the heads and the small face network are ours alone
        what = _OURS_ALONE[stage]
        raise ValueError(f"preset: {name} has no {what}; expected tiny or compact")
    if kind is None:
        kind = next(iter(kinds))
    if kind not in kinds:
        what = _KIND_NAMES.get(stage, "kind")
        if None in kinds:
            raise ValueError(f"{what}: preset {name} has none, got {kind!r}; leave it out")
        raise ValueError(f"{what}: expected one of {', '.join(map(str, kinds))}, got {kind!r}")
    return stage(**kinds[kind])
