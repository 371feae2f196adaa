"""The residual block on CUDA devices: the vendor's convolutions with one pass between them.

{norm + activation + reflect padding} and {norm + residual} are csrc/cuda/residual_block.cuh, with
statistics in float32, on channels_last maps. They are registered as ``oldrestore::`` operators with
fakes and gradients. Zero padding costs no pass: the vendor's convolution pads by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native
from oldrestore.ops._cuda_native import address, element


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    norm: str | None,
    padding: str,
) -> Tensor:
    """`oldrestore.ops.residual_block` on checked arguments in float32 or half precision."""
    pad = int(padding == "reflect")
    rows = x.contiguous(memory_format=torch.channels_last)
    inner = _convolve(_pad(rows, pad), weight1, None if norm else bias1, pad)
    inner = norm_act_pad(inner, bias1, norm, slope=0.0, pad=pad)
    inner = _convolve(inner, weight2, None if norm else bias2, pad)
    out = rows + inner if norm is None else _norm_add(inner, bias2, rows, _eps(norm))[0]
    return _laid_out_as(x, out)


def conv_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str | None,
    padding: str,
    slope: float | None,
) -> Tensor:
    """`oldrestore.ops.conv_norm_act` on checked arguments in float32 or half precision."""
    pad = int(padding == "reflect")
    rows = x.contiguous(memory_format=torch.channels_last)
    out = _convolve(_pad(rows, pad), weight, None if norm else bias, pad)
    if norm is not None or slope is not None:
        out = norm_act_pad(out, bias, norm, slope=slope, pad=0)
    return _laid_out_as(x, out)


def instance_norm_act(x: Tensor, *, slope: float | None) -> Tensor:
    """`oldrestore.ops.instance_norm_act` on a checked map in float32 or half precision."""
    return _laid_out_as(x, norm_act_pad(x, None, "instance", slope=slope, pad=0))


def norm_act_pad(
    y: Tensor, bias: Tensor | None, norm: str | None, *, slope: float | None, pad: int
) -> Tensor:
    """pad(leaky_relu(norm(y))) in one pass.

    Args:
        y: (B, C, H, W); channels_last costs no copy.
        bias: (C,) or None: of the convolution before, which left it out as the norm takes it away
            again. All that becomes of it is a gradient of zeros. Not looked at without a norm.
        norm: "instance" or None.
        slope: of the activation below zero; 0 is ReLU, None no activation.
        pad: 1 for a border of reflected pixels, or 0.

    Returns:
        (B, C, H + 2 pad, W + 2 pad) channels_last.
    """
    out: Tensor = _norm_act_pad(y, bias if norm else None, _eps(norm), slope, pad)[0]
    return out


def _pad(x: Tensor, pad: int) -> Tensor:
    return norm_act_pad(x, None, None, slope=None, pad=pad) if pad else x


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, padding=1 - pad)


def _laid_out_as(x: Tensor, out: Tensor) -> Tensor:
    """channels_last if ``x`` is that alone, else contiguous."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _eps(norm: str | None) -> float | None:
    from oldrestore.ops.residual_block import INSTANCE_NORM_EPS  # it imports this module

    return None if norm is None else INSTANCE_NORM_EPS


def _empty_map(y: Tensor, pad: int = 0) -> Tensor:
    batch, channels, height, width = y.shape
    shape = (batch, channels, height + 2 * pad, width + 2 * pad)
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)


