"""Where photos lie and results go: a folder of this machine, or any that fsspec reaches.

Files have names, paths below the folder with "/" between; a name that is no UTF-8 keeps its bytes
as ``os.fsdecode`` gives them. Work is done on files of this machine: one that lies elsewhere is
fetched before and sent after.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.request import url2pathname

from oldrestore.jobs import UnreadableFolder, UsageError, is_photo, walk_photos
from oldrestore.photo_file import PhotoError

OWN = ".oldrestore"  # our folder inside a folder of results: hidden, so that no walk enters it
PARTIAL = "partial"  # in it: what is being written
# what an object store calls the version of an object, by the library behind it
VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
HASHED_BYTES = 1 << 20  # read at a time


@dataclass(frozen=True)
class Stamp:
    """What tells without reading whether a file was touched: its size, and its time or version."""

    size: int
    version: str


class Folder(Protocol):
    """A folder of photos or results; ``url`` is what messages call it."""

    url: str

    def walk(self, excluded: Sequence[str] = ()) -> Iterator[str | UnreadableFolder]:
        """Names of the photos below, in order; what lies below the folders ``excluded`` is none."""

    def stamp(self, name: str) -> Stamp | None:
        """Of a file; None if there is none.

        Raises:
            PhotoError: it is something else than a file.
        """

    def to_read(self, name: str) -> AbstractContextManager[Path]:
        """The file, or a copy of it, on this machine.

        Raises:
            OSError: it cannot be read.
        """

    def to_write(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine to be written, of the same suffix.

        It gets its name when the context ends, whole; on an error it is left out.
        """

    def exists(self) -> bool:
        """Whether the folder itself is (still) there."""

    def title(self, name: str) -> str:
        """What messages call a file."""


class LocalFolder:
    """A folder of this machine, or one mounted here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def walk(self, excluded: Sequence[str] = ()) -> Iterator[str | UnreadableFolder]:
        outside = [Path(folder) for folder in excluded if "://" not in folder]
        for found in walk_photos(self.path, outside):
            if isinstance(found, UnreadableFolder):
                yield found
            else:
                yield found.relative_to(self.path).as_posix()

    def stamp(self, name: str) -> Stamp | None:
        path = self.path / name
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not path.is_file():  # a named pipe would never end
            raise PhotoError(f"{path}: is not a file")
        return Stamp(status.st_size, str(status.st_mtime_ns))

    @contextmanager
    def to_read(self, name: str) -> Iterator[Path]:
        yield self.path / name

    @contextmanager
    def to_write(self, name: str) -> Iterator[Path]:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = self.path / OWN / PARTIAL
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / (secrets.token_hex(8) + path.suffix)
        try:
            yield partial
            with partial.open("rb") as file:  # whole on the disk before it has its name
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def clear_partial(self) -> None:
        """Remove what a killed process left half-written; only while no other is at work here."""
        shutil.rmtree(self.path / OWN / PARTIAL, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder of maps has nothing else of ours
            (self.path / OWN).rmdir()

    def exists(self) -> bool:
        return self.path.is_dir()

    def title(self, name: str) -> str:
        return str(self.path / name)


class RemoteFolder:
    """A folder that fsspec reaches: ``s3://bucket/scans``, ``gs://``, ``memory://`` and others.

    Raises:
        UsageError: the library that reaches it is not installed, or does not know it.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self.files, path = url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise UsageError(f"{url}: cannot be reached: {error}") from error
        self.root = path.rstrip("/")

    def walk(self, excluded: Sequence[str] = ()) -> Iterator[str | UnreadableFolder]:
        outside = [url.rstrip("/") + "/" for url in excluded]
        try:
            paths = sorted(self.files.find(self.root))
        except OSError as error:
            yield UnreadableFolder(self.url, str(error))
            return
        for path in paths:
            name = path[len(self.root) :].lstrip("/")
            is_hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
            is_result = self.title(name).startswith(tuple(outside))
            if is_photo(name) and not is_hidden and not is_result:
                yield name

    def stamp(self, name: str) -> Stamp | None:
        try:
            # a listing may be older than the file
            self.files.invalidate_cache(self._path(name).rpartition("/")[0])
            about: dict[str, Any] = self.files.info(self._path(name))
        except FileNotFoundError:
            return None
        if about.get("type") == "directory":
            raise PhotoError(f"{self.title(name)}: is not a file")
        version = next((about[key] for key in VERSIONS if about.get(key)), "")
        return Stamp(int(about["size"]), str(version))

    @contextmanager
    def to_read(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"photo{PurePosixPath(name).suffix}"
            self.files.get_file(self._path(name), str(path))
            yield path

    @contextmanager
    def to_write(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"result{PurePosixPath(name).suffix}"
            yield path
            self.files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), self._path(name))  # object stores take it whole

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        if self.stamp(name) is not None:
            self.files.rm_file(self._path(name))

    def exists(self) -> bool:
        return bool(self.files.exists(self.root))

    def title(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def open_folder(where: str | os.PathLike[str]) -> LocalFolder | RemoteFolder:
    """A folder by its path or URL.

    Raises:
        UsageError: nothing here reaches that kind of URL.
    """
    text = os.fspath(where)
    if text.startswith("file://"):
        return LocalFolder(Path(url2pathname(text.removeprefix("file://"))))
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(text))


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


class NewFiles:
    """Files that get their names together, when all are written; none of them on an error."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[str, tuple[Folder, str, Path]] = {}

    def __enter__(self) -> "NewFiles":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def path(self, kind: str, folder: Folder, name: str) -> Path:
        """Where to write a file, by its kind."""
        path = self._stack.enter_context(folder.to_write(name))
        self._files[kind] = folder, name, path
        return path

    def finish(self) -> dict[str, dict[str, Any]]:
        """Give the files their names; returns their entries for the manifest, by kind."""
        hashes = {kind: sha256_of(path) for kind, (_, _, path) in self._files.items()}
        self._stack.close()
        entries = {}
        for kind, (folder, name, _) in self._files.items():
            stamp = folder.stamp(name)
            if stamp is None:
                raise PhotoError(f"{folder.title(name)}: is gone as soon as it was written")
            entries[kind] = entry(name, stamp, hashes[kind])
        return entries


def write_file(folder: Folder, name: str, write: Callable[[Path], object]) -> dict[str, Any]:
    """Write a file whole or not at all; returns its entry for the manifest."""
    with NewFiles() as new:
        write(new.path(name, folder, name))
        return new.finish()[name]


def entry(name: str, stamp: Stamp, sha256: str) -> dict[str, Any]:
    """What the manifest holds of a file."""
    return {"name": name, "size": stamp.size, "version": stamp.version, "sha256": sha256}
