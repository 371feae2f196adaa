"""Instance norm and activation, after convolutions of other kinds than ``conv_norm_act`` takes.

``reference`` is the definition. ``cpp`` is csrc/cpu/instance_norm_act.cpp: statistics without
cancellation in one pass, all else in another, registered as ``oldrestore::instance_norm_act`` with
a fake and a gradient. ``triton`` and ``cuda`` are what ``conv_norm_act`` has after its convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native, _cuda_residual_block, _dispatch, _native, _triton
from oldrestore.ops._dispatch import Backend, Operation
from oldrestore.ops.residual_block import normalise

_NO_ACTIVATION = 1.0  # as a slope


def instance_norm_act(
    x: Tensor, *, slope: float | None = None, backend: str | None = None
) -> Tensor:
    """Normalise each channel of each sample, then activate.

        out = leaky_relu((x - mean) / sqrt(variance + 1e-5))

    Instance normalisation (Ulyanov et al., arXiv:1607.08022) as in the published networks of
    Wan et al., CVPR 2020: over the whole map, no learned scale.

    Args:
        x: (B, C, H, W) floating point.
        slope: of the leaky ReLU, at least 0; 0.0 is ReLU, None no activation.
        backend: "reference", "cpp", "triton", "cuda", or None for the fastest.

    Returns:
        (B, C, H, W), dtype of ``x``, contiguous or channels_last. An empty batch stays empty.

    Raises:
        ValueError: an argument has the wrong shape, dtype or value, or the backend asked for cannot
            run it.
    """
    if slope is not None and not 0.0 <= slope < float("inf"):
        raise ValueError(f"slope: expected at least 0 or None, got {slope!r}")
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise ValueError(
            f"x: expected floating (B, C, H, W) with C, H, W >= 1, got {x.dtype} {tuple(x.shape)}"
        )
    return OPERATION.choose(backend, x.device, x).run(x, slope=slope)


def _reference(x: Tensor, *, slope: float | None) -> Tensor:
    out = normalise(x, "instance")
    return out if slope is None else F.leaky_relu(out, slope)


@torch.library.custom_op("oldrestore::instance_norm_act", mutates_args=(), device_types="cpu")
def _forward(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The result, and (2, B * C) means and scales."""
    out, norm = _outputs(x)
    _native.core().instance_norm_act(
        _planes(x), _planes(out), norm.numpy(), slope=slope, threads=torch.get_num_threads()
    )
    return out, norm


def _outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    return _native.like(x), x.new_empty(2, x.shape[0] * x.shape[1])


def _planes(x: Tensor) -> Any:
    return x.detach().reshape(-1, x.shape[2] * x.shape[3]).numpy()


@_forward.register_fake
def _(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    del slope
    return _outputs(x)


@torch.library.custom_op(
    "oldrestore::instance_norm_act_gradient", mutates_args=(), device_types="cpu"
)
def _gradient(grad: Tensor, x: Tensor, norm: Tensor, slope: float) -> Tensor:
    found = _native.like(x)
    _native.core().instance_norm_act_gradient(
        _planes(x),
        norm.numpy(),
        _planes(grad.contiguous()),
        _planes(found),
        slope=slope,
        threads=torch.get_num_threads(),
    )
    return found


@_gradient.register_fake
def _(grad: Tensor, x: Tensor, norm: Tensor, slope: float) -> Tensor:
    del grad, norm, slope
    return _native.like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.slope = inputs
    ctx.save_for_backward(x, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, None]:
    x, norm = ctx.saved_tensors
    return _gradient(grad, x, norm, ctx.slope), None


_forward.register_autograd(_backward, setup_context=_setup_context)


def _cpp(x: Tensor, *, slope: float | None) -> Tensor:
    out: Tensor = _forward(x, _NO_ACTIVATION if slope is None else slope)[0]
    return out


def _unsupported(x: Tensor) -> str | None:
    if not x.is_contiguous():
        return "takes contiguous maps"
    return _native.unsupported(x)


OPERATION = Operation(
    "instance_norm_act",
    (
        Backend("triton", _triton.instance_norm_act, _triton.missing, _triton.unsupported),
        Backend(
            "cuda",
            _cuda_residual_block.instance_norm_act,
            _cuda_native.cuda_missing,
            _cuda_native.dtype_unsupported,
        ),
        Backend("cpp", _cpp, _dispatch.native_missing, _unsupported),
        Backend("reference", _reference),
    ),
)
