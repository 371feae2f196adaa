"""Stage "mask": learn to find structured damage (Wan et al., CVPR 2020, section 3.3).

The label is what the damage visibly changed: a white scratch on a white collar teaches nothing but
to see scratches in collars. What changed a little is neither damaged nor sound and teaches nothing.
Real old photos may be given as further ground to lay damage on: their collars, plate edges and
faint figures are what a detector most easily takes for damage. They have damage of their own, which
nobody labelled: what the detector that a run starts from is sure of there teaches nothing either.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.degradation import (
    DegradationSettings,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.detection import DetectionScores
from oldrestore.mask import DetectorConfig, PaperDetector, ScratchDetector, make_detector
from oldrestore.train import losses
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import Batch, PhotoFolders, crop, smallest_px
from oldrestore.train.distractors import add_distractor
from oldrestore.train.growth import fill_grown
from oldrestore.train.loop import Player, Stage
from oldrestore.train.state import kind_of, read_source
from oldrestore.train.variety import turned, varied

Detector = ScratchDetector | PaperDetector
HELD_OUT_TEXTURES = 0.15  # share of the textures kept for validation
VALIDATION_CROPS = 64  # in turn of the ordinary and of the film-like mix
FILM_COVERAGE = (0.001, 0.003)  # of the film-like mix: about 0.3 %, as on real film scans
AT_ONCE = 8  # held-out crops: validation shall not need more memory than a step
CERTAINLY_SOUND = -30.0  # logit whose losses and gradients are zero to rounding
# a real old photo has its blur, grain and tone; only structured damage is laid on it
ALREADY_OLD: dict[str, Any] = {
    "p_blur": 0.0,
    "p_noise": 0.0,
    "p_grain": 0.0,
    "p_resampling": 0.0,
    "p_fading": 0.0,
    "p_grey": 0.0,
}


@dataclass(frozen=True)
class LabelledDamage:
    """A damaged crop, all its damage, and the part of that which shows.

    degradations: taken in turn, by the number of the sample.
    """

    clean: PhotoFolders
    old: PhotoFolders | None
    settings: MaskSettings
    degradations: tuple[DegradationSettings, ...]
    textures: TextureSet | None

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:
        photos, which = self.clean, index % len(self.degradations)
        damage = self.degradations[which]
        is_old = self.old is not None and bool(rng.random() < self.settings.old_share)
        if self.old is not None and is_old:
            photos, damage = self.old, replace(damage, **ALREADY_OLD)
        is_native = rng.random() < self.settings.native_share
        scale = 1.0 if is_native else self.settings.smallest_scale
        grounds = [
            crop(photos.pick(rng), crop_px, rng, smallest_scale=scale)
            for _ in range(rng.integers(1, self.settings.candidates + 1))
        ]
        ground = max(grounds, key=_detail)
        if rng.random() < self.settings.turned_share:
            ground = turned(ground, rng)
        if not is_old and rng.random() < self.settings.varied_share:
            another = crop(photos.pick(rng), crop_px, rng, smallest_scale=scale)
            ground = varied(ground, another, rng)
        if rng.random() < self.settings.distractor_share:
            ground = add_distractor(ground, rng)
        drawn = sample_degradation(rng, crop_px, crop_px, settings=damage, textures=self.textures)
        pair = degrade(ground, drawn, self.textures)
        return {
            "degraded": pair.image,
            "label": pair.labelled,
            "damaged": pair.mask,
            "mix": torch.tensor(which),
            "ground": ground,
            "is_old": torch.tensor(is_old),
        }


def _detail(image: Tensor) -> float:
    """How much fine detail there is: the mean change from a pixel to the next."""
    return sum(float(image.diff(dim=dim).abs().mean()) for dim in (-1, -2))


class Detection(nn.Module):
    """The detector's side, the only one.

    teacher: what the detector was, to find the own damage of real old photos.
    """

    def __init__(
        self, detector: Detector, settings: MaskSettings, teacher: Detector | None = None
    ) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings
        self._teacher = (teacher,)  # in a tuple: it is no part of this player

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        label = batch["label"]
        unsure = (batch["damaged"] > 0) | self._own_damage(batch)
        logits = _logits(self.detector, batch["degraded"])
        logits = logits.masked_fill(unsure & (label == 0), CERTAINLY_SOUND)
        settings, found = self.settings, {}
        if settings.cross_entropy:
            found["cross_entropy"] = F.binary_cross_entropy_with_logits(
                logits, label, pos_weight=logits.new_tensor(settings.positive_weight)
            )
        if settings.focal:
            found["focal"] = losses.focal(logits, label, settings.focal_gamma)
        if settings.dice:
            found["dice"] = losses.dice(logits, label)
        return found

    @torch.no_grad()
    def _own_damage(self, batch: Batch) -> Tensor:
        """(B, 1, H, W): what the teacher is sure of in real old photos, before damage was laid."""
        found = torch.zeros_like(batch["damaged"], dtype=torch.bool)
        (teacher,), is_old = self._teacher, batch["is_old"]
        if teacher is not None and is_old.any():
            found[is_old] = probability(teacher, batch["ground"][is_old]) > self.settings.own_damage
        return found


def make_stage(
    settings: MaskSettings,
    *,
    clean: Sequence[Path],
    old: Sequence[Path] = (),
    textures: Path | None = None,
    init_from: Path | None = None,
) -> Stage:
    """The stage.

    Args:
        clean: folders of clean photos.
        old: folders of real old photos, as further ground for drawn damage.
        textures: a folder of damage textures.
        init_from: run folder of another detector, or a weights file with one, to start from. It may
            have fewer residual blocks on the way down.

    Raises:
        ValueError: a folder is missing or holds nothing readable, or the network does not fit, or
            it has a refiner, which is taught afterwards.
    """
    if isinstance(settings.network, DetectorConfig) and settings.network.refiner:
        raise ValueError("network.refiner: train without, then teach one with `train refiner`")
    torch.manual_seed(settings.seed)
    detector = make_detector(settings.network)
    teacher = None
    if init_from is not None:
        source = read_source(init_from)
        fill_grown(source, detector, source.name_of("mask"), settings.network)
        teacher = copy.deepcopy(detector).eval().requires_grad_(False) if old else None
    pieces = None if textures is None else TextureSet.from_folder(textures)
    weights = {name: getattr(settings, name) for name in ("cross_entropy", "focal", "dice")}
    return Stage(
        name="mask",
        config={"preset": kind_of(settings.network), "mask": asdict(settings.network)},
        networks=nn.ModuleDict({"mask": detector}),
        players={"mask": Player(Detection(detector, settings, teacher), weights, settings.lr)},
        samples=damaged_crops(settings, clean, pieces, old=old),
        validation=held_out_crops(settings, clean, pieces),
        validate=_validate,
        sheet=_sheet,
        columns=3,
        judges=[] if teacher is None else [teacher],
        validation_crops=VALIDATION_CROPS,
    )


def damaged_crops(
    settings: MaskSettings,
    clean: Sequence[Path],
    textures: TextureSet | None,
    *,
    old: Sequence[Path] = (),
) -> LabelledDamage:
    """Crops to train on.

    Raises:
        ValueError: a folder is missing or holds nothing readable.
    """
    smallest = smallest_px(settings, held_out=False)
    photos = PhotoFolders(clean, held_out=False, smallest_px=smallest)
    real = PhotoFolders(old, held_out=False, smallest_px=smallest) if old else None
    pieces = None if textures is None else textures.split(HELD_OUT_TEXTURES)[0]
    return LabelledDamage(photos, real, settings, (settings.degradation,), pieces)


def held_out_crops(
    settings: MaskSettings, clean: Sequence[Path], textures: TextureSet | None
) -> LabelledDamage:
    """Held-out crops of photos as they are, with textures kept back, in two mixes in turn.

    The ordinary mix is the settings' with the damage of evaluation; the film-like one has a film's.
    No real old photos: nobody knows where those are damaged.

    Raises:
        ValueError: a folder is missing or holds nothing readable.
    """
    smallest = smallest_px(settings, held_out=True)
    photos = PhotoFolders(clean, held_out=True, smallest_px=smallest)
    pieces = None if textures is None else textures.split(HELD_OUT_TEXTURES)[1]
    mixes = (ordinary(settings), film_like(settings))
    plain = replace(
        settings,
        native_share=1.0,
        distractor_share=0.0,
        turned_share=0.0,
        varied_share=0.0,
        candidates=1,
    )
    return LabelledDamage(photos, None, plain, mixes, pieces)


def ordinary(settings: MaskSettings) -> DegradationSettings:
    """The settings' damage as evaluation has it: crops are whole photos, and no film's damage."""
    whole = replace(settings.degradation, photo_px=(0.0, 0.0))
    return replace(whole, p_film=0.0, p_large=0.0, p_blotches=0.0)


def film_like(settings: MaskSettings) -> DegradationSettings:
    """A film's damage."""
    whole = replace(settings.degradation, photo_px=(0.0, 0.0))
    return replace(whole, p_film=1.0, film_coverage=FILM_COVERAGE)


