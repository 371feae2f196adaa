"""Real old photos: there is no target, so only what can be said without one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oldrestore.evaluate.naturalness import fit_naturalness, sharpness_of
from oldrestore.evaluate.photos import numbered_photos, progress
from oldrestore.evaluate.rivals import estimate_sigma
from oldrestore.evaluate.samples import Pixels, to_pixels
from oldrestore.evaluate.scores import psnr_between
from oldrestore.evaluate.statistics import Summary, summary_of_mean
from oldrestore.evaluate.tables import Table
from oldrestore.image import decode
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer

SCORES = {
    "naturalness": "distance from natural",
    "noise": "noise (of 255)",
    "sharpness": "fine structure",
    "flagged": "flagged as damage",
    "change": "PSNR to the input",
    "again": "PSNR of doing it twice to once",
}
FORMS = {"flagged": ".2%", "sharpness": ".3f"}


@dataclass(frozen=True)
class RealResults:
    """Scores of real photos by row: input, and ways to restore.

    rows: title -> score -> summary; None where nothing could be scored.
    """

    rows: dict[str, dict[str, Summary | None]]
    photos: int

    def tables(self) -> list[Table]:
        """One table."""
        lines = []
        for title, scores in self.rows.items():
            texts = [_text(scores[name], FORMS.get(name, ".2f")) for name in SCORES]
            lines.append([title, *texts])
        caption = (
            f"means over {self.photos} real photos [95 % interval], without targets; distance from "
            "natural: NIQE's, fitted to the clean photos, less is more natural; noise: estimated "
            "deviation; fine structure: mean gradient over contrast"
        )
        return [Table("real photos", ("", *SCORES.values()), lines, caption)]

    def as_json(self) -> dict[str, Any]:
        """Everything, in what JSON can hold."""
        return asdict(self)


def evaluate_real(
    old: Path,
    clean: Path,
    restorer: Restorer,
    *,
    limit: int | None = None,
    show_progress: bool = False,
) -> RealResults:
    """Restore real photos and score what comes out.

    Args:
        old: folder of real old photos. clean: folder of sound ones, what natural is.
        restorer: the networks.
        limit: only so many photos of each folder.
        show_progress: a bar on stderr, if that is a terminal.

    Raises:
        ValueError: a folder has no readable photo, no clean photo is of 96 px, or these weights
            have no detector.
    """
    sound = (_read(path) for _, path in numbered_photos(clean, limit))
    natural = fit_naturalness([pixels for pixels in sound if pixels is not None])
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        "input": lambda pixels: pixels,
        "ours as `restore(photo)`": lambda pixels: _restored(restorer, pixels),
        "ours, `denoise=1`": lambda pixels: _restored(restorer, pixels, denoise=1.0),
        'ours, `outside_mask="keep"`': lambda pixels: _restored(
            restorer, pixels, outside_mask="keep"
        ),
    }
    found: dict[str, list[dict[str, float | None]]] = {title: [] for title in ways}
    paths = numbered_photos(old, limit)
    for _, path in progress(paths, "real photos" if show_progress else None):
        pixels = _read(path)
        if pixels is None:
            continue
        for title, way in ways.items():
            once = way(pixels)
            found[title].append(
                {
                    "naturalness": natural.distance(once),
                    "noise": estimate_sigma(once),
                    "sharpness": sharpness_of(once),
                    "flagged": _flagged(restorer, once),
                    "change": psnr_between(once, pixels),
                    "again": psnr_between(way(once), once),
                }
            )
    rows = {
        title: {name: summary_of_mean([score[name] for score in scores]) for name in SCORES}
        for title, scores in found.items()
    }
    count = len(found["input"])
    if not count:
        raise ValueError(f"{old}: none of its {len(paths)} photos can be read")
    return RealResults(rows, count)


def _read(path: Path) -> Pixels | None:
    """None if it cannot be read."""
    try:
        return to_pixels(decode(path).image[0])
    except PhotoError:
        return None


def _restored(restorer: Restorer, pixels: Pixels, **options: Any) -> Pixels:
    picture: Pixels = restorer.restore(pixels, **options).image
    return picture


def _flagged(restorer: Restorer, pixels: Pixels) -> float:
    """Share of the pixels that the detector takes for damaged."""
    return float((np.asarray(restorer.detect(pixels)) > 0).mean())


def _text(found: Summary | None, form: str) -> str:
    if found is None:
        return "-"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
