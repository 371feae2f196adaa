"""How well damage is found: at real rates, with a pixel of tolerance, beside a plain rival.

Damage is rare: at 0.3 % of the pixels a detector may be right on 99 % of all pixels and useless.
So precision, recall, F1 and average precision are reported, of all photos' pixels together, and no
area under a ROC curve. What counts as damage is what visibly changed the picture.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oldrestore.degradation import (
    Degradation,
    DegradationSettings,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.degradation.scratches import Dust, Hair, Scratch
from oldrestore.degradation.structured import StructuredStep
from oldrestore.evaluate.photos import numbered_photos, progress
from oldrestore.evaluate.samples import FULL_SCALE, Pixels, to_pixels
from oldrestore.evaluate.statistics import (
    Numbers,
    Summary,
    summary_of_mean,
    summary_of_pool,
)
from oldrestore.evaluate.tables import Table
from oldrestore.image import decode
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer

TOLERANCE_PX = 1
MEDIAN_PX = 9  # side of the rival's windows; the best of 5, 7, 9, 15 and 21 on other photos
# a scanned film: dust, hairs and scratches, sparse, on a grainy grey picture; 0.3 % on average
FILM = DegradationSettings(
    p_undamaged=0.0,
    p_grey=1.0,
    p_fading=0.0,
    p_structured=1.0,
    p_blur=0.3,
    p_noise=0.0,
    p_grain=1.0,
    p_resampling=0.0,
    p_jpeg=0.0,
    severity=(0.0, 0.2),
    coverage=(0.0007, 0.005),
    coverage_median=0.002,
)
FILM_DAMAGE = (Dust, Hair, Scratch)
ORDINARY = replace(DegradationSettings(), p_undamaged=0.0, p_structured=1.0)
DAMAGES = ("film-like", "ordinary")
CLEAN = "clean"
OURS, RIVAL = "ours", "local median difference"

# probabilities crowd at both ends: even steps in their logits
PROBABILITIES: Numbers = 1 / (1 + np.exp(-np.linspace(-12, 12, 241)))
LEVELS = np.arange(256) / FULL_SCALE - 0.5 / FULL_SCALE


Scorer = Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True)
class Counts:
    """Pixels of one photo above each of n thresholds.

    flagged: above it. right: of these, within a pixel of damage. found: damaged pixels within a
    pixel of a flagged one. damaged, pixels: of the photo.
    """

    flagged: Numbers
    right: Numbers
    found: Numbers
    damaged: int
    pixels: int


@dataclass(frozen=True)
class Detection:
    """How a detector does on one kind of damage.

    threshold: the one used. precision, recall, f1: at it. best_f1: at the best threshold for these
    photos. average_precision: over all thresholds. damaged: share of the pixels.
    """

    damage: str
    detector: str
    threshold: float
    damaged: float
    precision: float
    recall: float
    f1: Summary
    best_f1: float
    average_precision: Summary


@dataclass(frozen=True)
class DetectorResults:
    """What was measured; flagged: share of the pixels of clean photos, by detector."""

    detections: tuple[Detection, ...]
    flagged: dict[str, Summary]
    photos: int
    seed: int

    def tables(self) -> list[Table]:
        """One table: each kind of damage, each detector."""
        head = ("", "damaged", "precision", "recall", "F1", "best F1", "average precision")
        rows = [
            [
                f"{one.damage}: {one.detector}",
                f"{one.damaged:.2%}",
                f"{one.precision:.2f}",
                f"{one.recall:.2f}",
                _with_interval(one.f1),
                f"{one.best_f1:.2f}",
                _with_interval(one.average_precision),
            ]
            for one in self.detections
        ]
        flagged = ", ".join(
            f"{name} {found.value:.2%} [{found.low:.2%}, {found.high:.2%}]"
            for name, found in self.flagged.items()
        )
        caption = (
            f"pixels of {self.photos} photos together, {TOLERANCE_PX} px tolerance, seed "
            f"{self.seed}, [95 % interval]; ours at its default threshold, {RIVAL} at its best "
            f"for each; flagged on the clean photos: {flagged}"
        )
        return [Table("detector", head, rows, caption)]

    def as_json(self) -> dict[str, Any]:
        """Everything, in what JSON can hold."""
        return asdict(self)


def evaluate_detector(
    clean: Path,
    restorer: Restorer,
    *,
    seed: int = 0,
    textures: TextureSet | None = None,
    limit: int | None = None,
    show_progress: bool = False,
) -> DetectorResults:
    """Damage clean photos visibly, look for the damage, and count.

    Args:
        clean: folder of undamaged photos.
        restorer: with a detector.
        seed: of the damage.
        textures: scans of real damage to draw from too.
        limit: only so many photos.
        show_progress: a bar on stderr, if that is a terminal.

    Raises:
        ValueError: the folder has no readable photo, or these weights have no detector.
        ModuleNotFoundError: OpenCV is not installed.
    """
    threshold = restorer.config.defaults.threshold
    detectors: dict[str, tuple[Scorer, Numbers]] = {
        OURS: (functools.partial(_probability, restorer), np.union1d(PROBABILITIES, [threshold])),
        RIVAL: (median_difference, LEVELS),
    }
    counts: dict[tuple[str, str], list[Counts]] = {}
    paths = numbered_photos(clean, limit)
    for index, path in progress(paths, "detecting" if show_progress else None):
        try:
            photo = decode(path).image[0]
        except PhotoError:  # named where the restoration is measured
            continue
        for damage, pixels, truth in _pictures(photo, [seed, index], textures):
            for name, (score, thresholds) in detectors.items():
                found = count(score(pixels), truth, thresholds)
                counts.setdefault((damage, name), []).append(found)
    if not counts:
        raise ValueError(f"{clean}: none of its {len(paths)} photos can be read")
    detections, flagged = [], {}
    for damage in DAMAGES:
        for name, (_, thresholds) in detectors.items():
            best = float(thresholds[np.argmax(_f1(_sums(counts[damage, name])))])
            at = threshold if name == OURS else best
            detections.append(_detection(damage, name, counts[damage, name], thresholds, at))
            if damage == DAMAGES[0]:
                flagged[name] = _flagged(counts[CLEAN, name], thresholds, at)
    return DetectorResults(tuple(detections), flagged, len(counts[CLEAN, OURS]), seed)


def _pictures(
    photo: Tensor, seed: Sequence[int], textures: TextureSet | None
) -> Iterator[tuple[str, Pixels, NDArray[np.bool_]]]:
    """A photo with each kind of damage, and without: its name, the picture, the damaged pixels."""
    size = (photo.shape[1], photo.shape[2])
    for place, damage in enumerate(DAMAGES):
        rng = np.random.default_rng([*seed, place])
        if damage == "film-like":
            degradation = _sample_film(rng, size)
        else:
            degradation = sample_degradation(rng, *size, settings=ORDINARY, textures=textures)
        found = degrade(photo, degradation, textures)
        yield damage, to_pixels(found.image), found.labelled[0].numpy() > 0
    yield CLEAN, to_pixels(photo), np.zeros(photo.shape[1:], np.bool_)


def _sample_film(rng: np.random.Generator, size: tuple[int, int]) -> Degradation:
    """Damage of a film: drawn again until there is some of its kinds, and without the others."""
    while True:
        drawn = sample_degradation(rng, *size, settings=FILM)
        structured = [step for step in drawn.steps if isinstance(step, StructuredStep)]
        if any(isinstance(step, FILM_DAMAGE) for step in structured):
            others = [step for step in structured if not isinstance(step, FILM_DAMAGE)]
            return replace(drawn, steps=tuple(s for s in drawn.steps if s not in others))


def _flagged(counts: Sequence[Counts], thresholds: Numbers, threshold: float) -> Summary:
    """Share of the pixels that are flagged."""
    place = int(np.searchsorted(thresholds, threshold))
    summary = summary_of_mean([c.flagged[place] / c.pixels for c in counts])
    assert summary is not None
    return summary


def median_difference(pixels: Pixels) -> NDArray[np.float32]:
    """How far each pixel is from the median around it, (H, W) in [0, 1].

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "OpenCV is needed to measure the detector: pip install 'oldrestore[train]'"
        ) from error
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    difference = cv2.absdiff(grey, cv2.medianBlur(grey, MEDIAN_PX)).astype(np.float32)
    share: NDArray[np.float32] = difference / np.float32(FULL_SCALE)
    return share


