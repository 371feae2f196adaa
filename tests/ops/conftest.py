"""What the tests of operations share: a bound on rounding errors, and memory measured alone."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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


def _winograd_growth() -> float:
    """How much larger the rounding errors of F(4x4, 3x3) are than direct convolution's, in rms.

    An output of the one-dimensional algorithm is sum_i A[j, i] (G g)[i] (B d)[i]. For random g and
    d a product, and with it its rounding, is of the size |G[i]| |B[i]|; the direct sum has three
    products of size 1. The worst output counts, and two dimensions square the factor.
    """
    points = np.array([0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5)])
    squares = np.zeros(4)
    for p in points:
        others = points[points != p]
        g = np.linalg.norm([1, p, p * p]) / np.prod(p - others)
        squares += (p ** np.arange(4) * g * np.linalg.norm(np.poly(others))) ** 2
    squares[3] += np.linalg.norm(np.poly(points)) ** 2  # the point at infinity
    return float((squares / 3).max())


@pytest.fixture
def winograd_growth() -> float:
    return _winograd_growth()


@pytest.fixture
def assert_accurate() -> Callable[[Tensor, Tensor, Tensor], None]:
    """(fast, slow, truth): ``fast`` errs at most twice as much as Winograd's rounding allows.

    slow: the reference in the dtype of ``fast``; truth: in float64.
    """
    growth = _winograd_growth()

    def check(fast: Tensor, slow: Tensor, truth: Tensor) -> None:
        eps = torch.finfo(torch.float32).eps
        allowed = 2 * growth * ((slow - truth).abs().max() + eps * truth.abs().max())
        assert (fast - truth).abs().max() <= allowed  # False for NaN too
        assert fast.shape == slow.shape
        assert fast.dtype == slow.dtype

    return check


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every torch.empty is full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
