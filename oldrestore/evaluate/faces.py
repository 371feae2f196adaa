"""Portraits with and without the face stage: how close the face comes, and to the same person.

    clean portrait -> drawn damage -> restored, without and with the stage -> compared in the face

Portraits are those that training holds out, unless the folder has none of them.
"""

import io
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oldrestore.evaluate.identity import (
    SAME_PERSON,
    Descriptor,
    FaceRecogniser,
    cosine,
    why_no_recogniser,
)
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
ANOTHER = "another's portrait"  # the floor of identity


@dataclass(frozen=True)
class FaceScore:
    """One portrait's face in one way, against the clean one.

    psnr, ssim, distance: inside the box of the face; distance is None without a backbone.
    identity: cosine of the recogniser's descriptors; descriptors_apart: their distance, that of one
        person's under ``SAME_PERSON``; None without the recogniser.
    pattern, moved: see ``face.guard``; moved is None if not found again.
    kept: of the face stage: whether the face was enhanced. seconds: of the face stage.
    """

    photo: str
    way: str
    psnr: float
    ssim: float
    distance: float | None
    pattern: float
    moved: float | None
    identity: float | None = None
    descriptors_apart: float | None = None
    kept: bool | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class FaceResults:
    """Scores of all portraits; those without a face, or with an unreadable file, by reason.

    backbone: name of the network of the distance. another: identity and distance of descriptors of
        each clean portrait and the next one's; empty without the recogniser or a next one.
    """

    scores: list[FaceScore]
    skipped: dict[str, str]
    backbone: str | None = None
    another: list[tuple[float, float]] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """One row a way, and one of another person's identity."""
        forms = {"psnr": ".2f", "ssim": ".4f", "distance": ".4f", "identity": ".4f"}
        forms |= {"pattern": ".4f", "moved": ".4f"}
        rows = []
        for way in WAYS:
            own = self._of(way)
            cells = [_mean(own, name, form) for name, form in forms.items()]
            apart = [s.descriptors_apart for s in own if s.descriptors_apart is not None]
            rows.append([way, *cells[:4], _share_of_same(apart), *cells[4:]])
        if self.another:
            floor = f"{np.mean([found for found, _ in self.another]):.4f}"
            same = _share_of_same([apart for _, apart in self.another])
            rows.append([ANOTHER, "-", "-", "-", floor, same, "-", "-"])
        head = ["in the face", "PSNR dB", "SSIM", "distance", "identity", "same person"]
        return [Table("faces", [*head, "pattern", "moved"], rows, self._caption())]

    def _of(self, way: str) -> list[FaceScore]:
        return [score for score in self.scores if score.way == way]

    def _caption(self) -> str:
        staged = self._of(WAYS[2])
        kept = sum(bool(score.kept) for score in staged)
        seconds = [score.seconds for score in staged if score.seconds is not None]
        time_of_stage = f"{np.mean(seconds) if seconds else 0:.2f} s a portrait for the stage."
        sentences = [f"{len(staged)} portraits, {kept} faces enhanced, {time_of_stage}"]
        if self.backbone is not None:
            without, staged_too = (
                np.mean([s.distance for s in self._of(way) if s.distance is not None])
                for way in WAYS[1:3]
            )
            lower = 1 - staged_too / without
            sentences.append(f"Distance by {self.backbone}: {lower:.1%} lower with the stage.")
        sentences.append(self._kept_identity())
        return " ".join(sentences)

    def _kept_identity(self) -> str:
        """What the stage leaves of the likeness that compressing anew leaves."""
        means = {}
        for way in WAYS[1:]:
            values = [s.identity for s in self._of(way) if s.identity is not None]
            if not values:
                return f"Identity is not measured without {why_no_recogniser() or 'a recogniser'}."
            means[way] = float(np.mean(values))
        without, staged, compressed = means.values()
        text = f"Identity kept, of that of the JPEG: {staged / compressed:.3f}"
        text += f" with the stage, {without / compressed:.3f} without"
        if not self.another:
            return f"{text}."
        floor = float(np.mean([found for found, _ in self.another]))
        parts = [(one - floor) / (compressed - floor) for one in (staged, without)]
        return f"{text}; above {ANOTHER}: {parts[0]:.3f} and {parts[1]:.3f}."

    def as_json(self) -> dict[str, Any]:
        """Every score."""
        return {
            "scores": [asdict(score) for score in self.scores],
            "skipped": self.skipped,
            "backbone": self.backbone,
            "another": self.another,
        }


