"""What the operations of the native core share: packed weights, memory, arrays to write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from oldrestore.ops import _dispatch

_CHANNEL_BLOCK = 16  # csrc/cpu/winograd.hpp: channels of inner maps are padded to this

# Where the reference is faster, measured on one core with AVX-512, NCHW and channels_last.
_FEWEST_PRODUCTS = 1_000_000  # of a convolution: below, the call costs more than it saves
_FEWEST_CHANNELS = 12  # in, without a normalisation: below, transforming tiles costs more
_FEWEST_PIXELS_TO_TRAIN = 1024  # below, transforming weights anew at each step costs more
_FEWEST_KEPT = 2**18  # numbers of a map: the C library keeps smaller ones well enough


class PackedWeights:
    """Transformed weights, kept while the weights live.

    What is kept carries a fingerprint of the weights that is compared at every use (2 % of a block
    of 512 channels on a 64 x 64 map, less on larger ones), so that no way of changing them in place
    can leave it stale.
    """

    def __init__(self) -> None:
        self._by_weight = WeakTensorKeyDictionary()

    def of(self, weight: Tensor, *, is_rotated: bool = False) -> Any:
        """(C_out, C_in, 3, 3); rotated for the gradient with respect to the source."""
        array = weight.detach().contiguous().numpy()
        packed: dict[bool, Any] = self._by_weight.setdefault(weight, {})  # type: ignore[no-untyped-call]  # torch's
        if is_rotated not in packed or not packed[is_rotated].matches(array):
            packed[is_rotated] = core().PackedWeights(array, is_rotated)
        return packed[is_rotated]

    def clear(self) -> None:
        """Forget all; they are transformed anew where they are used again."""
        self._by_weight.clear()

    def __len__(self) -> int:
        return len(self._by_weight)


packed_weights = PackedWeights()


def forget_packed_weights() -> None:
    """Free the transformed weights: four times the size of those that they were made from."""
    packed_weights.clear()


def core() -> Any:
    """The extension itself."""
    assert _dispatch.NATIVE is not None, "dispatch let cpp through without the extension"
    return _dispatch.NATIVE


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In this context 96 MB of freed maps are kept for the next ones, instead of 64.

    The system clears the pages that it hands out: with the maps of large photos, which are freed as
    soon as the next layer has read them, that takes a tenth of the time. The end of the outermost
    context gives it back. Without the native core nothing is kept.
    """
    if _dispatch.NATIVE is None:
        yield
        return
    core().keep_freed_memory()
    try:
        yield
    finally:
        core().return_freed_memory()


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if that alone fits, else contiguous."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def like(x: Tensor, channels: int | None = None) -> Tensor:
    """An empty map laid out as ``x``, of as many channels or of these."""
    shape = list(x.shape)
    if channels is not None:
        shape[1] = channels
    return empty(x, shape, memory_format(x))


def inner_map(x: Tensor, channels: int) -> Tensor:
    """An empty (B, H, W, padded C), as the core keeps what lies between two convolutions."""
    batch, _, height, width = x.shape
    return empty(x, [batch, height, width, padded(channels)], torch.contiguous_format)


def map_of_rows(x: Tensor, rows: int) -> Tensor:
    """An empty contiguous map (B, C, rows, W), otherwise like ``x``: of any type and device."""
    shape = [*x.shape[:2], rows, x.shape[3]]
    if _dispatch.NATIVE is None or x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    return empty(x, shape, torch.contiguous_format)


def empty(
    x: Tensor, shape: Sequence[int], layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """A float32 map on the device of ``x``, large ones in memory that the core keeps."""
    out = torch.empty(shape, dtype=x.dtype, device="meta", memory_format=layout)
    if out.numel() < _FEWEST_KEPT or type(x) is not Tensor:  # such as the compiler's fakes
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    return torch.from_numpy(core().empty(out.numel())).as_strided(out.shape, out.stride())


def padded(channels: int) -> int:
    return -(-channels // _CHANNEL_BLOCK) * _CHANNEL_BLOCK


def array(tensor: Tensor | None) -> Any:
    """The NumPy view that the core takes; None stays None, and so does an empty tensor."""
    if tensor is None or tensor.numel() == 0:
        return None
    return tensor.detach().numpy()


def unsupported(x: Tensor, *_: Tensor | None, **__: Any) -> str | None:
    """Why the core cannot run an operation on ``x``."""
    return None if x.dtype == torch.float32 else f"takes float32, not {x.dtype}"


def slower(x: Tensor, weight: Tensor, *others: Tensor | None, norm: str | None) -> str | None:
    """Why the reference is the better choice for a convolution of ``x`` with ``weight``."""
    pixels, channels_in, channels_out = x.numel() // x.shape[1], x.shape[1], len(weight)
    if 9 * pixels * channels_in * channels_out < _FEWEST_PRODUCTS:
        return f"faster from {_FEWEST_PRODUCTS} products on"
    if norm is None and channels_in < _FEWEST_CHANNELS:
        return f"without a normalisation faster from {_FEWEST_CHANNELS} channels on"
    if _dispatch.needs_gradient(x, weight, *others) and pixels < _FEWEST_PIXELS_TO_TRAIN:
        return f"with gradients faster from {_FEWEST_PIXELS_TO_TRAIN} pixels on"
    return None
