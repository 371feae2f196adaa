"""Restoration of clean photos with drawn damage, in every way, compared with what they were.

clean photo -> damaged sample -> each row's restoration -> scores against each column's target
"""

import contextlib
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from oldrestore.degradation import TextureSet
from oldrestore.evaluate.methods import default_rows, make_methods
from oldrestore.evaluate.photos import numbered_photos, progress
from oldrestore.evaluate.results import Results, Timing
from oldrestore.evaluate.rivals import FIXED_SIGMA_ROWS, Method, best_ffdnet_sigma
from oldrestore.evaluate.samples import (
    COLUMNS,
    INPUTS,
    Pixels,
    Sample,
    draw_sample,
    to_pixels,
    wide_part,
)
from oldrestore.evaluate.scores import Score, Target
from oldrestore.image import decode
from oldrestore.perceptual import Backbone
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer

# whose versions can change a score
PACKAGES = (
    "oldrestore",
    "torch",
    "numpy",
    "pillow",
    "torchmetrics",
    "opencv-python-headless",
    "ffdnet",
    "spandrel",
)
CALIBRATION_PHOTOS = 12  # on which a rival's setting is chosen


def evaluate(
    clean: Path,
    restorer: Restorer | None,
    *,
    seed: int = 0,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] = tuple(COLUMNS),
    others: Mapping[str, Restorer] | None = None,
    real_esrgan: Path | None = None,
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
        rows: of ROWS; None: all that can be run with what is installed and given.
        columns: of COLUMNS. What else is measured changes no number, but that FFDNet's fixed sigma
            is chosen on the photos measured.
        others: networks with other weights, by name, each a row more.
        real_esrgan: weights for its row.
        backbone: for a perceptual distance; photos then need sides of 32 px.
        textures: scans of real damage to draw from, besides the synthetic.
        limit: only so many photos, spread evenly over the folder.
        show_progress: a bar on stderr, if that is a terminal.

    Raises:
        ValueError: an argument is none of its kind, or the folder has no readable photo.
        ModuleNotFoundError: OpenCV or torchmetrics is needed and not installed.
    """
    rows = default_rows(real_esrgan) if rows is None else rows
    if not rows or not columns:
        raise ValueError("rows, columns: expected at least one of each, got none")
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ValueError(f"columns: expected some of {', '.join(COLUMNS)}, got {unknown[0]!r}")
    paths = numbered_photos(clean, limit)
    sigma = None
    if set(rows) & FIXED_SIGMA_ROWS:
        sigma = best_ffdnet_sigma(_for_calibration(paths, seed, textures))
    methods = make_methods(
        rows, restorer, others=others, ffdnet_sigma=sigma, real_esrgan=real_esrgan
    )
    scores: list[Score] = []
    timings: list[Timing] = []
    skipped: dict[str, str] = {}
    digest = hashlib.sha256()
    for index, path in progress(paths, "restoring" if show_progress else None):
        try:
            pixels = to_pixels(decode(path).image[0])
        except PhotoError as error:
            skipped[path.name] = str(error)
            continue
        for sample in _samples(pixels, columns, seed, index, textures):
            digest.update(sample.degraded.tobytes() + sample.mask.tobytes())
            found = _measure(path.name, sample, columns, methods, backbone)
            scores += found[0]
            timings += found[1]
    if not scores:
        raise ValueError(f"{clean}: none of its {len(paths)} photos can be read")
    config = {
        "clean": str(clean),
        "photos": [path.name for _, path in paths if path.name not in skipped],
        "seed": seed,
        "limit": limit,
        "rows": list(methods),
        "ffdnet_sigma": sigma,
        "columns": list(columns),
        "textures": None if textures is None else str(textures.folder),
        "backbone": None if backbone is None else {"name": backbone.name},
        "weights": None if restorer is None else restorer.about,
        "others": {name: other.about for name, other in (others or {}).items()},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    return Results(config, _versions(), digest.hexdigest(), skipped, tuple(scores), tuple(timings))


def _samples(
    pixels: Pixels,
    columns: Sequence[str],
    seed: int,
    index: int,
    textures: TextureSet | None,
) -> Iterator[Sample]:
    """A photo with each kind of damage that a column asks for."""
    asked = {COLUMNS[column].inputs for column in columns}
    for inputs in INPUTS:
        if inputs in asked:
            yield draw_sample(pixels, inputs, seed, index, textures)


def _for_calibration(
    paths: Sequence[tuple[int, Path]], seed: int, textures: TextureSet | None
) -> list[Sample]:
    """Not-faded samples of some photos, spread over all; photos that cannot be read are not one."""
    count = min(CALIBRATION_PHOTOS, len(paths))
    samples = []
    for index, path in (paths[i * len(paths) // count] for i in range(count)):
        with contextlib.suppress(PhotoError):
            pixels = to_pixels(decode(path).image[0])
            samples.append(draw_sample(pixels, "not-faded", seed, index, textures))
    return samples


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
            if column.inputs != sample.inputs:
                continue
            if column.holes_only:
                mask = wide_part(sample.mask) if column.wide_only else sample.mask
                scores.append(kept.score_holes(photo, row, name, output.kept, mask))
            elif column.keeps_tone:
                scores.append(kept.score(photo, row, name, output.kept))
            else:
                scores.append(clean.score(photo, row, name, output.undo_fading()))
    return scores, timings


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
