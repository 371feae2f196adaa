"""Identity guard: an enhanced face must still be the same person, or the face is left alone.

Two looks: where a detector sees eyes, nose and mouth, before and after; and how much of the pattern
of light and dark, down to the shape of an eye, is the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.face.detect import Face, FaceDetector
from oldrestore.layers import LUMA

# in distances of the eyes; compressing an old portrait anew (JPEG, quality 50) moves them by 0.02
# in the median and by 0.05 in nine of ten: below this limit the detector cannot tell
MOST_MOVED = 0.10
LEAST_LIKENESS = 0.80  # of the pattern; a portrait compressed anew has more than 0.998
PATTERN_PX = 48  # side of the small copies that patterns are compared in
BROAD_PX = 13  # side of the mean that is taken off first: light and shade are no features


@dataclass(frozen=True)
class Likeness:
    """How alike a face is before and after.

    moved: mean distance of the landmarks, in distances of the eyes; None: not found in both.
    pattern: correlation of light and dark in the face, -1 to 1.
    """

    moved: float | None
    pattern: float

    def objection(self) -> str | None:
        """Why it may be another person; None: it is the same."""
        if self.moved is not None and self.moved > MOST_MOVED:
            return f"its features would move by {self.moved:.0%} of the distance of the eyes"
        if self.pattern < LEAST_LIKENESS:
            return f"it would be alike only by {self.pattern:.2f}, of 1"
        return None


def likeness(detector: FaceDetector, before: Tensor, after: Tensor) -> Likeness:
    """Compare two aligned crops (1, 3, S, S) in [-1, 1]."""
    faces = [nearest(detector.detect(crop[0]), before.shape[-1]) for crop in (before, after)]
    return Likeness(landmarks_moved(*faces), pattern_likeness(before, after))


def nearest(faces: list[Face], side_px: float) -> Face | None:
    """The face in the middle of an aligned crop, of those that fill a good part of it."""
    large = [face for face in faces if face.size_px > side_px / 4]
    middle = np.full(2, side_px / 2)

    def distance(face: Face) -> float:
        return float(np.linalg.norm(np.mean(face.landmarks, axis=0) - middle))

    return min(large, key=distance, default=None)


def landmarks_moved(before: Face | None, after: Face | None) -> float | None:
    """Mean distance of the landmarks, in distances of the eyes before."""
    if before is None or after is None:
        return None
    ours, theirs = np.array(before.landmarks), np.array(after.landmarks)
    eyes = float(np.linalg.norm(ours[1] - ours[0]))
    return float(np.linalg.norm(ours - theirs, axis=1).mean() / max(eyes, 1.0))


def pattern_likeness(before: Tensor, after: Tensor) -> float:
    """Correlation of the small copies' luma, less its local mean, in the middle of the crop."""
    patterns = [_pattern(crop) for crop in (before, after)]
    ours, theirs = (pattern - pattern.mean() for pattern in patterns)
    scale = float(ours.norm() * theirs.norm())
    if scale == 0:  # nothing to see in one of them
        return 1.0 if torch.equal(ours, theirs) else 0.0
    return float((ours * theirs).sum()) / scale


def _pattern(crop: Tensor) -> Tensor:
    luma = (crop.float() * crop.new_tensor(LUMA).float()[:, None, None]).sum(dim=1, keepdim=True)
    small = F.interpolate(
        luma, (PATTERN_PX, PATTERN_PX), mode="bilinear", align_corners=False, antialias=True
    )
    margin = BROAD_PX // 2
    padded = F.pad(small, (margin,) * 4, mode="replicate")
    fine = small - F.avg_pool2d(padded, BROAD_PX, stride=1)
    return fine[..., margin:-margin, margin:-margin]