def count(score: NDArray[np.float32], truth: NDArray[np.bool_], thresholds: Numbers) -> Counts:
    """Count pixels against the truth, at every threshold.

    Args:
        score: (H, W); a pixel is flagged where it is above the threshold.
        truth: (H, W); damaged pixels.
        thresholds: ascending.
    """
    near = _widest(torch.from_numpy(truth).float()).numpy() > 0
    around = _widest(torch.from_numpy(score)).numpy()
    return Counts(
        flagged=_above(score, thresholds),
        right=_above(score[near], thresholds),
        found=_above(around[truth], thresholds),
        damaged=int(truth.sum()),
        pixels=truth.size,
    )


def average_precision(sums: Numbers) -> Numbers:
    """Precision averaged over recall, step by step: sums (..., 3 n + 1) -> (...)."""
    precision, recall = _rates(sums)
    precision, recall = precision[..., ::-1], recall[..., ::-1]  # from the highest threshold down
    # with tolerance recall grows with falling thresholds as it does without
    steps = np.diff(recall, prepend=0.0, axis=-1)
    averaged: Numbers = (steps * precision).sum(axis=-1)
    return averaged


def _probability(restorer: Restorer, pixels: Pixels) -> NDArray[np.float32]:
    image = decode(pixels).image
    probability: NDArray[np.float32] = (
        restorer.damage_probability(image)[0, 0].float().cpu().numpy()
    )
    return probability


