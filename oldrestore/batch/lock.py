"""One batch at a time on a folder of results.

On this machine the lock is a transaction of a SQLite file, which ends with its process, however
that ends. Beside an object store it is an object that is written again and again: who finds it old
may take it.
"""

import json
import os
import platform
import sqlite3
import time
from pathlib import Path
from typing import Any

from oldrestore.batch.manifest import now
from oldrestore.batch.storage import OWN, RemoteFolder
from oldrestore.jobs import UsageError

LOCK_NAME = f"{OWN}/lock.json"
STALE_SECONDS = 180  # several times what passes between two writings


class LocalLock:
    """Held from its making to ``release``, or to the end of the process.

    Args:
        folder: our own folder inside the folder of results; it exists.

    Raises:
        UsageError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._base = sqlite3.connect(folder / "lock.sqlite", timeout=0, isolation_level=None)
        holder = folder / "lock.json"
        try:
            self._base.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._base.close()
            if "locked" not in str(error):
                raise OSError(f"{folder}: cannot be locked: {error}") from error
            raise UsageError(
                f"{folder.parent}: another batch is at work here ({_who(holder)}); wait for it, or "
                "end it"
            ) from error
        holder.write_text(_description())

    def refresh(self) -> None:
        """Nothing to do: it holds as long as the process lives."""

    def release(self) -> None:
        self._base.close()


class RemoteLock:
    """Held while ``refresh`` is called more often than every ``STALE_SECONDS``.

    Raises:
        UsageError: another process holds it, or did until shortly ago.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        if folder.stamp(LOCK_NAME) is not None:
            with folder.to_read(LOCK_NAME) as path:
                who, seconds = _who(path), time.time() - _holder(path).get("at", 0)
            if seconds < STALE_SECONDS:
                raise UsageError(
                    f"{folder.url}: another batch is at work here ({who}); if it was killed, try "
                    f"again in {STALE_SECONDS - seconds:.0f} s"
                )
        self.refresh()

    def refresh(self) -> None:
        """Say that we are still at work."""
        with self._folder.to_write(LOCK_NAME) as path:
            path.write_text(_description())

    def release(self) -> None:
        self._folder.remove(LOCK_NAME)


def _description() -> str:
    process = {"process": os.getpid(), "host": platform.node(), "since": now(), "at": time.time()}
    return json.dumps(process)


def _holder(path: Path) -> dict[str, Any]:
    """What the holder wrote; nothing if that is cut short."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _who(path: Path) -> str:
    holder = {"process": "?", "host": "?", "since": "?"} | _holder(path)
    return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
