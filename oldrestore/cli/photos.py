"""``oldrestore restore`` and ``oldrestore detect``: photos in, photos or masks out, one by one."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from PIL import Image

from oldrestore.cli.options import Engine, Flag, Json, Wishes
from oldrestore.cli.terminal import DONE, FAILED, progress_bar, say
from oldrestore.image import decode
from oldrestore.jobs import Source, UsageError, check_targets, find_photos, mask_of, targets
from oldrestore.photo_file import save

COMPARE_ENDING = "-compare.jpg"
UINT16_TO_UINT8 = 257


def restore(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    save_mask: Path | None = None,
    compare: Flag = False,
    as_json: Json = False,
    wishes: Wishes = Wishes(),
    engine: Engine = Engine(),
) -> int:
    """Restore photos.

    Args:
        photos: Files, folders (with all below them) and patterns such as "scans/*.tif".
        output: A file for one photo, else a folder; names stay as they are.
        save_mask: Write what was taken for damage: a file for one photo, else a folder.
        compare: Write a picture of before and after beside each result.
        as_json: Print one line of JSON for each photo.
        wishes: How a photo is restored.
        engine: What runs the networks.
    """
    wishes.check()
    if wishes.no_mask and save_mask:
        raise UsageError("--no-mask: expected neither --mask nor --save-mask with it")
    given = None if wishes.mask is None else Path(wishes.mask)
    sources = find_photos(photos, output)
    results = targets(sources, photos, output)
    comparisons = [path.with_name(path.stem + COMPARE_ENDING) for path in results]
    masks = targets(sources, photos, save_mask, ".png") if save_mask else []
    check_targets(sources, [*results, *masks, *(comparisons if compare else [])])
    restorer = engine.load()

    def run(index: int) -> dict[str, Any]:
        source = sources[index]
        asked = mask_of(source, given) if given else None if wishes.no_mask else "auto"
        restoration = restorer.restore(source.path, mask=asked, **wishes.options())
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
    as_json: Json = False,
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
