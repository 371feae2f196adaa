"""Stage "mask": learn to find structured damage (Wan et al., CVPR 2020, section 3.3).

The label is what the damage visibly changed: a white scratch on a white collar teaches nothing but
to see scratches in collars. Real old photos may be given as further ground to lay damage on: their
collars, plate edges and faint figures are what a detector most easily takes for damage. Their own
damage is not labelled, which is a small error: it covers far less than what is laid on them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.degradation import (
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.mask import PaperDetector, ScratchDetector, make_detector
from oldrestore.train import losses
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import Batch, PhotoFolders, crop, smallest_px
from oldrestore.train.loop import Player, Stage
from oldrestore.train.state import kind_of, read_source

THRESHOLDS = tuple(i / 20 for i in range(1, 20))  # of which validation looks for the best
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
    """A damaged crop and where the structured damage shows."""

    clean: PhotoFolders
    old: PhotoFolders | None
    settings: MaskSettings
    textures: TextureSet | None

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        photos, damage = self.clean, self.settings.degradation
        if self.old is not None and rng.random() < self.settings.old_share:
            photos, damage = self.old, replace(damage, **ALREADY_OLD)
        ground = crop(photos.pick(rng), crop_px, rng, smallest_scale=self.settings.smallest_scale)
        drawn = sample_degradation(rng, crop_px, crop_px, settings=damage, textures=self.textures)
        pair = degrade(ground, drawn, self.textures)
        return {"degraded": pair.image, "label": pair.labelled}


class Detection(nn.Module):
    """The detector's side, the only one."""

    def __init__(self, detector: ScratchDetector | PaperDetector, settings: MaskSettings) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits, label = self.detector(batch["degraded"]), batch["label"]
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
        init_from: run folder of another detector, or a weights file with one, to start from.

    Raises:
        ValueError: a folder is missing or holds nothing readable, or the network does not fit.
    """
    torch.manual_seed(settings.seed)
    detector = make_detector(settings.network)
    if init_from is not None:
        source = read_source(init_from)
        source.fill(detector, source.name_of("mask"), settings.network)
    pieces = TextureSet.from_folder(textures) if textures is not None else None

    def samples(held_out: bool) -> LabelledDamage:
        smallest = smallest_px(settings, held_out=held_out)
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=smallest)
        real = PhotoFolders(old, held_out=held_out, smallest_px=smallest) if old else None
        chosen = settings
        if held_out:
            chosen = replace(settings, degradation=replace(settings.degradation, p_structured=0.8))
        return LabelledDamage(photos, real, chosen, pieces)

    weights = {name: getattr(settings, name) for name in ("cross_entropy", "focal", "dice")}
    return Stage(
        name="mask",
        config={"preset": kind_of(settings.network), "mask": asdict(settings.network)},
        networks=nn.ModuleDict({"mask": detector}),
        players={"mask": Player(Detection(detector, settings), weights, settings.lr)},
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=_validate,
        sheet=_sheet,
        columns=3,
    )


def _probability(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    """At the scale of the crops, to which the published detector brings whole photos."""
    logits: Tensor = networks["mask"](batch["degraded"])
    return logits.sigmoid()


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """Of single pixels: F1 at probability 0.5, and the best F1 with its threshold."""
    probability, label = _probability(networks, batch), batch["label"] > 0.5

    def f1(threshold: float) -> float:
        found = probability > threshold
        both = float((found & label).sum())
        return 2 * both / max(1.0, float(found.sum() + label.sum()))

    best = max(THRESHOLDS, key=f1)
    return {"f1": f1(0.5), "f1_best": f1(best), "threshold_best": best}


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    def grey(probability: Tensor) -> Tensor:
        return probability.expand(-1, 3, -1, -1) * 2 - 1

    columns = [
        batch["degraded"],
        grey(_probability(networks, batch)),
        grey(batch["label"]),
    ]
    return torch.stack(columns, dim=1).flatten(0, 1)
