"""Portraits with and without the face stage: how close the face comes, and to the same person.

    clean portrait -> drawn damage -> restored, without and with the stage -> compared in the face

Portraits are those that training holds out, unless the folder has none of them.
"""

import io
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oldrestore.evaluate.photos import numbered_photos, progress
from oldrestore.evaluate.samples import Pixels, draw_sample, to_pixels
from oldrestore.evaluate.scores import Target
from oldrestore.evaluate.tables import Table
from oldrestore.face.align import to_template, warp
from oldrestore.face.detect import Face
from oldrestore.face.guard import landmarks_moved, nearest, pattern_likeness
from oldrestore.face.stage import FaceStage
from oldrestore.image import decode
from oldrestore.perceptual import SMALLEST_SIDE_PX, Backbone
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer
from oldrestore.train.data import is_held_out

REENCODED_QUALITY = 50  # JPEG: what a portrait loses and nobody takes for another person
LEAST_BOX_PX = SMALLEST_SIDE_PX
WAYS = ("input", "restored", "restored, faces on", "clean, as JPEG")


@dataclass(frozen=True)
class FaceScore:
    """One portrait's face in one way, against the clean one.

    psnr, ssim, distance: inside the box of the face; distance is None without a backbone.
    identity: cosine of the aligned faces' deepest features, less the mean of all portraits; None
        without a backbone. pattern, moved: see ``face.guard``; moved is None if not found again.
    kept: of the face stage: whether the face was enhanced. seconds: of the face stage.
    """

    photo: str
    way: str
    psnr: float
    ssim: float
    distance: float | None
    identity: float | None
    pattern: float
    moved: float | None
    kept: bool | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class FaceResults:
    """Scores of all portraits; those without a face, or with an unreadable file, by reason."""

    scores: list[FaceScore]
    skipped: dict[str, str]

    def tables(self) -> list[Table]:
        """One row a way."""
        head = ["in the face", "PSNR dB", "SSIM", "distance", "identity", "pattern", "moved"]
        rows = []
        for way in WAYS:
            own = [score for score in self.scores if score.way == way]
            numbers = ("psnr", "ssim", "distance", "identity", "pattern", "moved")
            forms = (".2f", ".4f", ".4f", ".4f", ".4f", ".4f")
            rows.append([way, *(_mean(own, n, f) for n, f in zip(numbers, forms, strict=True))])
        staged = [score for score in self.scores if score.way == WAYS[2]]
        kept = sum(bool(score.kept) for score in staged)
        seconds = [score.seconds for score in staged if score.seconds is not None]
        caption = (
            f"{len(staged)} portraits, {kept} faces enhanced, "
            f"{np.mean(seconds) if seconds else 0:.2f} s a portrait for the stage."
        )
        return [Table("faces", head, rows, caption)]

    def as_json(self) -> dict[str, Any]:
        """Every score."""
        return {"scores": [asdict(score) for score in self.scores], "skipped": self.skipped}


