"""The photos of a folder, numbered, and a bar that shows how far through them we are."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from oldrestore.photo_file import READ_SUFFIXES


def numbered_photos(folder: Path, limit: int | None) -> list[tuple[int, Path]]:
    """Photos by name, each with its place among all: a limit changes no photo's damage.

    Args:
        folder: not searched deeper.
        limit: only so many, spread evenly over the folder.

    Raises:
        ValueError: there is no such folder, or no photo in it, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 or more, got {limit}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of photos")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in READ_SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: no photo in it; expected {' '.join(READ_SUFFIXES)}")
    numbered = list(enumerate(found))
    count = len(found) if limit is None else min(limit, len(found))
    return [numbered[i * len(found) // count] for i in range(count)]


def progress(photos: Sequence[tuple[int, Path]], doing: str | None) -> Iterable[tuple[int, Path]]:
    """The photos, with a bar on stderr if that is a terminal and ``doing`` says what is done."""
    if doing is None or not sys.stderr.isatty():
        return photos
    from rich.console import Console
    from rich.progress import track

    return track(photos, doing, console=Console(stderr=True))
