"""Which photos a command reads, and where what it makes of them goes."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oldrestore.photo_file import READ_SUFFIXES, WRITE_FORMATS


class UsageError(ValueError):
    """A request that makes no sense as a whole; nothing was done."""


@dataclass(frozen=True)
class Source:
    """A photo to read; ``name``: its path below the folder that was asked for, or its file name."""

    path: Path
    name: Path


def find_photos(inputs: Sequence[str], output: Path) -> list[Source]:
    """The photos of files, folders (with all below) and glob patterns, in order.

    Args:
        inputs: what the user gave. Of a folder, files with the suffix of a photo are taken; a file
            that is named is taken whatever it is.
        output: where results go; what lies below it is no input of a folder.

    Raises:
        UsageError: a folder or a pattern holds no photo.
    """
    found: list[Source] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            sources = [Source(file, file.relative_to(path)) for file in _photos_in(path, output)]
        elif glob.has_magic(text) and not path.exists():
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207 (pattern may be absolute)
            sources = [Source(file, Path(file.name)) for file in matches if file.is_file()]
        else:
            sources = [Source(path, Path(path.name))]
        if not sources:
            raise UsageError(f"{text}: no photos found")
        found += sources
    return found


def targets(
    sources: Sequence[Source], inputs: Sequence[str], output: Path, suffix: str | None = None
) -> list[Path]:
    """The file to write for each source.

    Args:
        sources: what ``find_photos`` made of ``inputs``.
        inputs: what the user gave.
        output: a file, if there is one input, no folder, and this ends as a picture; else a folder,
            in which names stay as they are.
        suffix: of the files in a folder; None: the source's, or ``.png`` where we cannot write it.

    Raises:
        UsageError: ``output`` is a file's name, but there is more than one photo.
    """
    if output.suffix.lower() in WRITE_FORMATS and not output.is_dir():
        if len(sources) != 1 or Path(inputs[0]).is_dir():
            raise UsageError(f"{output}: expected a folder for more than one photo")
        return [output]
    return [
        output / source.name.with_suffix(suffix or _writable(source.path)) for source in sources
    ]


def check_targets(sources: Sequence[Source], written: Sequence[Path]) -> None:
    """Raise UsageError if two results have one name, or a result would replace a source."""
    counts = Counter(path.resolve() for path in written)
    for path in written:
        if counts[path.resolve()] > 1:
            raise UsageError(f"{path}: more than one result would get this name")
    read = {source.path.resolve() for source in sources}
    for path in written:
        if path.resolve() in read:
            raise UsageError(
                f"{path}: would replace the photo it is made of; choose another output"
            )


def mask_of(source: Source, mask: Path) -> Path:
    """The mask of a photo: ``mask`` itself, or in this folder the picture with the photo's name.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    if not mask.is_dir():
        return mask
    for suffix in READ_SUFFIXES:
        path = mask / source.name.with_suffix(suffix)
        if path.exists():
            return path
    raise FileNotFoundError(f"{source.path}: no mask {source.name.with_suffix('')}.* in {mask}")


def _photos_in(folder: Path, output: Path) -> list[Path]:
    results = output.resolve()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READ_SUFFIXES
        and path.is_file()
        and (results == folder.resolve() or results not in path.resolve().parents)
    )


def _writable(path: Path) -> str:
    return path.suffix if path.suffix.lower() in WRITE_FORMATS else ".png"
