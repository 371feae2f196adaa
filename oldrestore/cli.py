"""The command line: ``oldrestore restore | detect | degrade | train | evaluate | convert | info``.

Exit codes: 0 all done; 1 some photo failed, and the others are done; 2 a request that makes no
sense, and nothing is done. Messages go to stderr, results to stdout.
"""

import dataclasses
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL
import torch
from cyclopts import App, CycloptsError, Parameter
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import oldrestore
from oldrestore import ops
from oldrestore.checkpoint import read_checkpoint
from oldrestore.image import decode
from oldrestore.jobs import Source, UsageError, check_targets, find_photos, mask_of, targets
from oldrestore.photo_file import PhotoError, save
from oldrestore.pipeline import DEFAULT_WEIGHTS, Restorer

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMPARE_ENDING = "-compare.jpg"
UINT16_TO_UINT8 = 257

app = App(
    name="oldrestore",
    help="Bring old photographs back: scratches, spots, tears, noise and fading.",
    version=oldrestore.__version__,
    suppress_keyboard_interrupt=False,  # its exit code is ours
)
app.command(
    "oldrestore.train.cli:app", name="train", help="Train the networks on photos of your own."
)
app.command(
    "oldrestore.evaluate:main", name="evaluate", help="Measure the restoration on clean photos."
)

Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class Engine:
    """What runs the networks.

    Parameters
    ----------
    weights:
        Weights file; the one shipped if none is given.
    device:
        "cpu", "cuda", "cuda:1"; "auto" takes the GPU if there is one.
    backend:
        Of the operations ("oldrestore info" lists them); the fastest if none is given.
    threads:
        Of the networks on a CPU; as PyTorch chooses if not given.
    """

    weights: Path | None = None
    device: str = "auto"
    backend: str | None = None
    threads: int | None = None

    def load(self) -> Restorer:
        """Set the threads of this process and read the weights."""
        if self.threads is not None:
            if self.threads < 1:
                raise UsageError(f"--threads: expected 1 or more, got {self.threads}")
            torch.set_num_threads(self.threads)
        return Restorer.load(self.weights, self.device, backend=self.backend)


@app.command
def restore(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    mask: Path | None = None,
    no_mask: Flag = False,
    save_mask: Path | None = None,
    compare: Flag = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    threshold: float | None = None,
    strength: float = 1.0,
    tone: float | None = None,
    engine: Engine = Engine(),
) -> int:
    """Restore photos.

    Args:
        photos: Files, folders (with all below them) and patterns such as "scans/*.tif".
        output: A file for one photo, else a folder; names stay as they are.
        mask: Your own mask, white = damaged: a file, or a folder with masks named as the photos.
        no_mask: Look for no scratches; mend only blur, noise and fading.
        save_mask: Write what was taken for damage: a file for one photo, else a folder.
        compare: Write a picture of before and after beside each result.
        as_json: Print one line of JSON for each photo.
        threshold: Of the scratch detector, 0 (all is damage) to 1 (nothing is).
        strength: 0 (the photo as it is) to 1 (all of the restoration).
        tone: How much of a fading found is undone, 0 to 1; 0 keeps the colours.
        engine: What runs the networks.
    """
    if no_mask and (mask or save_mask):
        raise UsageError("--no-mask: expected neither --mask nor --save-mask with it")
    sources = find_photos(photos, output)
    results = targets(sources, photos, output)
    comparisons = [path.with_name(path.stem + COMPARE_ENDING) for path in results]
    masks = targets(sources, photos, save_mask, ".png") if save_mask else []
    check_targets(sources, [*results, *masks, *(comparisons if compare else [])])
    restorer = engine.load()

    def run(index: int) -> dict[str, Any]:
        source = sources[index]
        asked = mask_of(source, mask) if mask else None if no_mask else "auto"
        restoration = restorer.restore(
            source.path, mask=asked, threshold=threshold, strength=strength, tone=tone
        )
        damaged = None if restoration.mask is None else np.asarray(restoration.mask)
        written = {"output": (results[index], restoration.image)}
        if save_mask:
            if restoration.mask is None:
                raise ValueError("--save-mask: these weights look for no damage, so there is none")
            written["mask"] = (masks[index], restoration.mask)
        if compare:
            pair = side_by_side(decode(source.path).original, restoration.image)
            written["compare"] = (comparisons[index], pair)
        return {
            **_write(written),
            "size": restoration.image.size,
            "damaged": None if damaged is None else round(float(damaged.mean()) / 255, 6),
            "tone": [dataclasses.asdict(curve) for curve in restoration.tone],
            "seconds": round(restoration.seconds, 3),
        }

    return _for_each(sources, run, as_json=as_json)


