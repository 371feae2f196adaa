"""How much memory there is, and how much a user allows."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path, PurePosixPath

FREE_SHARE = 0.75  # of what is free, unless the user says how much
# where the system does not say what is free; what a small virtual machine has to spare
UNKNOWN_FREE_BYTES = 2 * 2**30
LEAST_TRIMMED_BYTES = 2**25  # less is not worth the time
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([KMGT]?)(I?B)?", re.ASCII)


def read_memory(amount: str | int | None, name: str = "max_memory") -> int:
    """The bytes that a user means.

    Args:
        amount: such as "2GiB", "1.5G" (2 ** 30 each), "800MB" (10 ** 6), a number of bytes, or
            None: three quarters of what is free.
        name: what messages call it.

    Raises:
        ValueError: it is no such amount, or zero.
    """
    if amount is None:
        return int(FREE_SHARE * free_memory())
    if isinstance(amount, str):
        found = _AMOUNT.fullmatch(amount.strip().upper())
        if found is None:
            raise ValueError(f'{name}: expected bytes such as "2GiB" or "800MB", got {amount!r}')
        number, unit, ending = found.groups()
        units = _DECIMAL_UNITS if ending == "B" and unit else _UNITS
        size = int(float(number) * units[unit])
    elif isinstance(amount, int) and not isinstance(amount, bool):
        size = amount
    else:
        raise ValueError(f'{name}: expected bytes such as "2GiB" or 2147483648, got {amount!r}')
    if size <= 0:
        raise ValueError(f"{name}: expected more than nothing, got {amount!r}")
    return size


def text_of(size: float) -> str:
    """Bytes as people write them, rounded up to a hundredth of their unit."""
    unit = "GiB" if size >= 2**30 else "MiB"
    value = size / (2**30 if unit == "GiB" else 2**20)
    return f"{-(-value * 100 // 1) / 100:g} {unit}"


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: the system's, or its container's if less.

    Args:
        root: where the system's files lie.
    """
    found = [free for free in (_free_of_system(root), _free_of_group(root)) if free is not None]
    if found:
        return max(0, min(found))
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN_FREE_BYTES


class Guard:
    """Has the C library give freed memory back to the system when the process holds too much.

    It keeps what is freed for the next maps, which saves a fifth of the time but has no bound.

    Args:
        limit: bytes that the process may hold, if it can be helped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._next = limit

    def look(self) -> None:
        """Look how much is held; cheap enough for every layer."""
        resident = resident_memory()
        if resident is not None and resident > self._next:
            # what is in use cannot be given back: look again when there is some more
            self._next = max(self._limit, (trimmed_memory() or 0) + LEAST_TRIMMED_BYTES)


def trimmed_memory() -> int | None:
    """What this process holds once the C library, if it can, has given back what was freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    return resident_memory()


def resident_memory() -> int | None:
    """Bytes of this process that are in memory; None where the system does not say."""
    text = _text(Path("/proc/self/statm"))
    return None if text is None else int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_of_system(root: Path) -> int | None:
    text = _text(root / "proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _free_of_group(root: Path) -> int | None:
    """What control groups leave, of version 2 or 1: the least of the group's and those above."""
    free = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, most, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            limit, taken = _text(mount / group / most), _text(mount / group / used)
            if limit is None or taken is None or not limit.strip().isdigit():  # "max": no limit
                continue
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$",
                _text(mount / group / "memory.stat") or "",
                re.MULTILINE,
            )
            # file pages that nobody uses are given back before anything is killed
            free.append(int(limit) - int(taken) + (int(cached.group(1)) if cached else 0))
    return min(free) if free else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return None
