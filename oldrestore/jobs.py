"""Which photos a command reads, and where what it makes of them goes."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class UnreadableFolder:
    """A folder that a walk could not look into, and why."""

    path: str
    reason: str


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


def walk_photos(folder: Path, excluded: Sequence[Path] = ()) -> Iterator[Path | UnreadableFolder]:
    """All files below a folder that have the suffix of a photo, in order of their names.

    Links to folders are followed, and each folder is looked into once, however many links lead to
    it. Hidden files and folders (".name": thumbnails, forks, waste) are passed over.

    Args:
        folder: where to start.
        excluded: folders that are not looked into, unless one of them is ``folder`` itself.
    """
    seen = {_identity(path) for path in excluded} - {_identity(folder), None}
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path != folder and not path.is_dir():
            yield path
            continue
        identity = _identity(path)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            names = sorted((below.name for below in path.iterdir()), reverse=True)
        except OSError as error:
            yield UnreadableFolder(str(path), error.strerror or str(error))
            continue
        for name in names:
            below = path / name
            if not name.startswith(".") and (is_photo(name) or below.is_dir()):
                waiting.append(below)


def is_photo(name: str) -> bool:
    """Whether a file's name has the suffix of a photo."""
    return os.path.splitext(name)[1].lower() in READ_SUFFIXES  # noqa: PTH122 (no path, a name)


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


def _photos_in(folder: Path, output: Path) -> Iterator[Path]:
    for found in walk_photos(folder, [output]):
        if isinstance(found, UnreadableFolder):
            warnings.warn(f"{found.path}: cannot be read: {found.reason}", stacklevel=2)
        else:
            yield found


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all links to one folder; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _writable(path: Path) -> str:
    return path.suffix if path.suffix.lower() in WRITE_FORMATS else ".png"
