"""What the checks of the Triton kernels share; run by ../test_interpreted.py, as that says.

Without a GPU they run in Triton's interpreter, mended in bfloat16 and watched at every address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import interpreter
import pytest
import torch
import triton
from torch import Tensor

IS_INTERPRETED = bool(triton.knobs.runtime.interpret)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Poison what `torch.empty` gives, and watch the interpreter."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # else nothing is poisoned
    torch.utils.deterministic.fill_uninitialized_memory = True
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the reference is in float32
    if IS_INTERPRETED:
        interpreter.mend_bfloat16(monkeypatch)
        interpreter.watch_addresses(monkeypatch)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


def _assert_as_accurate(
    fast: Tensor, slow: Tensor, truth: Tensor, cancelled: Tensor | float = 0.0
) -> None:
    eps = torch.finfo(slow.dtype).eps
    allowed = 2 * ((slow - truth).abs().max() + eps * truth.abs().max() + cancelled)
    assert (fast - truth).abs().max() <= allowed  # False for NaN too
    assert fast.dtype == slow.dtype
    assert fast.shape == slow.shape


@pytest.fixture
def assert_as_accurate() -> Callable[..., None]:
    """(fast, slow, truth): ``fast`` errs at most twice as much as the reference in its dtype.

    A fourth argument is the rounding of terms that cancel, which the reference may be spared.
    """
    return _assert_as_accurate
