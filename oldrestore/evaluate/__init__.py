"""Measure restoration on clean photos with drawn damage: the tables of README and model card.

    clean photo -> damaged sample -> each row's restoration -> scores against each column's target

Every picture goes through 8 bits, as a user's would: what is damaged, what is restored, what it is
compared with.
"""

import contextlib
import hashlib
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from oldrestore.degradation import TextureSet
from oldrestore.evaluate.methods import ROWS, Method, make_methods, needs_restorer
from oldrestore.evaluate.results import Cell, Results, Timing
from oldrestore.evaluate.samples import (
    COLUMNS,
    INPUTS,
    Sample,
    draw_sample,
    to_pixels,
)
from oldrestore.evaluate.scores import Score, Target
from oldrestore.image import decode
from oldrestore.perceptual import Backbone, load_backbone
from oldrestore.photo_file import READ_SUFFIXES, PhotoError
from oldrestore.pipeline import Restorer

__all__ = ["COLUMNS", "INPUTS", "ROWS", "Cell", "Results", "Score", "Timing", "evaluate", "main"]

# whose versions can change a score
PACKAGES = ("oldrestore", "torch", "numpy", "pillow", "torchmetrics", "opencv-python-headless")

# on the command line: --rows input ours, or --rows input --rows ours
Names = Annotated[list[str], Parameter(negative="", consume_multiple=True)]


