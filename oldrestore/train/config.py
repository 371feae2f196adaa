"""Settings of training: one frozen dataclass a stage, whose fields are the command-line flags.

A loss whose weight is 0 is switched off: neither computed nor logged.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from oldrestore.degradation import DegradationSettings
from oldrestore.mapping import MappingConfig
from oldrestore.mask import DetectorConfig
from oldrestore.tone import THUMBNAIL_PX, ToneConfig
from oldrestore.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every stage has: how long, how fast, how often to save.

    steps: optimiser steps in all. A resumed run may be given another total.
    batch: crops a step, over all processes together.
    crop_px: side of the crops.
    late_crop_px: side of the crops late in the run; 0 = the same.
    late_share: share of the steps that counts as late.
    lr: peak learning rate.
    betas, weight_decay: of AdamW.
    warmup: steps of linear warm-up.
    schedule: "cosine", or "linear" (flat for the first half, then a
        straight line to zero, as published).
    final_lr: learning rate at the end, as a share of the peak.
    clip: largest norm of the gradient; 0 = no limit.
    ema: decay of the averaged weights.
    seed: of everything random.
    workers: data loading processes a training process; 0 = load in the process itself.
    log_every, validate_every, sheet_every: steps from one to the next.
    save_minutes: from one save of the state to the next.
    amp: "off", "bf16" or "fp16"; autocast of the networks, on a GPU.
    """

    steps: int = 10_000
    batch: int = 4
    crop_px: int = 128
    late_crop_px: int = 0
    late_share: float = 0.2
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 1e-4
    warmup: int = 100
    schedule: str = "cosine"
    final_lr: float = 0.01
    clip: float = 0.5
    ema: float = 0.999
    seed: int = 0
    workers: int = 1
    log_every: int = 50
    validate_every: int = 1000
    sheet_every: int = 1000
    save_minutes: float = 4.0
    amp: str = "off"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop_px"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("crop_px", "late_crop_px"):
            if getattr(self, name) % 16:
                raise ValueError(f"{name}: expected a multiple of 16, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule: expected 'cosine' or 'linear', got {self.schedule!r}")
        if self.amp not in ("off", "bf16", "fp16"):
            raise ValueError(f"amp: expected 'off', 'bf16' or 'fp16', got {self.amp!r}")


@dataclass(frozen=True, kw_only=True)
class AdversarySettings:
    """The image discriminators of a stage.

    channels: width of the first layer. scales: how many, each at half the side of the one before.
    lr: of their optimiser. spectral_norm: on every convolution.
    """

    channels: int = 32
    scales: int = 2
    lr: float = 2e-4
    spectral_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class VAESettings(LoopSettings):
    """Stage "vae": loss weights after Wan et al., eq. 1 and 2; L1 and KL as measured for `compact`.

    domain: "old" (real and synthetic old photos) or "clean".
    """

    domain: str = "clean"
    network: VAEConfig = field(default_factory=VAEConfig)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    degradation: DegradationSettings = field(default_factory=DegradationSettings)
    reconstruction: float = 1.0
    kl: float = 1e-4
    lsgan: float = 0.0
    feature_matching: float = 0.0
    perceptual: float = 0.0
    latent_adversary: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.domain not in ("old", "clean"):
            raise ValueError(f"domain: expected 'old' or 'clean', got {self.domain!r}")
        if self.domain == "old" and self.batch % 2:
            raise ValueError(
                f"batch: the old domain takes half real, half synthetic: expected an even number, "
                f"got {self.batch}"
            )


@dataclass(frozen=True, kw_only=True)
class MappingSettings(LoopSettings):
    """Stage "mapping": eq. 3 of Wan et al., with pixel losses in front for `compact`.

    trains: "mapping" (both VAEs frozen, as published) or "all" (old encoder and clean decoder too).
    hole_weight: how much more than elsewhere a pixel of a hole counts in ``pixel``.
    mask_dilation_px: masks are grown by 0 up to this, as a detector's mask is never exact.
    """

    trains: str = "mapping"
    network: MappingConfig = field(default_factory=MappingConfig)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    degradation: DegradationSettings = field(default_factory=DegradationSettings)
    pixel: float = 1.0
    hole_weight: float = 6.0
    latent: float = 0.05
    lsgan: float = 0.0
    feature_matching: float = 0.0
    perceptual: float = 0.0
    mask_dilation_px: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trains not in ("mapping", "all"):
            raise ValueError(f"trains: expected 'mapping' or 'all', got {self.trains!r}")


@dataclass(frozen=True, kw_only=True)
class MaskSettings(LoopSettings):
    """Stage "mask": binary cross-entropy and Dice on what the damage visibly changed.

    smallest_scale: photos are shrunk down to this before damage is laid on them. Small figures,
        windows and papers look like spots: the detector has to see many that are none.
    old_share: share of the samples whose ground is a real old photo, if there are any.
    """

    network: DetectorConfig = field(default_factory=DetectorConfig)
    degradation: DegradationSettings = field(
        default_factory=lambda: DegradationSettings(p_structured=0.6, p_grey=0.5)
    )
    smallest_scale: float = 0.25
    old_share: float = 0.5
    cross_entropy: float = 1.0
    dice: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ToneSettings(LoopSettings):
    """Stage "tone": L1 after the curve, and cross-entropy of whether there is fading at all.

    crop_px is the side of the small copies, whatever the part of the photo they show.
    """

    crop_px: int = THUMBNAIL_PX

    network: ToneConfig = field(default_factory=ToneConfig)
    degradation: DegradationSettings = field(
        default_factory=lambda: DegradationSettings(
            p_fading=0.5,
            p_undamaged=0.05,
            # in a copy this small there is no detail left to lose
            p_structured=0.0,
            p_blur=0.0,
            p_noise=0.0,
            p_grain=0.0,
            p_resampling=0.0,
            p_jpeg=0.0,
        )
    )
    pixel: float = 1.0
    faded: float = 0.2


Settings = TypeVar("Settings", bound=LoopSettings)

_TINY_LOOP: dict[str, Any] = {
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

# what a preset changes of a stage's defaults
_PRESETS: dict[tuple[str, type[LoopSettings]], dict[str, Any]] = {
    ("tiny", VAESettings): {"network": _TINY_VAE, **_TINY_LOOP},
    ("tiny", MappingSettings): {"network": _TINY_MAPPING, **_TINY_LOOP},
    ("tiny", MaskSettings): {
        "network": DetectorConfig(channels=(12, 16, 24), blocks=(1, 1, 1)),
        **_TINY_LOOP,
        "steps": 400,
        "lr": 4e-3,
        "degradation": DegradationSettings(p_structured=0.8, severity=(0.0, 0.3)),
    },
    ("tiny", ToneSettings): {
        "network": ToneConfig(channels=(8, 16)),
        **_TINY_LOOP,
        "steps": 300,
        "lr": 3e-3,
    },
    ("compact", VAESettings): {"steps": 3000},
    ("compact", MappingSettings): {"steps": 40_000, "late_crop_px": 192},
    ("compact", MaskSettings): {"steps": 10_000, "lr": 1.5e-3, "crop_px": 192},
    ("compact", ToneSettings): {"steps": 6000, "batch": 16},
}
PRESETS = ("tiny", "compact")


def preset(stage: type[Settings], name: str) -> Settings:
    """The settings of a stage at a preset.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return stage(**_PRESETS[name, stage])
