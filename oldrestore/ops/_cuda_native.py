"""The CUDA extension: whether it can run, and how tensors are handed to it.

What is here is imported everywhere and wakes no device; the extension itself, oldrestore._cuda, is
loaded when the first tensor on a CUDA device arrives.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from oldrestore.ops import _dispatch

MODULE = "oldrestore._cuda"
OLDEST_CAPABILITY = 8  # compute capability: what csrc/CMakeLists.txt compiles for at least
_IS_BUILT = importlib.util.find_spec(MODULE) is not None

_ELEMENTS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def cuda_missing(device: torch.device) -> str | None:
    """Why the CUDA extension cannot run on ``device``, or None if it can."""
    if device.type != "cuda":
        return f"runs on CUDA devices only, not on {device.type}"
    if not _IS_BUILT:
        return f"the native extension {MODULE} is not built"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch finds no CUDA device"
    major = torch.cuda.get_device_properties(device).major
    if major < OLDEST_CAPABILITY:
        return f"needs compute capability {OLDEST_CAPABILITY}.0 or newer, not {major}"
    return None


def dtype_unsupported(x: Tensor, *_: object, **__: object) -> str | None:
    """Why the kernels cannot take the dtype of an operation's first tensor, or None if they can."""
    if x.dtype in _ELEMENTS:
        return None
    return f"takes float32, float16 and bfloat16, not {x.dtype}"


@functools.cache
def extension() -> Any:
    """The module oldrestore._cuda."""
    module = _dispatch.load_native(MODULE)
    assert module is not None, "dispatch let cuda through without the extension"
    return module


def element(x: Tensor) -> str:
    """What the extension calls the dtype of ``x``."""
    return _ELEMENTS[x.dtype]


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    """Inside, launches go to the device of ``x``."""
    manager: AbstractContextManager[None] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return manager


def stream(x: Tensor) -> int:
    """The stream on which torch works on the device of ``x``."""
    return int(torch.cuda.current_stream(x.device).cuda_stream)


def address(x: Tensor | None) -> int:
    """Where ``x`` begins in its device's memory; 0 for None."""
    return 0 if x is None else x.data_ptr()
