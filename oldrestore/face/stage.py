"""FaceStage: the faces of a restored photo, one after the other.

    small copy -> faces -> for each: window -> aligned crop -> network -> guard -> blend

Faces are looked for in the photo as it came, so that the result does not depend on how much of the
restored photo is in memory at a time.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.face.align import TEMPLATE, corners, inverse, scale_of, shifted, to_template, warp
from oldrestore.face.blend import add_change, change_of
from oldrestore.face.detect import (
    EXTRA,
    Face,
    FaceDetector,
    make_face_detector,
    nearest_to,
    why_no_detector,
)
from oldrestore.face.guard import likeness
from oldrestore.face.network import DEFAULT_FACE_WEIGHTS, FaceNetwork
from oldrestore.image import are_grey, image_of, new_pixels

Faces: TypeAlias = Literal["auto", "on", "off"]
CHOICES = ("auto", "on", "off")

COPY_PX = 1600  # longer side of the small copy that faces are looked for in, at most
LEAST_FACE_PX = 20  # a smaller one is left alone: what would be seen in it would be invented
# landmarks off the template by this share of the crop: 97 of 100 old portraits have less, and those
# with more are profiles
MOST_SKEWED = 0.06
REFINED_PX = 224  # longer side of the copy of a face's surroundings in which it is looked for again
SURROUNDINGS = 1.0  # of a face's size, on each side of its box
STRIP_PX = 2**21  # pixels that are turned into float at a time

ReadWindow: TypeAlias = Callable[[int, int, int, int], Tensor]  # top, left, bottom, right


@dataclass(frozen=True)
class FoundFace:
    """A face of a photo and what came of it.

    box: left, top, right, bottom in pixels; may reach over the border.
    landmarks: x, y of the eyes, the nose and the corners of the mouth, left ones first.
    score: 0 to 1, how sure the detector is.
    kept: whether the enhanced face is in the result; if not it was left alone.
    reason: why it was left alone; empty if it was not.
    moved, alike: see ``guard.Likeness``; None where it did not come to that.
    photo: number of its photo in a batch of one tensor.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float
    kept: bool
    reason: str = ""
    moved: float | None = None
    alike: float | None = None
    photo: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, rounded to what they mean."""
        return {
            "box": [round(value, 1) for value in self.box],
            "landmarks": [[round(value, 1) for value in point] for point in self.landmarks],
            "score": round(self.score, 3),
            "kept": self.kept,
            "reason": self.reason,
            "moved": None if self.moved is None else round(self.moved, 4),
            "alike": None if self.alike is None else round(self.alike, 4),
        }


@dataclass(frozen=True)
class FaceStage:
    """Finds and enhances faces; see the module.

    detector: finds them. network: enhances aligned crops.
    """

    detector: FaceDetector
    network: FaceNetwork

    def find(self, read: ReadWindow, height: int, width: int) -> list[Face]:
        """The faces of a photo, found in a small copy; in the order in which rows complete them."""
        copy, factor = reduced(read, (0, 0, height, width), COPY_PX)
        found = [face.moved(0, 0, factor) for face in self.detector.detect(copy[0])]

        def end(face: Face) -> tuple[int, int, int]:
            top, left, bottom, _ = self.window_of(face, height, width)
            return bottom, top, left

        return sorted(found, key=end)

    def window_of(self, face: Face, height: int, width: int) -> tuple[int, int, int, int]:
        """What of the photo a face may change: top, left, bottom, right."""
        left, top, right, bottom = face.box
        around = face.size_px * SURROUNDINGS
        return (
            max(0, math.floor(top - around)),
            max(0, math.floor(left - around)),
            min(height, math.ceil(bottom + around)),
            min(width, math.ceil(right + around)),
        )

    def enhance(
        self,
        face: Face,
        window: Tensor,
        top: int,
        left: int,
        size: tuple[int, int],
        strength: float,
    ) -> tuple[Tensor | None, FoundFace]:
        """Enhance one face.

        Args:
            face: as found, in pixels of the photo.
            window: (1, C, h, w), pixels of the restored photo as ``window_of`` says.
            top, left: of the window.
            size: height and width of the photo.
            strength: share of the change that is made.

        Returns:
            New pixels like ``window``, None if the face is left alone; and what to say of it.
        """
        face = self._refined(face, window, top, left)
        objection = _unfit(face, size)
        if objection is not None:
            return None, left_alone(face, objection)
        side = self.network.side_px
        matrix = shifted(to_template(face.landmarks, side), left, top)
        crop = _crop(window, matrix, side)
        is_grey = bool(are_grey(window))
        change = change_of(crop, self.network.enhance(crop), is_grey=is_grey) * strength
        alike = likeness(self.detector, crop, (crop + change).clamp(-1, 1))
        objection = alike.objection()
        told = dataclasses.replace(
            left_alone(face, objection or ""),
            kept=objection is None,
            moved=alike.moved,
            alike=alike.pattern,
        )
        if objection is not None:
            return None, told
        result = window.clone()
        rows = max(1, STRIP_PX // window.shape[3])
        for row in range(0, window.shape[2], rows):
            strip = window[:, :, row : row + rows]
            image = image_of(strip)
            new = add_change(image, change, shifted(matrix, 0, row))
            changed = (new != image).any(dim=1, keepdim=True)
            grey = torch.tensor(is_grey).view(1, 1, 1, 1)
            result[:, :, row : row + rows] = new_pixels(strip, new, grey, changed)
        return result, told

    def apply(self, before: Tensor, pixels: Tensor, strength: float) -> list[FoundFace]:
        """Enhance the faces of a photo that is in memory.

        Args:
            before: (C, H, W), pixels as they came.
            pixels: (C, H, W), pixels as restored; changed in place.
        """
        height, width = pixels.shape[1:]
        found = []
        for face in self.find(window_reader(before), height, width):
            top, left, bottom, right = self.window_of(face, height, width)
            window = pixels[None, :, top:bottom, left:right]
            new, told = self.enhance(face, window, top, left, (height, width), strength)
            if new is not None:
                window.copy_(new)
            found.append(told)
        return found

    def _refined(self, face: Face, window: Tensor, top: int, left: int) -> Face:
        """The same face with landmarks as found in the restored photo's own resolution."""
        rows, columns = window.shape[2:]
        read = window_reader(window[0])
        copy, factor = reduced(read, (0, 0, rows, columns), REFINED_PX)
        again = [one.moved(left, top, factor) for one in self.detector.detect(copy[0])]
        better = nearest_to(face, again)
        return face if better is None else dataclasses.replace(better, score=face.score)


