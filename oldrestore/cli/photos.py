"""``oldrestore restore`` and ``oldrestore detect``: photos in, photos or masks out, one by one."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter
from PIL import Image

from oldrestore.cli.terminal import DONE, FAILED, progress_bar, say
from oldrestore.image import decode
from oldrestore.jobs import Source, UsageError, check_targets, find_photos, mask_of, targets
from oldrestore.photo_file import save
from oldrestore.pipeline import Restorer
from oldrestore.restraint import OutsideMask
from oldrestore.tiling.memory import read_memory

COMPARE_ENDING = "-compare.jpg"
UINT16_TO_UINT8 = 257

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
    denoise: float | None = None,
    outside_mask: OutsideMask = "restore",
    strength: float = 1.0,
    tone: float | None = None,
    max_memory: str | None = None,
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
        denoise: How much of the mending outside holes is taken: 0 (the photo's own grain and noise
            stay) to 1 (all of it); 0.75 if not given.
        outside_mask: "keep" changes nothing but the holes, and gives them the grain around them.
        strength: 0 (the photo as it is) to 1 (all of the restoration).
        tone: How much of a fading found is undone, 0 to 1; 0 keeps the colours.
        max_memory: What a photo may take, such as "2GiB"; three quarters of what is free if not
            given. Large photos are worked on in bands, with the same result.
        engine: What runs the networks.
    """
    if no_mask and (mask or save_mask):
        raise UsageError("--no-mask: expected neither --mask nor --save-mask with it")
    if no_mask and outside_mask == "keep":
        raise UsageError(
            "--outside-mask keep: expected no --no-mask, which leaves no holes to fill"
        )
    read_memory(max_memory)
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
            source.path,
            mask=asked,
            threshold=threshold,
            denoise=denoise,
            outside_mask=outside_mask,
            strength=strength,
            tone=tone,
            max_memory=max_memory,
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

    return _for_each_photo(sources, run, as_json=as_json)


def detect(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    threshold: float | None = None,
    max_memory: str | None = None,
    engine: Engine = Engine(),
) -> int:
    """Find scratches, spots and tears: write masks, white = damaged.

    Args:
        photos: Files, folders (with all below them) and patterns.
        output: A file for one photo, else a folder; masks are PNG files named as the photos.
        as_json: Print one line of JSON for each photo.
        threshold: 0 (all is damage) to 1 (nothing is).
        max_memory: What a photo may take, such as "2GiB"; three quarters of what is free if not
            given.
        engine: What runs the networks.
    """
    read_memory(max_memory)
    sources = find_photos(photos, output)
    results = targets(sources, photos, output, ".png")
    check_targets(sources, results)
    restorer = engine.load()

    def run(index: int) -> dict[str, Any]:
        path = sources[index].path
        mask = restorer.detect(path, threshold=threshold, max_memory=max_memory)
        damaged = float(np.asarray(mask).mean()) / 255
        return {**_write({"output": (results[index], mask)}), "damaged": round(damaged, 6)}

    return _for_each_photo(sources, run, as_json=as_json)


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """One picture, 8-bit RGB, with ``before`` on the left and ``after`` on the right."""
    both = Image.new("RGB", (before.width + after.width, before.height))
    for picture, left in ((before, 0), (after, before.width)):
        if picture.mode.startswith("I"):
            values = np.asarray(picture) // UINT16_TO_UINT8
            picture = Image.fromarray(values.astype(np.uint8))  # noqa: PLW2901 (8 bits of the same)
        both.paste(picture.convert("RGB"), (left, 0))
    return both


def _for_each_photo(
    sources: Sequence[Source], run: Callable[[int], dict[str, Any]], *, as_json: bool
) -> int:
    """Run a job for each photo; one that fails gets a line on stderr, and the rest go on."""
    code = DONE
    with progress_bar() as progress:
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
                say(
                    text if str(source.path) in text else f"{source.path}: {text}", progress.console
                )
            if as_json:
                print(json.dumps(record), flush=True)
            progress.advance(task)
    return code


def _write(pictures: dict[str, tuple[Path, Image.Image]]) -> dict[str, str]:
    """Save pictures, with their folders; gives their names as text."""
    for path, picture in pictures.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(picture, path)
    return {kind: str(path) for kind, (path, _) in pictures.items()}
