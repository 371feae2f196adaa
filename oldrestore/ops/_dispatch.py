"""Which backend runs an operation: the registry, the choice, and the native extension.

An operation lists its backends fastest first and ends with ``reference``, which takes everything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger("oldrestore.ops")


def _nothing(*_: Any, **__: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    Each of the three questions is answered with a reason for "no", or None for "yes":

    missing(device): can this installation run it on that device at all?
    unsupported(*arguments): can it run these arguments?
    slower(*arguments): is a later backend the better choice? Not asked if named by the caller.
    """

    name: str
    run: Callable[..., Tensor]
    missing: Callable[[torch.device], str | None] = _nothing
    unsupported: Callable[..., str | None] = _nothing
    slower: Callable[..., str | None] = _nothing


@dataclass(frozen=True)
class Operation:
    """An operation and its backends, fastest first."""

    name: str
    backends: tuple[Backend, ...]
    by_name: dict[str, Backend] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {backend.name: backend for backend in self.backends})

    def choose(self, name: str | None, device: torch.device, *args: Any, **kwargs: Any) -> Backend:
        """The backend ``name``, or the fastest one that takes these arguments.

        Raises:
            ValueError: ``name`` is unknown, or cannot run here or with these arguments.
        """
        if name is not None:
            return self._named(name, device, *args, **kwargs)
        for backend in self.backends:
            reason = (
                backend.missing(device)
                or backend.unsupported(*args, **kwargs)
                or backend.slower(*args, **kwargs)
            )
            if reason is None:
                return backend
            if not torch.compiler.is_compiling():
                _log.debug("%s: not %s: %s", self.name, backend.name, reason)
        raise AssertionError(f"{self.name}: its reference refused")

    def _named(self, name: str, device: torch.device, *args: Any, **kwargs: Any) -> Backend:
        if name not in self.by_name:
            raise ValueError(f"backend: {self.name} has {', '.join(self.by_name)}; got {name!r}")
        backend = self.by_name[name]
        reason = backend.missing(device) or backend.unsupported(*args, **kwargs)
        if reason is not None:
            raise ValueError(f"backend: {self.name} cannot use {name!r}: {reason}")
        return backend


def load_native(module: str = "oldrestore._C") -> ModuleType | None:
    """The native extension, or None where it was not built.

    Raises:
        ImportError: the file is there but does not load: a broken installation.
    """
    if importlib.util.find_spec(module) is None:
        return None
    return importlib.import_module(module)


NATIVE = load_native()


def native_missing(device: torch.device) -> str | None:
    """Why the native CPU core cannot run on ``device``."""
    if device.type != "cpu":
        return f"runs on the CPU only, not on {device.type}"
    if NATIVE is None:
        return "the native extension oldrestore._C is not built"
    return None


_static: ContextVar[bool] = ContextVar("static control flow", default=False)


@contextlib.contextmanager
def static_control_flow() -> Iterator[None]:
    """In this context no operation asks what a tensor holds: a CUDA graph can be captured."""
    token = _static.set(True)
    try:
        yield
    finally:
        _static.reset(token)


def is_static() -> bool:
    """Whether shapes and choices must not depend on values: under a compiler or a capture."""
    return torch.compiler.is_compiling() or _static.get()


def check_fractions(name: str, values: Tensor) -> None:
    """Refuse values outside [0, 1], which NaN is too; not asked while shapes must be static.

    Raises:
        ValueError: there are such values; says ``name`` and the first of them.
    """
    if is_static():
        return
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(f"{name}: expected values in [0, 1], got {float(values[wrong][0])}")


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that autocast asks for on their device, if it is on.

    Inside the networks one layer may give half precision beside parameters in float32.
    """
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def set_backend(model: nn.Module, backend: str | None) -> None:
    """Make every submodule that has a ``backend`` use this one; None: the fastest."""
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend  # type: ignore[assignment]  # a plain attribute, no parameter