def make_face_stage(
    faces: Faces, weights: str | os.PathLike[str] | None, device: torch.device
) -> FaceStage | None:
    """The stage that is asked for; None: none.

    Args:
        faces: "on"; "off"; or "auto": on where there are weights, given or shipped, and a detector.
        weights: file of a face network; None: the one shipped. If given, "auto" means "on".

    Raises:
        FileNotFoundError, ValueError: "on", and something is missing; the message says what.
    """
    path = face_weights_of(faces, weights)
    if path is None:
        return None
    return FaceStage(make_face_detector(), FaceNetwork.load(path, device))


def face_weights_of(faces: Faces, weights: str | os.PathLike[str] | None) -> Path | None:
    """The weights file of the stage that is asked for; None: no stage. See ``make_face_stage``."""
    if faces not in CHOICES:
        raise ValueError(f"faces: expected one of {', '.join(CHOICES)}, got {faces!r}")
    if faces == "off":
        return None
    path = DEFAULT_FACE_WEIGHTS if weights is None else weights
    if weights is None and not DEFAULT_FACE_WEIGHTS.is_file():
        if faces == "auto":
            return None
        raise ValueError(
            "faces: needs weights of a face network, of which this installation has none: convert "
            "the published ones (oldrestore convert SOURCE -o FILE --variant face), or train some "
            "(oldrestore train face), and name the file as face_weights (--face-weights)"
        )
    missing = why_no_detector()
    if missing is not None:
        if faces == "auto" and weights is None:
            return None
        raise ValueError(
            f'faces: finding them needs {missing}, which is not installed: pip install "{EXTRA}"'
        )
    return Path(path)


def window_reader(pixels: Tensor) -> ReadWindow:
    """Windows (1, C, h, w) of pixels (C, H, W) in memory."""

    def read(top: int, left: int, bottom: int, right: int) -> Tensor:
        return pixels[None, :, top:bottom, left:right]

    return read


def reduced(
    read: ReadWindow, window: tuple[int, int, int, int], longest_px: int
) -> tuple[Tensor, float]:
    """A part of a photo, averaged over squares until its longer side is short enough.

    Rows are read from the top down, once, and few at a time.

    Returns:
        (1, 3, h, w) in [-1, 1], and how many pixels of the photo one of its own is.
    """
    top, left, bottom, right = window
    factor = max(1, -(-max(bottom - top, right - left) // longest_px))
    rows = max(1, STRIP_PX // (right - left) // factor) * factor
    strips = []
    for row in range(top, bottom, rows):
        image = image_of(read(row, left, min(bottom, row + rows), right))
        strips.append(
            F.avg_pool2d(image, factor, ceil_mode=True, count_include_pad=False)
            if factor > 1
            else image
        )
    return torch.cat(strips, dim=2), float(factor)


def left_alone(face: Face, reason: str) -> FoundFace:
    """What to say of a face that is not enhanced."""
    return FoundFace(face.box, face.landmarks, face.score, kept=False, reason=reason)


def _crop(window: Tensor, matrix: np.ndarray[Any, Any], side: int) -> Tensor:
    """The aligned crop (1, 3, S, S) of a window of pixels; of a large face without large copies."""
    rows, columns = window.shape[2:]
    box = corners(side, inverse(matrix))
    low = np.maximum(np.floor(box.min(axis=0)) - 2, 0).astype(int)
    high = np.minimum(np.ceil(box.max(axis=0)) + 2, (columns, rows)).astype(int)
    factor = max(1, math.floor(1 / scale_of(matrix)))
    longest = max(1, -(-int((high - low).max()) // factor))
    bounds = (int(low[1]), int(low[0]), int(high[1]), int(high[0]))
    image, factor_px = reduced(window_reader(window[0]), bounds, longest)
    placed = shifted(matrix, float(low[0]), float(low[1]))
    placed[:, :2] *= factor_px
    return warp(image, placed, (side, side))


def _unfit(face: Face, size: tuple[int, int]) -> str | None:
    """Why a face is not one to enhance; None: it is."""
    if face.size_px < LEAST_FACE_PX:
        return f"too small: {face.size_px:.0f} px, less than {LEAST_FACE_PX}"
    height, width = size
    if not all(0 <= x <= width and 0 <= y <= height for x, y in face.landmarks):
        return "cut by the border of the photo"
    points = np.array(face.landmarks)
    matrix = to_template(points, 1)
    off = points @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE
    skewed = float(np.linalg.norm(off, axis=1).mean())
    if skewed > MOST_SKEWED:
        return (
            f"seen from the side: its features are {skewed:.0%} off those of a face from the front"
        )
    return None
