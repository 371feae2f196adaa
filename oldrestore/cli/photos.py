"""``oldrestore restore`` and ``oldrestore detect``: photos in, photos or masks out, one by one."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from oldrestore.cli.options import Engine, FaceWishes, Flag, Json, Wishes
from oldrestore.cli.terminal import DONE, FAILED, progress_bar, say
from oldrestore.files import detect_pages, page_path, restore_pages
from oldrestore.jobs import Source, UsageError, check_targets, find_photos, mask_of, targets
from oldrestore.tiling.memory import read_memory

COMPARE_ENDING = "-compare.jpg"


def restore(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    save_mask: Path | None = None,
    compare: Flag = False,
    as_json: Json = False,
    max_memory: str | None = None,
    wishes: Wishes = Wishes(),
    people: FaceWishes = FaceWishes(),
    engine: Engine = Engine(),
) -> int:
    """Restore photos.

    Args:
        photos: Files, folders (with all below them) and patterns such as "scans/*.tif".
        output: A file for one photo, else a folder; names stay as they are.
        save_mask: Write what was taken for damage: a file for one photo, else a folder.
        compare: Write a picture of before and after beside each result.
        as_json: Print one line of JSON for each photo.
        max_memory: What a photo may take, such as "2GiB"; three quarters of what is free if not
            given. Large photos are worked on in bands, with the same result.
        wishes: How a photo is restored.
        people: What is done with faces.
        engine: What runs the networks.
    """
    wishes.check()
    if wishes.no_mask and save_mask:
        raise UsageError("--no-mask: expected neither --mask nor --save-mask with it")
    given = None if wishes.mask is None else Path(wishes.mask)
    read_memory(max_memory)
    sources = find_photos(photos, output)
    results = targets(sources, photos, output)
    comparisons = [path.with_name(path.stem + COMPARE_ENDING) for path in results]
    masks = targets(sources, photos, save_mask, ".png") if save_mask else []
    check_targets(sources, [*results, *masks, *(comparisons if compare else [])])
    restorer = engine.load(people.faces, people.face_weights)

    def run(index: int) -> dict[str, Any]:
        source = sources[index]
        asked = mask_of(source, given) if given else None if wishes.no_mask else "auto"
        beside: dict[str, Path] = {}
        if save_mask:
            beside["mask"] = masks[index]
        if compare:
            beside["compare"] = comparisons[index]
        restored = restore_pages(
            restorer,
            source.path,
            results[index],
            mask=asked,
            save_mask=beside.get("mask"),
            compare=beside.get("compare"),
            max_memory=max_memory,
            **wishes.options(),
        )
        pages = [
            {
                **{kind: str(page_path(path, number)) for kind, path in beside.items()},
                "size": page.size[::-1],
                "damaged": None if found.damaged is None else round(found.damaged, 6),
                "denoise": list(found.denoise),
                "tone": [dataclasses.asdict(curve) for curve in found.tone],
                **({"faces": found.faces_as_json()} if restorer.faces is not None else {}),
                "seconds": round(found.seconds, 3),
            }
            for number, (page, found) in enumerate(restored, start=1)
        ]
        return {"output": str(results[index]), **_record(pages)}

    return _for_each_photo(sources, run, as_json=as_json)


def detect(
    photos: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    as_json: Json = False,
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
        options = {"threshold": threshold, "max_memory": max_memory}
        shares = detect_pages(restorer, sources[index].path, results[index], **options)
        pages = [
            {"output": str(page_path(results[index], number)), "damaged": round(share, 6)}
            for number, share in enumerate(shares, start=1)
        ]
        return _record(pages)

    return _for_each_photo(sources, run, as_json=as_json)


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


def _record(pages: list[dict[str, Any]]) -> dict[str, Any]:
    """What is told of a photo: of one page as it is, of several in a list."""
    return pages[0] if len(pages) == 1 else {"pages": pages}
