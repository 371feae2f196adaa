"""Triton's interpreter, mended in bfloat16 and watched at every address.

The interpreter computes with the bit patterns of bfloat16 and truncates where a GPU rounds to
nearest even. It reads and writes any address, and runs one program after the other, so that two
programs that write to one place go unnoticed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

NOBODY = -1
QUIET_NAN = 0x7FC0


def widen_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bfloat16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """To nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(QUIET_NAN), rounded)


def mend_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make casts round and products multiply."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    convert = InterpreterBuilder.create_fp_to_fp

    def narrow(source: TensorHandle, target: Any) -> TensorHandle | None:
        if (source.dtype.scalar, target.scalar) == (tl.float32, tl.bfloat16):
            return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        return None

    def mended_cast(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        narrowed = narrow(source, target)
        return cast(self, source, target) if narrowed is None else narrowed

    def mended_convert(self: Any, source: TensorHandle, target: Any, mode: Any) -> TensorHandle:
        narrowed = narrow(source, target)
        return convert(self, source, target, mode) if narrowed is None else narrowed

    def mended_dot(
        self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any
    ) -> TensorHandle:
        a, b = (
            TensorHandle(widen_bfloat16(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return dot(self, a, b, d, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", mended_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", mended_convert)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", mended_dot)


class Watch:
    """The tensors that one launch was given, all dense, and who wrote each of their elements."""

    def __init__(self, arguments: list[Any]) -> None:
        tensors = {
            (t.data_ptr(), t.numel() * t.element_size()): t.element_size()
            for t in arguments
            if isinstance(t, torch.Tensor)
        }
        ranges = np.array(sorted(tensors), dtype=np.int64)  # (n, 2)
        self.starts, sizes = ranges.T
        self.ends = self.starts + sizes
        self.itemsizes = np.array([tensors[tuple(r)] for r in ranges.tolist()])
        self.first = np.cumsum(sizes) - sizes  # where a tensor's bytes begin in `owners`
        self.owners = np.full(sizes.sum(), NOBODY)

    def touch(self, addresses: Any, mask: Any, itemsize: int, program: int, verb: str) -> None:
        active = addresses[mask.astype(bool)].astype(np.int64)
        which = np.searchsorted(self.starts, active, side="right") - 1
        assert (which >= 0).all(), f"{verb} outside every tensor"
        assert (active + itemsize <= self.ends[which]).all(), f"{verb} outside every tensor"
        assert (self.itemsizes[which] == itemsize).all(), f"{verb} with another dtype's width"
        place = self.first[which] + active - self.starts[which]
        owner = self.owners[place]
        is_free = (owner == NOBODY) | (owner == program)
        assert is_free.all(), f"two programs meet at one address: {verb}"
        if verb == "write":
            assert len(np.unique(place)) == len(place), "a program writes twice to one address"
            self.owners[place] = program


def watch_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a kernel leaves its tensors, or two of its programs meet at one address."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    to_host, atomic = GridExecutor._init_args_hst, "the kernels have no atomics"
    watches: list[Watch] = []

    def number(builder: Any) -> int:
        x, y, z = builder.grid_idx
        return int((x * builder.grid_dim[1] + y) * builder.grid_dim[2] + z)

    def width(pointers: TensorHandle) -> int:
        return interpreter._get_np_dtype(pointers.get_element_ty()).itemsize

    def begin(self: Any, arguments: Any, keywords: Any) -> Any:
        found = to_host(self, arguments, keywords)
        watches[:] = [Watch([*found[0], *found[1].values()])]
        return found

    def watched_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        watches[0].touch(ptrs.data, mask.data, width(ptrs), number(self), "read")
        return load(self, ptrs, mask, *rest)

    def watched_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watches[0].touch(ptrs.data, mask.data, width(ptrs), number(self), "write")
        return store(self, ptrs, value, mask, *rest)

    def refuse(*_: Any) -> None:
        raise AssertionError(atomic)

    monkeypatch.setattr(GridExecutor, "_init_args_hst", begin)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
    monkeypatch.setattr(InterpreterBuilder, "create_atomic_rmw", refuse)