def _empty_statistics(y: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """Room for mean and 1 / deviation, (B, C) each; of no element without a norm."""
    shape = (0,) if eps is None else y.shape[:2]
    mean = torch.empty(shape, dtype=torch.float32, device=y.device)
    return mean, torch.empty_like(mean)


def _shape(y: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = y.shape
    return batch, height, width, channels


def _workspace(y: Tensor) -> Tensor:
    floats = _cuda_native.extension().residual_block_workspace(_shape(y))
    return torch.empty(floats, dtype=torch.float32, device=y.device)


def _run(
    y: Tensor, residual: Tensor | None, eps: float | None, slope: float | None, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics, then one pass: the result, mean and 1 / deviation."""
    native = _cuda_native.extension()
    y = y.contiguous(memory_format=torch.channels_last)
    out = _empty_map(y, pad)
    mean, rstd = _empty_statistics(y, eps)
    common: dict[str, Any] = {
        "y": address(y),
        "mean": 0 if eps is None else address(mean),
        "rstd": 0 if eps is None else address(rstd),
        "shape": _shape(y),
        "dtype": element(y),
        "stream": _cuda_native.stream(y),
    }
    with _cuda_native.on_device_of(y):
        if eps is not None:
            workspace = _workspace(y)
            native.residual_block_statistics(**common, eps=eps, workspace=address(workspace))
        native.residual_block_forward(
            **common, residual=address(residual), out=address(out), slope=slope, pad=pad
        )
    return out, mean, rstd


@torch.library.custom_op(
    "oldrestore::cuda_norm_act_pad",
    mutates_args=(),
    schema="(Tensor y, Tensor? bias, float? eps, float? slope, int pad)"
    " -> (Tensor, Tensor, Tensor)",
)
def _norm_act_pad(
    y: Tensor, bias: Tensor | None, eps: float | None, slope: float | None, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    del bias  # the norm takes it away again
    return _run(y, None, eps, slope, pad)


@_norm_act_pad.register_fake
def _(
    y: Tensor, bias: Tensor | None, eps: float | None, slope: float | None, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    del bias, slope
    return (_empty_map(y, pad), *_empty_statistics(y, eps))


@torch.library.custom_op(
    "oldrestore::cuda_norm_add",
    mutates_args=(),
    schema="(Tensor y, Tensor? bias, Tensor x, float eps) -> (Tensor, Tensor, Tensor)",
)
def _norm_add(
    y: Tensor, bias: Tensor | None, x: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    del bias
    return _run(y, x.contiguous(memory_format=torch.channels_last), eps, None, 0)


@_norm_add.register_fake
def _(y: Tensor, bias: Tensor | None, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    del bias, x
    return (_empty_map(y), *_empty_statistics(y, eps))


@torch.library.custom_op(
    "oldrestore::cuda_norm_act_pad_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor y, Tensor mean, Tensor rstd, float? slope, int pad) -> Tensor",
)
def _norm_act_pad_backward(
    grad: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, slope: float | None, pad: int
) -> Tensor:
    y = y.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    out = _empty_map(y)
    has_norm = mean.dim() == 2
    workspace = _workspace(y) if has_norm else None
    with _cuda_native.on_device_of(y):
        _cuda_native.extension().residual_block_backward(
            y=address(y),
            mean=address(mean) if has_norm else 0,
            rstd=address(rstd) if has_norm else 0,
            grad=address(grad),
            out=address(out),
            workspace=address(workspace),
            slope=slope,
            pad=pad,
            shape=_shape(y),
            dtype=element(y),
            stream=_cuda_native.stream(y),
        )
    return out


@_norm_act_pad_backward.register_fake
def _(grad: Tensor, y: Tensor, *_: Any) -> Tensor:
    del grad
    return _empty_map(y)


def _save_norm_act_pad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, bias, _, ctx.slope, ctx.pad = inputs
    ctx.save_for_backward(y, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient_of_y(ctx: Any, grad: Tensor, slope: float | None, pad: int) -> tuple[Any, Any]:
    y, bias, mean, rstd = ctx.saved_tensors
    of_y = None
    if ctx.needs_input_grad[0]:
        of_y = _norm_act_pad_backward(grad, y, mean, rstd, slope, pad)
    return of_y, torch.zeros_like(bias) if ctx.needs_input_grad[1] else None


def _backward_norm_act_pad(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return (*_gradient_of_y(ctx, grad, ctx.slope, ctx.pad), None, None, None)


def _save_norm_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, bias, *_ = inputs
    ctx.save_for_backward(y, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward_norm_add(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return (*_gradient_of_y(ctx, grad, None, 0), grad, None)


_norm_act_pad.register_autograd(_backward_norm_act_pad, setup_context=_save_norm_act_pad)
_norm_add.register_autograd(_backward_norm_add, setup_context=_save_norm_add)