def evaluate_faces(
    portraits: Path,
    restorer: Restorer,
    stage: FaceStage,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    limit: int | None = None,
    show_progress: bool = False,
) -> FaceResults:
    """Measure the face stage on portraits.

    Args:
        portraits: folder of clean portraits; of those held out of training, if it has such.
        restorer: restores the damaged portraits; its own face stage is not used.
        stage: what is measured.
        seed: of the damage.
        backbone: for the distance and the identity.
        limit: only so many portraits.
        show_progress: a bar on stderr, if that is a terminal.

    Raises:
        ValueError: there is no such folder, or no face in its portraits.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    numbered = numbered_photos(portraits, None)
    numbered = [one for one in numbered if is_held_out(one[1])] or numbered
    if limit is not None:
        count = min(limit, len(numbered))
        numbered = [numbered[i * len(numbered) // count] for i in range(count)]
    scores: list[FaceScore] = []
    features: list[Tensor | None] = []
    skipped: dict[str, str] = {}
    for index, path in progress(numbered, "portraits" if show_progress else None):
        try:
            clean = to_pixels(decode(path).image[0])
        except PhotoError as error:
            skipped[path.name] = str(error)
            continue
        face = max(stage.detector.detect(_image(clean)[0]), key=_score, default=None)
        if face is None or face.size_px < LEAST_BOX_PX:
            skipped[path.name] = f"{path}: no face found in it"
            continue
        pictures, told = _ways(clean, seed, index, restorer, stage)
        for way, pixels, target in pictures:
            measured = _compare(path.name, way, pixels, target, face, stage, backbone)
            scores.append(replace(measured[0], **(told if way == WAYS[2] else {})))
            features += measured[1:]
    if not scores:
        raise ValueError(f"{portraits}: no face in any of its {len(numbered)} portraits")
    return FaceResults(_with_identity(scores, features), skipped)


def _score(face: Face) -> float:
    return face.score


def _ways(
    clean: Pixels, seed: int, index: int, restorer: Restorer, stage: FaceStage
) -> tuple[list[tuple[str, Pixels, Pixels]], dict[str, Any]]:
    """Each way's picture with its target, and what came of the face."""
    sample = draw_sample(clean, "not-faded", seed, index)
    own, restorer.faces = restorer.faces, None
    try:
        restored: Pixels = np.array(restorer.restore(sample.degraded).image)
    finally:
        restorer.faces = own
    before, after = (
        torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        for pixels in (sample.degraded, restored)
    )
    start = time.perf_counter()
    found = stage.apply(before, after, 1.0)
    told = {
        "kept": any(one.kept for one in found),
        "seconds": time.perf_counter() - start,
    }
    enhanced = np.ascontiguousarray(after.permute(1, 2, 0).numpy())
    stream = io.BytesIO()
    Image.fromarray(sample.kept).save(stream, "JPEG", quality=REENCODED_QUALITY)
    pictures = (sample.degraded, restored, enhanced, np.array(Image.open(stream)))
    return [(way, one, sample.kept) for way, one in zip(WAYS, pictures, strict=True)], told


def _compare(
    photo: str,
    way: str,
    pixels: Pixels,
    target: Pixels,
    face: Face,
    stage: FaceStage,
    backbone: Backbone | None,
) -> tuple[FaceScore, Tensor | None, Tensor | None]:
    """One picture against the clean one; and the deepest features of both aligned faces."""
    height, width = target.shape[:2]
    left, top = (max(0, round(side)) for side in face.box[:2])
    right, bottom = min(width, round(face.box[2])), min(height, round(face.box[3]))
    box = np.s_[top:bottom, left:right]
    inside = Target(np.ascontiguousarray(target[box]), backbone)
    found = inside.score(photo, way, "face", np.ascontiguousarray(pixels[box]))
    assert found.psnr is not None
    assert found.ssim is not None
    side = stage.network.side_px
    matrix = to_template(face.landmarks, side)
    clean, own = (warp(_image(one), matrix, (side, side)) for one in (target, pixels))
    seen = [nearest(stage.detector.detect(crop[0]), side) for crop in (clean, own)]
    score = FaceScore(
        photo,
        way,
        found.psnr,
        found.ssim,
        found.distance,
        None,
        pattern_likeness(clean, own),
        landmarks_moved(*seen),
    )
    if backbone is None:
        return score, None, None
    with torch.inference_mode():
        deepest = [backbone.features(crop)[-1].flatten(1)[0] for crop in (clean, own)]
    return score, deepest[0], deepest[1]


def _with_identity(scores: list[FaceScore], features: list[Tensor | None]) -> list[FaceScore]:
    """The scores with the cosine of features: what all faces share says nothing of a person."""
    known = [one for one in features if one is not None]
    if len(known) < len(features):
        return scores
    mean = torch.stack(known[::2]).mean(dim=0) if len(known) > len(WAYS) * 2 else 0
    pairs = zip(known[::2], known[1::2], strict=True)
    cosines = [float(F.cosine_similarity(a - mean, b - mean, dim=0)) for a, b in pairs]
    return [replace(one, identity=value) for one, value in zip(scores, cosines, strict=True)]


def _mean(scores: list[FaceScore], name: str, form: str) -> str:
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return f"{np.mean(values):{form}}" if values else "-"


def _image(pixels: Pixels) -> Tensor:
    """(H, W, 3) of 8 bits -> (1, 3, H, W) in [-1, 1]."""
    return decode(pixels).image