def _detection(
    damage: str, name: str, counts: Sequence[Counts], thresholds: Numbers, threshold: float
) -> Detection:
    parts = _parts(counts)
    sums = parts.sum(axis=0)
    place = int(np.searchsorted(thresholds, threshold))
    precision, recall = _rates(sums)

    def f1_there(sums: Numbers) -> Numbers:
        return _f1(sums)[..., place]

    return Detection(
        damage=damage,
        detector=name,
        threshold=threshold,
        damaged=sum(c.damaged for c in counts) / sum(c.pixels for c in counts),
        precision=float(precision[place]),
        recall=float(recall[place]),
        f1=summary_of_pool(parts, f1_there, f1_there(parts)),
        best_f1=float(_f1(sums).max()),
        average_precision=summary_of_pool(parts, average_precision, average_precision(parts)),
    )


def _parts(counts: Sequence[Counts]) -> Numbers:
    """(photos, 3 n + 1): what each photo adds to flagged, right, found and damaged."""
    return np.stack([np.concatenate([c.flagged, c.right, c.found, [c.damaged]]) for c in counts])


def _sums(counts: Sequence[Counts]) -> Numbers:
    total: Numbers = _parts(counts).sum(axis=0)
    return total


def _rates(sums: Numbers) -> tuple[Numbers, Numbers]:
    """Precision and recall at each threshold; where nothing is flagged nothing is wrong."""
    flagged, right, found = np.split(sums[..., :-1], 3, axis=-1)
    precision = np.where(flagged > 0, right / np.maximum(flagged, 1), 1.0)
    return precision, found / np.maximum(sums[..., -1:], 1)


def _f1(sums: Numbers) -> Numbers:
    precision, recall = _rates(sums)
    harmonic: Numbers = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return harmonic


def _above(values: NDArray[Any], thresholds: Numbers) -> Numbers:
    """How many values are above each threshold."""
    passed = np.searchsorted(thresholds, values.ravel(), side="left")  # thresholds below the value
    histogram = np.bincount(passed, minlength=len(thresholds) + 1)
    above: Numbers = histogram[::-1].cumsum()[::-1][1:].astype(np.float64)
    return above


def _widest(values: Tensor) -> Tensor:
    """(H, W) -> the greatest value within the tolerance."""
    side = 2 * TOLERANCE_PX + 1
    return F.max_pool2d(values[None, None], side, 1, TOLERANCE_PX)[0, 0]


def _with_interval(found: Summary) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
