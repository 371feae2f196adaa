"""Synthetic pairs that the mapping is learnt from, and real old photos beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from oldrestore.degradation import DegradationSettings, TextureSet, degrade, sample_degradation
from oldrestore.train.config import MappingSettings
from oldrestore.train.data import Batch, PhotoFolders, crop, smallest_px


@dataclass(frozen=True)
class Pairs:
    """A damaged crop, its mask, and what it shall become; with ``old``, a real old crop as well."""

    clean: PhotoFolders
    old: PhotoFolders | None
    degradation: DegradationSettings
    textures: TextureSet | None
    settings: MappingSettings
    mask_dilation_px: int

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        scale = self.settings.smallest_scale
        clean = crop(self.clean.pick(rng), crop_px, rng, smallest_scale=scale)
        damage = sample_degradation(
            rng, crop_px, crop_px, settings=self.degradation, textures=self.textures
        )
        pair = degrade(clean, damage, self.textures)
        grown = int(rng.integers(self.mask_dilation_px + 1))
        mask = F.max_pool2d(pair.mask, 2 * grown + 1, 1, grown) if grown else pair.mask
        drawn = {"degraded": pair.image, "mask": mask, "target": pair.target}
        if self.settings.detected_share:
            is_detected = rng.random() < self.settings.detected_share
            drawn["is_detected"] = torch.tensor(bool(is_detected))
        if self.old is not None:  # as it is: shrinking would take its damage away
            drawn["real"] = crop(self.old.pick(rng), crop_px, rng, smallest_scale=1.0)
        return drawn


def pairs(
    settings: MappingSettings,
    *,
    clean: Sequence[Path],
    old: Sequence[Path],
    textures: Path | None,
    held_out: bool,
) -> Pairs:
    """Pairs to train on; held out, damaged and not faded ones: tone would hide the rest.

    Raises:
        ValueError: a folder holds nothing readable; there are real old photos and no loss is about
            them, or the other way round.
    """
    needs_old = settings.latent_adversary > 0 or settings.real_reconstruction > 0
    if needs_old and not old:
        raise ValueError(
            "old: latent_adversary and real_reconstruction are about real old photos: name a "
            "folder of them with --old, or set both to 0"
        )
    if old and not needs_old:
        raise ValueError(
            "old: no loss is about real old photos: leave them out, or set latent_adversary and "
            "real_reconstruction"
        )
    smallest = smallest_px(settings, held_out=held_out)
    photos = PhotoFolders(clean, held_out=held_out, smallest_px=smallest)
    real = PhotoFolders(old, held_out=held_out, smallest_px=smallest) if old else None
    pieces = TextureSet.from_folder(textures) if textures is not None else None
    damage, grown = settings.degradation, settings.mask_dilation_px
    if held_out:  # with no more large holes and blotches than in evaluation
        holes = float(damage.p_structured > 0)
        damage = replace(damage, p_fading=0.0, p_undamaged=0.0, p_structured=holes)
        damage = replace(damage, p_large=0.0, p_blotches=0.0)
        grown = 0
    return Pairs(photos, real, damage, pieces, settings, grown)