def probability(detector: Detector, degraded: Tensor) -> Tensor:
    """Of crops, as restoring would judge them, if their sides allow (`_sees_two_scales`)."""
    found = []
    for few in torch.split(degraded, AT_ONCE):
        if isinstance(detector, ScratchDetector) and _sees_two_scales(detector, few):
            found.append(detector.probability(few))
        else:
            found.append(detector(few).sigmoid())
    return torch.cat(found)


def _logits(detector: Detector, degraded: Tensor) -> Tensor:
    """At both scales, as in restoring, if the crops' sides allow; else at one scale.

    So are the published detector's, which brings photos to the scale of the crops.
    """
    if isinstance(detector, ScratchDetector) and _sees_two_scales(detector, degraded):
        return detector.at_two_scales(degraded)
    logits: Tensor = detector(degraded)
    return logits


def _sees_two_scales(detector: ScratchDetector, degraded: Tensor) -> bool:
    """Whether the crops' sides are multiples of what the detector needs to see them at both."""
    return degraded.shape[-1] % detector.config.align_px == 0


def score_mixes(detector: Detector, batch: Batch, scores: Sequence[DetectionScores]) -> None:
    """Count held-out crops, each with the scores of its mix."""
    found = probability(detector, batch["degraded"])
    for number, mix in enumerate(scores):
        chosen = batch["mix"] == number
        if chosen.any():
            mix.add(found[chosen], batch["label"][chosen], batch["damaged"][chosen])


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """Of either mix: average precision, the best F1 with its threshold, and figures at 0.5."""
    scores = {"ordinary": DetectionScores(), "film": DetectionScores()}
    score_mixes(_detector(networks), batch, list(scores.values()))
    figures = {}
    for name, mix in scores.items():
        figures[f"{name}_ap"] = mix.average_precision()
        figures[f"{name}_f1_best"] = float(mix.f1().max())
        figures[f"{name}_threshold_best"] = mix.best_threshold()
        figures |= {f"{name}_{key}": value for key, value in mix.at(0.5).items()}
    return figures


def _detector(networks: nn.ModuleDict) -> Detector:
    detector = networks["mask"]
    assert isinstance(detector, Detector)
    return detector


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    def grey(probability: Tensor) -> Tensor:
        return probability.expand(-1, 3, -1, -1) * 2 - 1

    columns = [
        batch["degraded"],
        grey(probability(_detector(networks), batch["degraded"])),
        grey(batch["label"]),
    ]
    return torch.stack(columns, dim=1).flatten(0, 1)
