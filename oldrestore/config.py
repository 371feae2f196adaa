"""What a weights file says about its networks: their layouts, and the defaults of ``restore``."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from oldrestore.checkpoint import config_from_json
from oldrestore.denoise import DenoiseConfig
from oldrestore.mapping import MappingConfig, PaperMappingConfig
from oldrestore.mask import DetectorConfig, PaperDetectorConfig
from oldrestore.tone import ToneConfig
from oldrestore.vae import PaperVAEConfig, VAEConfig

PAPER_THRESHOLD = 0.4  # of the published detector
HR_DILATION_PX = 3  # the published HR script widens detected masks by 3x3 squares, three times


@dataclass(frozen=True)
class Defaults:
    """What ``restore`` does unless told otherwise.

    threshold: a pixel is damaged where its probability is above this.
    dilation_px: the detected mask is widened by this, to take a scratch's soft edge along.
    tone_strength: how much of the estimated fading is undone, 0 to 1.
    faded_probability: a photo less likely faded than this keeps its tone. High, because a sound
        photo that is "corrected" is worse than a faded one that is not.
    """

    threshold: float = 0.5
    dilation_px: int = 1
    tone_strength: float = 0.5
    faded_probability: float = 0.8


@dataclass(frozen=True)
class CompactConfig:
    """All that the networks of the default are built from; lies in the weights file.

    denoise: None in files without that head, as those written before there was one.
    """

    preset: str = "compact"
    vae: VAEConfig = field(default_factory=VAEConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    mask: DetectorConfig = field(default_factory=DetectorConfig)
    tone: ToneConfig = field(default_factory=ToneConfig)
    denoise: DenoiseConfig | None = field(default_factory=DenoiseConfig)
    defaults: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True)
class PaperConfig:
    """All that the published networks are built from; ``mask`` is None without a detector."""

    preset: str = "paper"
    vae: PaperVAEConfig = field(default_factory=PaperVAEConfig)
    mapping: PaperMappingConfig = field(default_factory=PaperMappingConfig)
    mask: PaperDetectorConfig | None = field(default_factory=PaperDetectorConfig)
    tone: None = None
    denoise: None = None
    defaults: Defaults = field(
        default_factory=lambda: Defaults(PAPER_THRESHOLD, dilation_px=0, tone_strength=0.0)
    )


# share of the network's change outside holes where there is no head to estimate it. The published
# networks do as published.
DENOISE = {"compact": 0.75, "paper": 1.0}

RestorerConfig: TypeAlias = CompactConfig | PaperConfig

CONFIGS: dict[str, type[CompactConfig] | type[PaperConfig]] = {
    "compact": CompactConfig,
    "paper": PaperConfig,
}


def restorer_config(values: dict[str, Any], name: str) -> RestorerConfig:
    """The configuration that a weights file holds as JSON.

    Raises:
        ValueError: ``values`` is none; the message starts with ``name``.
    """
    preset = values.get("preset")
    if preset not in CONFIGS:
        raise ValueError(f"{name}.preset: expected one of {', '.join(CONFIGS)}, got {preset!r}")
    return config_from_json(CONFIGS[preset], _completed(values), name)


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """What files from before a part existed say by not naming it."""
    mask = values.get("mask")
    if values["preset"] == "compact" and isinstance(mask, dict):
        values = {**values, "mask": {"refiner": 0, **mask}}
    return {"denoise": None, **values}
