"""Grounds: the sound pictures on which the stage "mask" lays damage.

Clean photos, in more kinds than there are, real old photos, and above all what the detector that a
run starts from is mistaken in: on crops drawn at random it is right nearly everywhere.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from oldrestore.train.config import MaskSettings
from oldrestore.train.data import PhotoFolders, crop
from oldrestore.train.distractors import add_distractor
from oldrestore.train.judging import AT_ONCE, Detector, logits
from oldrestore.train.variety import turned, varied

log = logging.getLogger(__name__)

MISTAKEN = 0.5  # probability of damage above which a pixel of a clean photo counts
KEPT_SHARE = 0.1  # of the mined crops


@dataclass(frozen=True)
class Grounds:
    """Where the grounds come from, and how often.

    mined: numbers of the candidates (see ``candidate``) that are worth most.
    """

    clean: PhotoFolders
    old: PhotoFolders | None
    settings: MaskSettings
    mined: tuple[int, ...] = ()

    def draw(self, rng: Generator, crop_px: int) -> tuple[Tensor, bool]:
        """A ground (3, S, S) in [-1, 1], and whether it is a part of a real old photo."""
        settings = self.settings
        is_old = self.old is not None and bool(rng.random() < settings.old_share)
        photos = self.old if self.old is not None and is_old else self.clean
        # the candidates are known at one size
        if self._has_mined(crop_px) and not is_old and rng.random() < settings.mined_share:
            ground = self.candidate(self.mined[rng.integers(len(self.mined))], crop_px)
        else:
            is_native = rng.random() < settings.native_share
            count = rng.integers(1, settings.candidates + 1)
            grounds = [self._crop(photos, rng, crop_px, is_native) for _ in range(count)]
            ground = max(grounds, key=_detail)
        if rng.random() < settings.turned_share:
            ground = turned(ground, rng)
        if not is_old and rng.random() < settings.varied_share:
            another = self._crop(photos, rng, crop_px, rng.random() < settings.native_share)
            ground = varied(ground, another, rng)
        if rng.random() < settings.distractor_share:
            ground = add_distractor(ground, rng)
        return ground, is_old

    def candidate(self, number: int, crop_px: int) -> Tensor:
        """A crop (3, S, S) of a clean photo: always the same for a number and a size."""
        rng = np.random.default_rng([self.settings.seed, number])
        return self._crop(self.clean, rng, crop_px, rng.random() < self.settings.native_share)

    def _has_mined(self, crop_px: int) -> bool:
        return bool(self.mined) and crop_px == self.settings.crop_px

    def _crop(self, photos: PhotoFolders, rng: Generator, crop_px: int, is_native: bool) -> Tensor:
        scale = 1.0 if is_native else self.settings.smallest_scale
        return crop(photos.pick(rng), crop_px, rng, smallest_scale=scale)


def mined(grounds: Grounds, detector: Detector) -> Grounds:
    """The same, with the candidates in which a detector takes most for damage."""
    settings, is_training = grounds.settings, detector.training
    detector.eval()
    worth: list[tuple[float, int]] = []
    for first in range(0, settings.mined, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, settings.mined))
        crops = torch.stack([grounds.candidate(n, settings.crop_px) for n in numbers])
        with torch.inference_mode():
            excess = (logits(detector, crops).sigmoid() - MISTAKEN).clamp(min=0)
        worth += zip(excess.sum(dim=(1, 2, 3)).tolist(), numbers, strict=True)
    detector.train(is_training)
    worth.sort(reverse=True)
    kept = worth[: round(KEPT_SHARE * settings.mined)]
    numbers_kept = tuple(number for excess, number in kept if excess > 0)
    if settings.mined:
        log.info("mistaken in %d of %d crops that are kept", len(numbers_kept), len(kept))
    return replace(grounds, mined=numbers_kept)


def _detail(image: Tensor) -> float:
    """How much fine detail there is: the mean change from a pixel to the next."""
    return sum(float(image.diff(dim=dim).abs().mean()) for dim in (-1, -2))