@app.command
def detect(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    threshold: float | None = None,
    engine: Engine = Engine(),
) -> int:
    """Find scratches, spots and tears: write masks, white = damaged.

    Args:
        photos: Files, folders (with all below them) and patterns.
        output: A file for one photo, else a folder; masks are PNG files named as the photos.
        as_json: Print one line of JSON for each photo.
        threshold: 0 (all is damage) to 1 (nothing is).
        engine: What runs the networks.
    """
    sources = find_photos(photos, output)
    results = targets(sources, photos, output, ".png")
    check_targets(sources, results)
    restorer = engine.load()

    def run(index: int) -> dict[str, Any]:
        mask = restorer.detect(sources[index].path, threshold=threshold)
        damaged = float(np.asarray(mask).mean()) / 255
        return {**_write({"output": (results[index], mask)}), "damaged": round(damaged, 6)}

    return _for_each(sources, run, as_json=as_json)


@app.command
def degrade(
    source: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    seed: int = 0,
    count: int = 1,
    textures: Path | None = None,
) -> int:
    """Make pairs of damaged and clean photos, with masks, from a folder of clean photos.

    Args:
        source: Folder of clean photos.
        output: Folder for degraded/, clean/, mask/ and degradations.jsonl.
        seed: Of the damage; the same seed gives the same pairs.
        count: Pairs for each photo.
        textures: Folder with scans of real damage (grey PNG, white = damage) to draw from too.
    """
    from oldrestore.degradation import TextureSet, degrade_folder

    found = None if textures is None else TextureSet.from_folder(textures)
    with _progress() as progress:
        task = progress.add_task(source.name)
        try:
            report = degrade_folder(
                source,
                output,
                seed=seed,
                count_per_photo=count,
                textures=found,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except PhotoError as error:
            _say(str(error), progress.console)
            return FAILED
        for reason in report.skipped:
            _say(f"skipped: {reason}", progress.console)
    print(f"{report.written} pairs written to {output}, {len(report.skipped)} photos skipped")
    return FAILED if report.skipped else DONE


@app.command
def convert(
    *sources: Path,
    output: Annotated[Path, Parameter(alias="-o")],
    variant: str,
    vae_old: Path | None = None,
    vae_clean: Path | None = None,
    mapping: Path | None = None,
    detector: Path | None = None,
    half: Flag = False,
) -> int:
    """Bring the published weights of Wan et al. into one file for --weights.

    Args:
        sources: Their folder "checkpoints", its zip archive, or files in folders named as there.
        output: The safetensors file to write.
        variant: "quality" (blur and noise), "scratch" (holes too) or "hr" (holes in large photos).
        vae_old: File of the old photos' VAE, whatever it is called.
        vae_clean: File of the clean photos' VAE.
        mapping: File of the mapping network.
        detector: File of the scratch detector.
        half: Store in 16 bits: half the size, no longer exact.
    """
    from oldrestore.published import convert as convert_published

    given = {"vae_old": vae_old, "vae_clean": vae_clean, "mapping": mapping, "detector": detector}
    if not sources and not any(given.values()):
        raise UsageError("SOURCES: expected the published folder, its zip archive or its files")
    if output.suffix != ".safetensors":
        raise UsageError(f"--output: expected a name ending in .safetensors, got {output}")
    parts = {name: path for name, path in given.items() if path is not None}
    found = convert_published(sources, output, variant, parts=parts, half=half)
    for name, origin in found.items():
        print(f"{name}: {origin}")
    if "detector" not in found:
        print("detector: none found; give masks of your own to fill holes")
    print(f"written to {output}")
    return DONE


@app.command
def info(
    *,
    weights: Path | None = None,
    device: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say what is installed, which weights are used, and what runs the operations.

    Args:
        weights: Weights file; the one shipped if none is given.
        device: To ask for; "auto" takes the GPU if there is one.
        as_json: Print JSON.
    """
    path = weights or DEFAULT_WEIGHTS
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        about: dict[str, Any] | str = read_checkpoint(path).about
    except (OSError, ValueError) as error:
        about = str(error)
    facts = {
        "oldrestore": oldrestore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "weights": str(path),
        "about the weights": about,
        "operations": ops.describe(device),
    }
    if as_json:
        print(json.dumps(facts))
        return DONE
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            print("\n".join(f"    {key}: {entry}" for key, entry in value.items()))
        elif isinstance(value, list):
            print(f"{name}, fastest first:")
            for row in value:
                state = f"not active: {row['missing']}" if row["missing"] else "active"
                print(f"    {row['operation']} {row['backend']}: {state}")
        else:
            print(f"{name}: {value}")
    return DONE


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """One picture, 8-bit RGB, with ``before`` on the left and ``after`` on the right."""
    both = Image.new("RGB", (before.width + after.width, before.height))
    for picture, left in ((before, 0), (after, before.width)):
        if picture.mode.startswith("I"):
            values = np.asarray(picture) // UINT16_TO_UINT8
            picture = Image.fromarray(values.astype(np.uint8))  # noqa: PLW2901 (8 bits of the same)
        both.paste(picture.convert("RGB"), (left, 0))
    return both


def main() -> None:
    """Run what ``sys.argv`` asks for and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(str(message))
        try:
            code = app(arguments, exit_on_error=False, result_action="return_value")
        except CycloptsError:  # it has printed its message
            return USAGE
        except KeyboardInterrupt:
            _say("interrupted")
            return INTERRUPTED
        except (ValueError, OSError) as error:
            _say(str(error))
            return USAGE
    return code if isinstance(code, int) else DONE


def _for_each(
    sources: Sequence[Source], run: Callable[[int], dict[str, Any]], *, as_json: bool
) -> int:
    """Run a job for each photo; one that fails gets a line on stderr, and the rest go on."""
    code = DONE
    with _progress() as progress:
        task = progress.add_task("", total=len(sources))
        for index, source in enumerate(sources):
            progress.update(task, description=source.path.name.replace("[", r"\["))
            record: dict[str, Any] = {"input": str(source.path)}
            try:
                record |= run(index)
            # RuntimeError: torch's, of a photo that does not fit into memory
            except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
                code = FAILED
                text = str(error) or type(error).__name__
                record["error"] = text
                _say(
                    text if str(source.path) in text else f"{source.path}: {text}", progress.console
                )
            if as_json:
                print(json.dumps(record), flush=True)
            progress.advance(task)
    return code


def _progress() -> Progress:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # results go where the user sends them
    )


def _write(pictures: dict[str, tuple[Path, Image.Image]]) -> dict[str, str]:
    """Save pictures, with their folders; gives their names as text."""
    for path, picture in pictures.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(picture, path)
    return {kind: str(path) for kind, (path, _) in pictures.items()}


def _say(text: str, console: Console | None = None) -> None:
    """One line on stderr."""
    console = console or Console(stderr=True)
    console.print(f"oldrestore: {text}", markup=False, highlight=False, soft_wrap=True)
