"""Judging: what a detector says of crops, in training and when crops are chosen or scored."""

import torch
from torch import Tensor

from oldrestore.mask import PaperDetector, ScratchDetector

Detector = ScratchDetector | PaperDetector
AT_ONCE = 8  # crops: judging many shall not need more memory than a step


def probability(detector: Detector, degraded: Tensor) -> Tensor:
    """Of crops, as restoring would judge them, if their sides allow (`_sees_two_scales`)."""
    found = []
    for few in torch.split(degraded, AT_ONCE):
        if isinstance(detector, ScratchDetector) and _sees_two_scales(detector, few):
            found.append(detector.probability(few))
        else:
            found.append(detector(few).sigmoid())
    return torch.cat(found)


def logits(detector: Detector, degraded: Tensor) -> Tensor:
    """At both scales, as in restoring, if the crops' sides allow; else at one scale.

    So are the published detector's, which brings photos to the scale of the crops.
    """
    if isinstance(detector, ScratchDetector) and _sees_two_scales(detector, degraded):
        return detector.at_two_scales(degraded)
    found: Tensor = detector(degraded)
    return found


def _sees_two_scales(detector: ScratchDetector, degraded: Tensor) -> bool:
    """Whether the crops' sides are multiples of what the detector needs to see them at both."""
    return degraded.shape[-1] % detector.config.align_px == 0
