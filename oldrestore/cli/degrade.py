"""``oldrestore degrade``: pairs of damaged and clean photos from a folder of clean ones."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from oldrestore.cli.terminal import DONE, FAILED, progress_bar, say
from oldrestore.photo_file import PhotoError


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
    with progress_bar() as progress:
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
            say(str(error), progress.console)
            return FAILED
        for reason in report.skipped:
            say(f"skipped: {reason}", progress.console)
    print(f"{report.written} pairs written to {output}, {len(report.skipped)} photos skipped")
    return FAILED if report.skipped else DONE
