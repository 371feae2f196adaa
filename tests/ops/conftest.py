"""What the tests of operations share: the memory that a piece of code needs, alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_STATUS = Path("/proc/self/status")

# not ru_maxrss, which starts from what the process held that started this one
_MEASURED = """
import torch
torch.set_num_threads(1)
def peak_kib():
    with open("{status}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
{before}
start = peak_kib()
{code}
print(peak_kib() - start)
"""


def _peak_extra_bytes(before: str, code: str) -> int:
    script = _MEASURED.format(status=_STATUS, before=before, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    return int(done.stdout) * 1024


@pytest.fixture
def peak_extra_bytes() -> Callable[[str, str], int]:
    """(before, code): by how much ``code`` raises the peak memory of a process of its own."""
    if not _STATUS.exists():
        pytest.skip(f"there is no {_STATUS} to tell a process's peak memory")
    return _peak_extra_bytes
