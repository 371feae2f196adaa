"""How well a detector's probabilities agree with the damage that is there.

Damage is rare: of a film scan well under one pixel in a hundred. The area under a ROC curve says
nothing there; precision and recall do. The border of a scratch is a matter of a pixel, so a found
pixel counts as right next to visible damage too, and damage counts as found next to a found pixel.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 1000  # thresholds that are told apart
TOLERANCE_PX = 1


def grow(mask: Tensor, radius_px: int) -> Tensor:
    """Widen a mask, or probabilities, (B, 1, H, W), by a square of ``radius_px`` to each side."""
    return F.max_pool2d(mask, 2 * radius_px + 1, stride=1, padding=radius_px)


@dataclass
class DetectionScores:
    """Counts over any number of pictures; nothing is kept but histograms of probabilities.

    tolerance_px: how far from each other found and visible damage may lie.
    """

    tolerance_px: int = TOLERANCE_PX
    _right: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    _wrong: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    _reached: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def add(self, probability: Tensor, visible: Tensor, damaged: Tensor) -> None:
        """Count some pictures.

        Args:
            probability: (B, 1, H, W) in [0, 1].
            visible: (B, 1, H, W) of 0 and 1: damage that shows.
            damaged: the same: all damage. What is found on damage that does not show is neither
                right nor wrong.
        """
        near = grow(visible, self.tolerance_px) > 0
        sound = grow(torch.maximum(visible, damaged), self.tolerance_px) == 0
        self._right += _histogram(probability[near])
        self._wrong += _histogram(probability[sound])
        self._reached += _histogram(grow(probability, self.tolerance_px)[visible > 0])

    def precision(self) -> Tensor:
        """(BINS,): share of what is found that is right, above each threshold; 1 of nothing."""
        right, wrong = _above(self._right), _above(self._wrong)
        return torch.where(right + wrong > 0, right / (right + wrong).clamp(min=1), 1.0)

    def recall(self) -> Tensor:
        """(BINS,): share of what shows that is found, above each threshold; 1 of nothing."""
        total = self._reached.sum()
        return _above(self._reached) / total if total else torch.ones_like(self._reached)

    def f1(self) -> Tensor:
        """(BINS,): harmonic mean of both."""
        precision, recall = self.precision(), self.recall()
        return 2 * precision * recall / (precision + recall).clamp(min=1e-12)

    def average_precision(self) -> float:
        """Precision averaged over recall: the area under their curve, in steps."""
        recall = self.recall().flip(0)  # from the highest threshold down
        gained = torch.diff(recall, prepend=recall.new_zeros(1))
        return float((gained * self.precision().flip(0)).sum())

    def flagged(self) -> Tensor:
        """(BINS,): share of the sound pixels that are taken for damaged, above each threshold."""
        total = self._wrong.sum()
        return _above(self._wrong) / total if total else torch.zeros_like(self._wrong)

    def best_threshold(self) -> float:
        """Where F1 is highest; the middle of it, if that is so in several places."""
        f1 = self.f1()
        best = torch.nonzero(f1 == f1.max()).flatten()
        return float(best[len(best) // 2]) / BINS

    def at(self, threshold: float) -> dict[str, float]:
        """Precision, recall, F1 and the share of sound pixels flagged, by name."""
        index = min(BINS - 1, round(threshold * BINS))
        return {
            "precision": float(self.precision()[index]),
            "recall": float(self.recall()[index]),
            "f1": float(self.f1()[index]),
            "flagged": float(self.flagged()[index]),
        }


def _histogram(probability: Tensor) -> Tensor:
    """Of values in [0, 1]; a value on the border of two bins counts in the lower one."""
    index = (probability.double().cpu() * BINS).ceil().long() - 1
    return torch.bincount(index.clamp(0, BINS - 1).flatten(), minlength=BINS).double()


def _above(histogram: Tensor) -> Tensor:
    """How many values are above the lower border of each bin."""
    return histogram.flip(0).cumsum(0).flip(0)
