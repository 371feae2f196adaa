"""Choosing a detector's threshold on held-out photos and textures, before the release.

What is lost by a missed scratch and by a mended eye is not the same for everyone, so the choice is
plain: the best F1, as a mean of ordinary damage and a film's, among the thresholds at which nearly
nothing of undamaged photos is flagged. Around its best F1 hardly changes, while what is mended
without need still falls fast: of the thresholds that are as good, the highest is taken.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oldrestore.degradation import TextureSet
from oldrestore.detection import BINS, DetectionScores
from oldrestore.mask import DetectorConfig, make_detector
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import fixed_batch, validation_crop_px
from oldrestore.train.mask import held_out_crops, score_mixes
from oldrestore.train.state import read_source

MIXES = ("ordinary", "film", "undamaged")
MOST_FLAGGED = 0.001  # of the pixels of undamaged photos; sharper ones will have more
AS_GOOD = 0.005  # of F1: less than its interval over photos by far


def choose_threshold(
    detector: Path,
    settings: MaskSettings,
    *,
    clean: Sequence[Path],
    textures: Path | None = None,
    crops: int,
) -> dict[str, Any]:
    """Judge a detector on held-out crops.

    Args:
        detector: run folder of the stage "mask", or a weights file with a detector.
        settings: whose damage and network are taken.
        clean, textures: as in training; what was held out of them there is used here.
        crops: how many, in turn of the three mixes.

    Returns:
        "threshold", and by mix the average precision, the best F1 and its threshold, and precision,
        recall, F1 and the share of sound pixels flagged at "threshold".

    Raises:
        ValueError: a folder holds nothing readable, or the network does not fit.
    """
    source = read_source(detector)
    layout = settings.network
    if isinstance(layout, DetectorConfig):
        layout = replace(layout, refiner=(source.config.get("mask") or {}).get("refiner", 0))
    network = make_detector(layout)
    source.fill(network, source.name_of("mask"), layout)
    network.eval()
    pieces = None if textures is None else TextureSet.from_folder(textures)
    samples = held_out_crops(settings, clean, pieces)
    undamaged = replace(settings.degradation, p_structured=0.0)
    samples = replace(samples, degradations=(*samples.degradations, undamaged))
    scores = [DetectionScores() for _ in MIXES]
    batch = fixed_batch(samples, crops, validation_crop_px(settings))
    with torch.inference_mode():
        score_mixes(network, batch, scores)
    return report(scores)


def report(scores: Sequence[DetectionScores]) -> dict[str, Any]:
    """The threshold and what it gives, of scores in the order of ``MIXES``."""
    ordinary, film, undamaged = scores
    f1 = (ordinary.f1() + film.f1()) / 2
    quiet = undamaged.flagged() < MOST_FLAGGED
    f1 = torch.where(quiet, f1, -1.0)
    index = int(torch.nonzero(f1 >= f1.max() - AS_GOOD).max())
    threshold = index / BINS
    found: dict[str, Any] = {"threshold": threshold}
    for name, mix in zip(MIXES, scores, strict=True):
        at = mix.at(threshold)
        if name == "undamaged":
            found[name] = {"flagged": at["flagged"]}
            continue
        best = mix.best_threshold()
        found[name] = {
            "average_precision": mix.average_precision(),
            "f1_best": mix.at(best)["f1"],
            "threshold_best": best,
            **at,
        }
    return found
