"""How well damage is found: at real rates, with a pixel of tolerance, beside a plain rival.

The damage is what shows, see ``degradation.visibility``; how it is counted says ``detection``. All
photos' pixels are counted together.
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

from oldrestore.degradation import (
    Degradation,
    DegradationSettings,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.degradation.scratches import Dust, Hair, Scratch
from oldrestore.degradation.structured import StructuredStep
from oldrestore.detection import (
    BINS,
    TOLERANCE_PX,
    DetectionScores,
    average_precision_of,
    bin_of,
    f1_of,
)
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

Scorer = Callable[[Pixels], NDArray[np.float32]]


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
    detectors: dict[str, Scorer] = {
        OURS: functools.partial(_probability, restorer),
        RIVAL: median_difference,
    }
    scores: dict[tuple[str, str], list[DetectionScores]] = {}
    paths = numbered_photos(clean, limit)
    for index, path in progress(paths, "detecting" if show_progress else None):
        try:
            photo = decode(path).image[0]
        except PhotoError:  # named where the restoration is measured
            continue
        for damage, pixels, visible, damaged in _pictures(photo, [seed, index], textures):
            for name, score in detectors.items():
                one = DetectionScores()
                one.add(torch.from_numpy(score(pixels))[None, None], visible, damaged)
                scores.setdefault((damage, name), []).append(one)
    if not scores:
        raise ValueError(f"{clean}: none of its {len(paths)} photos can be read")
    detections, flagged = [], {}
    for damage in DAMAGES:
        for name in detectors:
            found = scores[damage, name]
            at = threshold if name == OURS else _pooled(found).best_threshold()
            detections.append(_detection(damage, name, found, at))
            if damage == DAMAGES[0]:
                flagged[name] = _flagged(scores[CLEAN, name], at)
    return DetectorResults(tuple(detections), flagged, len(scores[CLEAN, OURS]), seed)


def _pictures(
    photo: Tensor, seed: Sequence[int], textures: TextureSet | None
) -> Iterator[tuple[str, Pixels, Tensor, Tensor]]:
    """A photo with each kind of damage, and without.

    The name of the damage, the picture, and (1, 1, H, W) what of it shows, and all of it.
    """
    size = (photo.shape[1], photo.shape[2])
    for place, damage in enumerate(DAMAGES):
        rng = np.random.default_rng([*seed, place])
        if damage == "film-like":
            degradation = _sample_film(rng, size)
        else:
            degradation = sample_degradation(rng, *size, settings=ORDINARY, textures=textures)
        found = degrade(photo, degradation, textures)
        yield damage, to_pixels(found.image), found.labelled[None], found.mask[None]
    nothing = torch.zeros(1, 1, *size)
    yield CLEAN, to_pixels(photo), nothing, nothing


def _sample_film(rng: np.random.Generator, size: tuple[int, int]) -> Degradation:
    """Damage of a film: drawn again until there is some of its kinds, and without the others."""
    while True:
        drawn = sample_degradation(rng, *size, settings=FILM)
        structured = [step for step in drawn.steps if isinstance(step, StructuredStep)]
        if any(isinstance(step, FILM_DAMAGE) for step in structured):
            others = [step for step in structured if not isinstance(step, FILM_DAMAGE)]
            return replace(drawn, steps=tuple(s for s in drawn.steps if s not in others))


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


def _probability(restorer: Restorer, pixels: Pixels) -> NDArray[np.float32]:
    image = decode(pixels).image
    probability: NDArray[np.float32] = (
        restorer.damage_probability(image)[0, 0].float().cpu().numpy()
    )
    return probability


def _detection(
    damage: str, name: str, scores: Sequence[DetectionScores], threshold: float
) -> Detection:
    parts = np.stack([one.histograms.flatten().numpy() for one in scores])
    pooled = _pooled(scores)
    place = bin_of(threshold)

    def f1_there(sums: Numbers) -> Numbers:
        found: Numbers = f1_of(_unflattened(sums))[..., place].numpy()
        return found

    def average_precision(sums: Numbers) -> Numbers:
        found: Numbers = average_precision_of(_unflattened(sums)).numpy()
        return found

    right, wrong, reached = pooled.histograms.sum(dim=1).tolist()
    return Detection(
        damage=damage,
        detector=name,
        threshold=threshold,
        damaged=reached / (right + wrong),
        precision=pooled.at(threshold)["precision"],
        recall=pooled.at(threshold)["recall"],
        f1=summary_of_pool(parts, f1_there, f1_there(parts)),
        best_f1=float(pooled.f1().max()),
        average_precision=summary_of_pool(parts, average_precision, average_precision(parts)),
    )


def _unflattened(sums: Numbers) -> Tensor:
    return torch.from_numpy(sums).reshape(*sums.shape[:-1], 3, BINS)


def _pooled(scores: Sequence[DetectionScores]) -> DetectionScores:
    return DetectionScores(histograms=torch.stack([one.histograms for one in scores]).sum(dim=0))


def _flagged(scores: Sequence[DetectionScores], threshold: float) -> Summary:
    """Share of the pixels that are flagged."""
    summary = summary_of_mean([one.at(threshold)["flagged"] for one in scores])
    assert summary is not None
    return summary


def _with_interval(found: Summary) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
