"""Manifest: what was made of each photo of a collection, in one SQLite file.

It is written before a photo is begun and after its results have their names, so a process may be
killed at any moment: what was in work is begun again, what is done is known by its content. One
process writes, others may read meanwhile.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE photos (
    name    TEXT PRIMARY KEY,   -- path below the folder of photos
    state   TEXT NOT NULL,      -- started, done, failed, or unreadable (a folder)
    job     TEXT,               -- sha256 of weights and options
    inputs  TEXT,               -- JSON: {"photo" | "mask": {name, size, version, sha256}}
    outputs TEXT,               -- JSON: {kind: {name, size, version, sha256}}
    record  TEXT,               -- JSON: what was done to the photo
    error   TEXT,               -- of a photo that failed
    deaths  INTEGER NOT NULL DEFAULT 0,  -- how often a process ended while at work on it
    changed TEXT NOT NULL       -- UTC
) WITHOUT ROWID;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
BUSY_SECONDS = 30  # to wait for a reader's lock


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names it."""


@dataclass(frozen=True)
class Row:
    """A photo's row; the columns are described in ``SCHEMA``."""

    name: str
    state: str
    job: str | None = None
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    deaths: int = 0
    changed: str = ""


COLUMNS = "name, state, job, inputs, outputs, record, error, deaths, changed"


class Manifest:
    """The open file.

    Args:
        path: of the file; made if there is none.
        is_read_only: nothing is written; the file must exist.

    Raises:
        ManifestError: it is no manifest, or one of a newer version of this package.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        self._is_read_only = is_read_only
        mode = "ro" if is_read_only else "rw"
        try:
            if not is_read_only and not path.exists():
                _make(path)
            self._base = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,  # each statement is a transaction of its own
            )
            self._base.text_factory = _text
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise ManifestError(
                    f"{path}: a manifest of version {version}, this oldrestore reads "
                    f"{SCHEMA_VERSION}; use the release that wrote it, or another folder"
                )
            if not is_read_only:
                # readers go on meanwhile; a killed process loses nothing, a power cut the last
                # seconds at most
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ManifestError(
                f"{path}: is damaged, or no manifest ({error}); move it away to begin anew"
            ) from error

    def row(self, name: str) -> Row | None:
        """What is known of a photo."""
        found = self._base.execute(
            f"SELECT {COLUMNS} FROM photos WHERE name = CAST(? AS TEXT)",  # noqa: S608 (constant)
            (os.fsencode(name),),
        ).fetchone()
        return None if found is None else _row(found)

    def rows(self) -> Iterator[Row]:
        """All, by name."""
        for found in self._base.execute(f"SELECT {COLUMNS} FROM photos ORDER BY name"):  # noqa: S608 (constant)
            yield _row(found)

    def counts(self) -> dict[str, int]:
        """How many photos are in each state."""
        return dict(self._base.execute("SELECT state, count(*) FROM photos GROUP BY state"))

    def write(self, row: Row) -> None:
        """Put a row in the place of what is there; its ``changed`` is set to now."""
        self._base.execute(
            f"INSERT OR REPLACE INTO photos ({COLUMNS}) "  # noqa: S608 (constant)
            "VALUES (CAST(? AS TEXT), ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?)",
            (
                os.fsencode(row.name),
                row.state,
                row.job,
                json.dumps(row.inputs),
                json.dumps(row.outputs),
                json.dumps(row.record),
                None if row.error is None else os.fsencode(row.error),
                row.deaths,
                now(),
            ),
        )

    def write_all(self, rows: Iterable[Row]) -> None:
        """The same for many, in one transaction."""
        with self._transaction():
            for row in rows:
                self.write(row)

    def start(self, name: str) -> None:
        """Note that a photo is in work; what was known of its results holds until it is done."""
        self._base.execute(
            "INSERT INTO photos (name, state, deaths, changed) "
            "VALUES (CAST(? AS TEXT), 'started', 1, ?) "
            "ON CONFLICT (name) DO UPDATE "
            "SET state = 'started', deaths = deaths + 1, changed = excluded.changed",
            (os.fsencode(name), now()),
        )

    def let_go(self, name: str) -> None:
        """A photo in work was given back by a process that lives: nobody died of it."""
        self._base.execute(
            "UPDATE photos SET deaths = max(deaths - 1, 0) WHERE name = CAST(? AS TEXT)",
            (os.fsencode(name),),
        )

    def forget_unreadable(self) -> None:
        """Drop the rows of folders that could not be read: the next walk finds out anew."""
        self._base.execute("DELETE FROM photos WHERE state = 'unreadable'")

    def fact(self, key: str) -> Any:
        """A value kept by name; None if there is none."""
        found = self._base.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def keep_fact(self, key: str, value: Any) -> None:
        self._base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    def copy_to(self, path: Path) -> None:
        """A whole copy as it stands now, in one file."""
        target = sqlite3.connect(path)
        try:
            self._base.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file
        finally:
            target.close()

    def close(self) -> None:
        """Leave one plain file, which can be read on a disk that cannot be written."""
        if not self._is_read_only:
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # somebody reads, or the disk is full
                self._base.execute("PRAGMA busy_timeout = 0")
                self._base.execute("PRAGMA journal_mode = DELETE")
        self._base.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def now() -> str:
    """The time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _make(path: Path) -> None:
    """An empty manifest, whole or not at all."""
    partial = path.with_name(f"{path.name}.new")
    partial.unlink(missing_ok=True)
    base = sqlite3.connect(partial)
    base.executescript(f"{SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
    base.close()
    partial.replace(path)


def _text(value: bytes) -> str:
    return os.fsdecode(value)


def _row(found: tuple[Any, ...]) -> Row:
    name, state, job, inputs, outputs, record, error, deaths, changed = found
    inputs, outputs, record = (
        json.loads(text) if text else {} for text in (inputs, outputs, record)
    )
    return Row(name, state, job, inputs, outputs, record, error, deaths, changed)