def evaluate(
    clean: Path,
    restorer: Restorer | None,
    *,
    seed: int = 0,
    rows: Sequence[str] = tuple(ROWS),
    columns: Sequence[str] = tuple(COLUMNS),
    backbone: Backbone | None = None,
    textures: TextureSet | None = None,
    limit: int | None = None,
    show_progress: bool = False,
) -> Results:
    """Damage the photos of a folder, restore them in every way, compare.

    Args:
        clean: folder of undamaged photos, not searched deeper; used at their own size, by name.
        restorer: the networks; None if no row is about them.
        seed: of the damage.
        rows, columns: of ROWS and COLUMNS; what else is measured changes no number.
        backbone: for a perceptual distance; photos then need sides of 32 px.
        textures: scans of real damage to draw from, besides the synthetic.
        limit: only so many photos, spread evenly over the folder.
        show_progress: a bar on stderr, if that is a terminal.

    Raises:
        ValueError: an argument is none of its kind, or the folder has no readable photo.
        ModuleNotFoundError: OpenCV or torchmetrics is needed and not installed.
    """
    if not rows or not columns:
        raise ValueError("rows, columns: expected at least one of each, got none")
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ValueError(f"columns: expected some of {', '.join(COLUMNS)}, got {unknown[0]!r}")
    methods = make_methods(rows, restorer)
    paths = _photos(clean, limit)
    scores: list[Score] = []
    timings: list[Timing] = []
    skipped: dict[str, str] = {}
    digest = hashlib.sha256()
    for index, path in _progress(paths, show_progress):
        try:
            pixels = to_pixels(decode(path).image[0])
        except PhotoError as error:
            skipped[path.name] = str(error)
            continue
        for inputs in INPUTS:
            asked = [column for column in columns if COLUMNS[column].inputs == inputs]
            if not asked:
                continue
            sample = draw_sample(pixels, inputs, seed, index, textures)
            digest.update(sample.degraded.tobytes() + sample.mask.tobytes())
            found = _measure(path.name, sample, asked, methods, backbone)
            scores += found[0]
            timings += found[1]
    if not scores:
        raise ValueError(f"{clean}: none of its {len(paths)} photos can be read")
    config = {
        "clean": str(clean),
        "photos": [path.name for _, path in paths if path.name not in skipped],
        "seed": seed,
        "limit": limit,
        "rows": list(rows),
        "columns": list(columns),
        "textures": None if textures is None else str(textures.folder),
        "backbone": None if backbone is None else {"name": backbone.name},
        "weights": None if restorer is None else restorer.about,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    return Results(config, _versions(), digest.hexdigest(), skipped, tuple(scores), tuple(timings))


def _photos(folder: Path, limit: int | None) -> list[tuple[int, Path]]:
    """Photos by name, each with its place among all: a limit changes no photo's damage."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 or more, got {limit}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of clean photos")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in READ_SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: no photo in it; expected {' '.join(READ_SUFFIXES)}")
    numbered = list(enumerate(found))
    count = len(found) if limit is None else min(limit, len(found))
    return [numbered[i * len(found) // count] for i in range(count)]


def _measure(
    photo: str,
    sample: Sample,
    columns: Sequence[str],
    methods: dict[str, Method],
    backbone: Backbone | None,
) -> tuple[list[Score], list[Timing]]:
    """One damaged photo: each method once, compared in each column."""
    megapixels = sample.mask.size / 1e6
    kept = Target(sample.kept, backbone)
    clean = Target(sample.clean, backbone)
    scores, timings = [], []
    for row, method in methods.items():
        output = method(sample)
        timings.append(Timing(photo, row, sample.inputs, output.seconds, megapixels))
        for name in columns:
            column = COLUMNS[name]
            if column.holes_only:
                scores.append(kept.score_holes(photo, row, name, output.kept, sample.mask))
            elif column.keeps_tone:
                scores.append(kept.score(photo, row, name, output.kept))
            else:
                scores.append(clean.score(photo, row, name, output.undo_fading()))
    return scores, timings


def _progress(photos: Sequence[tuple[int, Path]], is_shown: bool) -> Iterable[tuple[int, Path]]:
    if not (is_shown and sys.stderr.isatty()):
        return photos
    from rich.console import Console
    from rich.progress import track

    return track(photos, "evaluating", console=Console(stderr=True))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main(
    *,
    clean: Path,
    seed: int = 0,
    weights: Path | None = None,
    backbone: Path | None = None,
    textures: Path | None = None,
    limit: int | None = None,
    rows: Names | None = None,
    columns: Names | None = None,
    output: Path | None = None,
    threads: int | None = None,
    markdown: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Damage clean photos, restore them, and print how close the restored are.

    Args:
        clean: folder of undamaged photos.
        seed: of the damage.
        weights: of the networks; the shipped ones if not given.
        backbone: weights of VGG-19 or MobileNetV2, for a perceptual distance.
        textures: folder of scans of real damage (grey PNG, white = damage) to draw from too.
        limit: only so many photos, spread evenly over the folder.
        rows: only these: input, fill, telea-nlm, telea-nlm-autocontrast, ours, ours-whole,
            ours-holes, ours-detected, ours-local, ours-default.
        columns: only these: not-faded, faded-kept, faded-restored, holes, nearly-clean, clean.
        output: a JSON file for the table, every photo's scores and the versions used.
        threads: of the networks and of OpenCV; all cores if not given.
        markdown: print the table for a README.

    Returns:
        0, or 1 if a photo could not be read; the others are measured.
    """
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected 1 or more, got {threads}")
        torch.set_num_threads(threads)
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: its folder does not exist")
    chosen = list(ROWS) if rows is None else rows
    restorer = Restorer.load(weights) if any(map(needs_restorer, chosen)) else None
    judge = None if backbone is None else load_backbone(backbone)
    scans = None if textures is None else TextureSet.from_folder(textures)
    try:
        results = evaluate(
            clean,
            restorer,
            seed=seed,
            rows=chosen,
            columns=list(COLUMNS) if columns is None else columns,
            backbone=judge,
            textures=scans,
            limit=limit,
            show_progress=True,
        )
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error  # the user's to mend, as any wrong request
    if output is not None:
        results.save(output)
    if markdown:
        sys.stdout.write(results.markdown() + "\n")
    else:
        _print_table(results)
    for reason in results.skipped.values():
        sys.stderr.write(f"skipped {reason}\n")
    count = len(results.skipped)
    if count:
        sys.stderr.write(f"{count} photo{'s' if count > 1 else ''} skipped\n")
    return 1 if count else 0


def _print_table(results: Results) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *lines = results.table()
    table = Table(box=box.SIMPLE, caption=results.caption())
    for title in head:
        table.add_column(title, justify="right" if title else "left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
