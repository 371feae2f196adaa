"""What a weights file says about its networks: their layouts, and the defaults of ``restore``."""

from dataclasses import dataclass, field

from oldrestore.mapping import MappingConfig
from oldrestore.mask import DetectorConfig
from oldrestore.tone import ToneConfig
from oldrestore.vae import VAEConfig

PRESET = "compact"


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
class RestorerConfig:
    """All that the networks are built from; lies in the weights file."""

    preset: str = PRESET
    vae: VAEConfig = field(default_factory=VAEConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    mask: DetectorConfig = field(default_factory=DetectorConfig)
    tone: ToneConfig = field(default_factory=ToneConfig)
    defaults: Defaults = field(default_factory=Defaults)
