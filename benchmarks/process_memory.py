"""How much memory a benchmark has held."""

from pathlib import Path


def peak_megabytes() -> float | None:
    """The most memory this program has held; None where the system does not say.

    Linux's VmHWM: ``ru_maxrss`` also counts what the process that started this one held.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(x for x in status.read_text(encoding="ascii").splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024 / 1e6