def evaluate_faces(
    portraits: Path,
    restorer: Restorer,
    stage: FaceStage,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    recogniser: FaceRecogniser | None = None,
    limit: int | None = None,
    show_progress: bool = False,
) -> FaceResults:
    """Measure the face stage on portraits.

    Args:
        portraits: folder of clean portraits; of those held out of training, if it has such.
        restorer: restores the damaged portraits; its own face stage is not used.
        stage: what is measured.
        seed: of the damage.
        backbone: for the distance; one that training did not see is the fairer judge.
        recogniser: for the identity.
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
    clean_faces: list[Descriptor] = []
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
        described: list[Descriptor] = []
        if recogniser is not None:
            target = pictures[0][2]
            seen = [target, *(pixels for _, pixels, _ in pictures)]
            clean_face, *described = recogniser.describe(seen, face.landmarks)
            clean_faces.append(clean_face)
        for place, (way, pixels, target) in enumerate(pictures):
            measured = _compare(pixels, target, face, stage, backbone)
            if described:
                likeness = _likeness(clean_faces[-1], described[place])
                measured |= dict(zip(("identity", "descriptors_apart"), likeness, strict=True))
            measured |= told if way == WAYS[2] else {}
            scores.append(FaceScore(path.name, way, **measured))
    if not scores:
        raise ValueError(f"{portraits}: no face in any of its {len(numbered)} portraits")
    pairs = zip(clean_faces, [*clean_faces[1:], *clean_faces[:1]], strict=True)
    another = [_likeness(*pair) for pair in pairs] if len(clean_faces) > 1 else []
    name = None if backbone is None else backbone.name
    return FaceResults(scores, skipped, name, another)


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
    pixels: Pixels, target: Pixels, face: Face, stage: FaceStage, backbone: Backbone | None
) -> dict[str, Any]:
    """One picture against the clean one: what a ``FaceScore`` says without the recogniser."""
    height, width = target.shape[:2]
    left, top = (max(0, round(side)) for side in face.box[:2])
    right, bottom = min(width, round(face.box[2])), min(height, round(face.box[3]))
    box = np.s_[top:bottom, left:right]
    inside = Target(np.ascontiguousarray(target[box]), backbone)
    found = inside.score("", "", "face", np.ascontiguousarray(pixels[box]))
    side = stage.network.side_px
    matrix = to_template(face.landmarks, side)
    clean, own = (warp(_image(one), matrix, (side, side)) for one in (target, pixels))
    seen = [nearest(stage.detector.detect(crop[0]), side) for crop in (clean, own)]
    return {
        "psnr": found.psnr,
        "ssim": found.ssim,
        "distance": found.distance,
        "pattern": pattern_likeness(clean, own),
        "moved": landmarks_moved(*seen),
    }


def _likeness(ours: Descriptor, theirs: Descriptor) -> tuple[float, float]:
    """Cosine and distance."""
    return cosine(ours, theirs), float(np.linalg.norm(ours - theirs))


def _share_of_same(apart: list[float]) -> str:
    return f"{np.mean([one < SAME_PERSON for one in apart]):.0%}" if apart else "-"


def _mean(scores: list[FaceScore], name: str, form: str) -> str:
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return f"{np.mean(values):{form}}" if values else "-"


def _image(pixels: Pixels) -> Tensor:
    """(H, W, 3) of 8 bits -> (1, 3, H, W) in [-1, 1]."""
    return decode(pixels).image
