"""Settings of training: one frozen dataclass a stage, whose fields are the command-line flags.

A loss whose weight is 0 is switched off: neither computed nor logged.
"""

from dataclasses import dataclass, field

from oldrestore.degradation import DegradationSettings
from oldrestore.denoise import DenoiseConfig
from oldrestore.face.enhancer import SIDE_PX, FaceConfig
from oldrestore.mapping import MappingConfig, PaperMappingConfig
from oldrestore.mask import DetectorConfig, PaperDetectorConfig
from oldrestore.tone import THUMBNAIL_PX, ToneConfig
from oldrestore.vae import PaperVAEConfig, VAEConfig


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every stage has: how long, how fast, how often to save.

    steps: optimiser steps in all. A resumed run may be given another total.
    batch: crops a step, over all processes together.
    crop_px: side of the crops.
    late_crop_px: side of the crops late in the run; 0 = the same.
    late_share: share of the steps that counts as late.
    lr: peak learning rate.
    betas, weight_decay: of AdamW; without weight decay it is Adam.
    warmup: steps of linear warm-up; 0 = none.
    schedule: "cosine", or "linear" (flat, then a straight line to zero, as published).
    flat_share: share of the steps before the line of "linear" begins.
    final_lr: learning rate at the end of "cosine", as a share of the peak.
    clip: largest norm of the gradient; 0 = no limit.
    ema: decay of the averaged weights; 0 = no average, the weights themselves are released.
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
    flat_share: float = 0.5
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
        for name in ("flat_share", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 to below 1, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule: expected 'cosine' or 'linear', got {self.schedule!r}")
        if self.amp not in ("off", "bf16", "fp16"):
            raise ValueError(f"amp: expected 'off', 'bf16' or 'fp16', got {self.amp!r}")


@dataclass(frozen=True, kw_only=True)
class AdversarySettings:
    """The image discriminators of a stage.

    channels: width of the first layer.
    scales: how many, each at half the side of the one before; the latents' has one.
    lr: of their optimiser.
    spectral_norm: on every convolution.
    """

    channels: int = 32
    scales: int = 2
    lr: float = 2e-4
    spectral_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class VAESettings(LoopSettings):
    """Stage "vae": loss weights after Wan et al., eq. 1 and 2; L1 and KL as measured for `compact`.

    domain: "old" (real and synthetic old photos) or "clean".
    smallest_scale: clean photos are shrunk at random down to this, which hides their own JPEG;
        1 = their own pixels.
    reconstruction: weight of the L1 of pixels.
    kl: weight of the distance to the prior.
    lsgan, feature_matching, perceptual: weights of the adversarial loss, of the discriminator's
        features and of an ImageNet network's.
    latent_adversary: weight of the adversary that tells real from synthetic old photos' latents.
    """

    domain: str = "clean"
    network: VAEConfig | PaperVAEConfig = field(default_factory=VAEConfig)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    degradation: DegradationSettings = field(default_factory=DegradationSettings)
    smallest_scale: float = 0.5
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


END_TO_END = "end-to-end"
TRAINS = ("mapping", "all", END_TO_END)


@dataclass(frozen=True, kw_only=True)
class MappingSettings(LoopSettings):
    """Stage "mapping": eq. 3 of Wan et al., with pixel losses in front for `compact`.

    trains: "mapping" (both VAEs frozen, as published), "all" (old encoder and clean decoder too) or
        "end-to-end" (the same layers from random numbers on pixels alone, without VAE stages: what
        the triplet is compared with).
    vae: layout of encoder and decoder, for "end-to-end" alone; else it is that of the VAEs given.
    smallest_scale: clean photos are shrunk at random down to this, which hides their own JPEG;
        1 = their own pixels.
    pixel: weight of the L1 of pixels.
    hole_weight: how much more than elsewhere a pixel of a hole counts in ``pixel``.
    latent: weight of the latents' L1 in standard deviations of the target's channels.
    plain_latent: weight of the latents' L1 as it is, the published form.
    lsgan, feature_matching, perceptual: weights of the adversarial loss, of the discriminator's
        features and of an ImageNet network's.
    latent_adversary: weight of the adversary that tells real from synthetic old photos' latents,
        which else come apart again while the old encoder is trained on synthetic pairs.
    real_reconstruction: weight of the L1 of real old photos through the old photos' VAE, or the
        adversary could be pleased by latents that say little of them.
    mask_dilation_px: masks are grown by 0 up to this, as a detector's mask is never exact.
    detected_share: share of the samples that come with the mask that a detector finds, as in
        restoring: what it misses, the networks then learn to mend without being shown where.
    use_nonlocal: train the nonlocal block; if not, it is left out and the file restores without it.
    """

    trains: str = "mapping"
    network: MappingConfig | PaperMappingConfig = field(default_factory=MappingConfig)
    vae: VAEConfig | PaperVAEConfig = field(default_factory=VAEConfig)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    # half of the pixels of holes then lie in parts wider than 12 px, a quarter without
    degradation: DegradationSettings = field(
        default_factory=lambda: DegradationSettings(p_large=0.25)
    )
    smallest_scale: float = 0.5
    pixel: float = 1.0
    hole_weight: float = 6.0
    latent: float = 0.05
    plain_latent: float = 0.0
    lsgan: float = 0.0
    feature_matching: float = 0.0
    perceptual: float = 0.0
    latent_adversary: float = 0.0
    real_reconstruction: float = 0.0
    mask_dilation_px: int = 3
    detected_share: float = 0.0
    use_nonlocal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trains not in TRAINS:
            raise ValueError(f"trains: expected one of {', '.join(TRAINS)}, got {self.trains!r}")
        if self.trains == END_TO_END and (self.latent or self.plain_latent):
            raise ValueError(
                f"latent, plain_latent: trained {END_TO_END} there are no latents to compare with; "
                "set both to 0"
            )
        if self.trains != "all" and (self.latent_adversary or self.real_reconstruction):
            raise ValueError(
                "latent_adversary, real_reconstruction: they train the old encoder beside the "
                f"mapping: expected trains 'all', got {self.trains!r}; or set both to 0"
            )
        if not 0 <= self.detected_share <= 1:
            raise ValueError(f"detected_share: expected 0 to 1, got {self.detected_share}")


@dataclass(frozen=True, kw_only=True)
class MaskSettings(LoopSettings):
    """Stage "mask": pixel losses and Dice on what the damage visibly changed.

    smallest_scale: photos are shrunk down to this before damage is laid on them. Small figures,
        windows and papers look like spots: the detector has to see many that are none.
    native_share: share of the samples that are not shrunk: photos' own pixels.
    candidates: one to so many crops are drawn for a sample, and the one with the most fine detail
        is taken: gravel, foliage and foam are what is most easily taken for damage.
    old_share: share of the samples whose ground is a real old photo, if there are any.
    own_damage: probability above which the detector that a run starts from (``init_from``) is
        believed about the own damage of a real old photo, which then teaches nothing.
    distractor_share: share of the samples with something drawn in that is no damage.
    turned_share: share of the samples that are turned by quarters and mirrored at random.
    varied_share: share of those of clean photos that are negatives, double exposures or in another
        tone, or some of that.
    cross_entropy: weight of the binary cross-entropy.
    positive_weight: how many times a damaged pixel counts in ``cross_entropy``.
    focal: weight of the focal loss.
    focal_gamma: how fast pixels that are already told right lose their say in ``focal``.
    dice: weight of the Dice loss, of a batch's pixels together.
    """

    network: DetectorConfig | PaperDetectorConfig = field(default_factory=DetectorConfig)
    degradation: DegradationSettings = field(
        # a third of the crops without damage; lost pixels look like dust, and are no noise here
        default_factory=lambda: DegradationSettings(
            p_undamaged=0.1,
            p_structured=0.72,
            p_grey=0.5,
            p_impulses=0.0,
            p_texture=0.5,
            p_film=0.35,
            p_large=0.15,
            p_blotches=0.15,
            photo_px=(256.0, 1024.0),
        )
    )
    smallest_scale: float = 0.25
    native_share: float = 0.5
    candidates: int = 3
    old_share: float = 0.15
    own_damage: float = 0.2
    distractor_share: float = 0.12
    turned_share: float = 0.5
    varied_share: float = 0.4
    cross_entropy: float = 1.0
    positive_weight: float = 1.0
    focal: float = 0.0
    focal_gamma: float = 2.0
    dice: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise ValueError(f"candidates: expected at least 1, got {self.candidates}")
        if self.focal_gamma < 1:  # below, the gradient of what is told right has no bound
            raise ValueError(f"focal_gamma: expected at least 1, got {self.focal_gamma}")


@dataclass(frozen=True, kw_only=True)
class ToneSettings(LoopSettings):
    """Stage "tone": log error after the curve, and cross-entropy of whether there is any fading.

    crop_px is the side of the small copies, whatever the part of the photo they show.
    pixel: weight of the log error after the curve; faded: of the cross-entropy.
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
    pixel: float = 0.05
    faded: float = 0.2


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings(LoopSettings):
    """Stage "denoise": the logarithm of the error with the chosen share of the networks' change.

    crop_px: side of the crops, a multiple of 64.
    smallest_scale: clean photos are shrunk at random down to this, which hides their own JPEG.
    native_share: share of the samples that are not shrunk: photos' own pixels.
    samples: how many crops are damaged and restored; each is made once and kept.
    error: weight of the logarithm of the error.
    """

    crop_px: int = 192
    workers: int = 0  # what is made is kept in one process

    network: DenoiseConfig = field(default_factory=DenoiseConfig)
    degradation: DegradationSettings = field(
        default_factory=lambda: DegradationSettings(p_undamaged=0.15)
    )
    smallest_scale: float = 0.4
    native_share: float = 0.5
    samples: int = 6000
    error: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples: expected at least 1, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class FaceSettings(LoopSettings):
    """Stage "face": L1 and perceptual loss on aligned faces that have been restored.

    crop_px: side of the aligned crops.
    smallest_scale, largest_scale: faces are damaged and restored at a random size from the first to
        the second, of the crop's: in photos most are smaller than the crop, in portraits larger.
    variants: in how many ways each portrait is damaged; each is made once and kept.
    pixel: weight of the L1 of pixels.
    perceptual: weight of an ImageNet network's features.
    distance: weight of the perceptual distance that evaluation measures, by the same network: of
        features of length 1, all depths alike, so that fine detail counts too.
    """

    crop_px: int = SIDE_PX
    workers: int = 0  # what is made is kept in one process

    network: FaceConfig = field(default_factory=FaceConfig)
    # of what is smaller than the crop; holes are the restoration's, here they are few
    degradation: DegradationSettings = field(
        default_factory=lambda: DegradationSettings(
            # a sound face is to be left as it is, which has to be learnt like the rest
            p_undamaged=0.2,
            p_grey=0.4,
            p_fading=0.0,
            p_structured=0.35,
            p_blur=0.6,
        )
    )
    smallest_scale: float = 0.35
    largest_scale: float = 1.4
    variants: int = 2
    pixel: float = 1.0
    perceptual: float = 0.0
    distance: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smallest_scale <= self.largest_scale:
            raise ValueError(
                f"smallest_scale, largest_scale: expected two numbers above 0 in this order, "
                f"got {self.smallest_scale} and {self.largest_scale}"
            )
