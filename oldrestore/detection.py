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
    histograms: (3, BINS), the probabilities of pixels at visible damage and of sound ones, and of
        visible damage the highest within the tolerance.
    """

    tolerance_px: int = TOLERANCE_PX
    histograms: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))

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
        reached = grow(probability, self.tolerance_px)[visible > 0]
        chosen = (probability[near], probability[sound], reached)
        self.histograms += torch.stack([_histogram(values) for values in chosen])

    def precision(self) -> Tensor:
        """(BINS,): share of what is found that is right, above each threshold; 1 of nothing."""
        return precision_recall(self.histograms)[0]

    def recall(self) -> Tensor:
        """(BINS,): share of what shows that is found, above each threshold; 1 of nothing."""
        return precision_recall(self.histograms)[1]

    def f1(self) -> Tensor:
        """(BINS,): harmonic mean of both."""
        return f1_of(self.histograms)

    def average_precision(self) -> float:
        """Precision averaged over recall: the area under their curve, in steps."""
        return float(average_precision_of(self.histograms))

    def flagged(self) -> Tensor:
        """(BINS,): share of the sound pixels that are taken for damaged, above each threshold."""
        wrong = self.histograms[1]
        return _above(wrong) / wrong.sum().clamp(min=1)

    def best_threshold(self) -> float:
        """Where F1 is highest; the middle of it, if that is so in several places."""
        f1 = self.f1()
        best = torch.nonzero(f1 == f1.max()).flatten()
        return float(best[len(best) // 2]) / BINS

    def at(self, threshold: float) -> dict[str, float]:
        """Precision, recall, F1 and the share of sound pixels flagged, by name."""
        index = bin_of(threshold)
        return {
            "precision": float(self.precision()[index]),
            "recall": float(self.recall()[index]),
            "f1": float(self.f1()[index]),
            "flagged": float(self.flagged()[index]),
        }


def bin_of(threshold: float) -> int:
    """The place of a threshold among the BINS."""
    return min(BINS - 1, round(threshold * BINS))


def precision_recall(histograms: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3, BINS) as in `DetectionScores` -> both (..., BINS), above each threshold."""
    right, wrong, reached = _above(histograms).unbind(dim=-2)
    total = reached[..., :1]
    precision = torch.where(right + wrong > 0, right / (right + wrong).clamp(min=1), 1.0)
    return precision, torch.where(total > 0, reached / total.clamp(min=1), 1.0)


def f1_of(histograms: Tensor) -> Tensor:
    """(..., 3, BINS) -> (..., BINS)."""
    precision, recall = precision_recall(histograms)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def average_precision_of(histograms: Tensor) -> Tensor:
    """(..., 3, BINS) -> (...)."""
    precision, recall = (x.flip(-1) for x in precision_recall(histograms))
    # from the highest threshold down
    gained = torch.diff(recall, prepend=torch.zeros_like(recall[..., :1]))
    return (gained * precision).sum(dim=-1)


def _histogram(values: Tensor) -> Tensor:
    """Of values in [0, 1]; a value on the border of two bins counts in the lower one."""
    index = (values.double().cpu() * BINS).ceil().long() - 1
    return torch.bincount(index.clamp(0, BINS - 1).flatten(), minlength=BINS).double()


def _above(histograms: Tensor) -> Tensor:
    """How many values are above the lower border of each bin."""
    return histograms.flip(-1).cumsum(-1).flip(-1)
