"""A 3x3 convolution with its normalisation and activation: those that stand outside blocks.

``reference`` is the definition. ``cpp`` is csrc/cpu/conv_norm_act.cpp: Winograd F(4x4, 3x3),
forward and backward, registered as ``oldrestore::conv_norm_act`` with a fake and a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native, _cuda_residual_block, _dispatch, _native, _triton
from oldrestore.ops._dispatch import Backend, Operation
from oldrestore.ops._native import packed_weights
from oldrestore.ops.residual_block import PADDINGS, convolve, normalise

_NO_ACTIVATION = 1.0  # as a slope


def conv_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str | None = "instance",
    padding: str = "reflect",
    slope: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve, normalise, activate.

        out = leaky_relu(norm(conv(pad(x))))

    The convolutions at either end of the latent mapping of Wan et al., CVPR 2020
    (arXiv:2004.09484), and the like.

    Args:
        x: (B, C_in, H, W) floating point, contiguous or channels_last.
        weight: (C_out, C_in, 3, 3), like ``x``.
        bias: (C_out,) or None.
        norm: "instance" (eps 1e-5, no learned scale) or None.
        padding: "reflect" (H and W at least 2) or "zero"; by one pixel.
        slope: of the leaky ReLU, at least 0; 0.0 is ReLU, None no activation.
        backend: "reference", "cpp", "triton", "cuda", or None for the fastest.

    Returns:
        (B, C_out, H, W), dtype of ``x``; channels_last if ``x`` is. An empty batch stays empty.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value, or the backend asked
            for cannot run it.
    """
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    _check(x, weight, bias, norm, padding, slope)
    chosen = OPERATION.choose(backend, x.device, x, weight, bias, norm=norm)
    return chosen.run(x, weight, bias, norm=norm, padding=padding, slope=slope)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str | None,
    padding: str,
    slope: float | None,
) -> None:
    if norm not in (None, "instance"):
        raise ValueError(f'norm: expected "instance" or None, got {norm!r}')
    if padding not in PADDINGS:
        raise ValueError(f'padding: expected "reflect" or "zero", got {padding!r}')
    if slope is not None and not 0.0 <= slope < float("inf"):
        raise ValueError(f"slope: expected at least 0 or None, got {slope!r}")
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: expected floating (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    smallest = 2 if padding == "reflect" else 1
    if x.shape[1] < 1 or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"x: expected C >= 1, H and W >= {smallest} for {padding} padding, got {tuple(x.shape)}"
        )
    if weight.ndim != 4 or len(weight) < 1 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight: expected (C, {x.shape[1]}, 3, 3) to match x, got {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise ValueError(
            f"bias: expected ({len(weight)},) to match weight, got {tuple(bias.shape)}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise ValueError(
                f"{name}: expected {x.dtype} on {x.device} like x, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str | None,
    padding: str,
    slope: float | None,
) -> Tensor:
    out = normalise(convolve(x, weight, bias, padding), norm)
    return out if slope is None else F.leaky_relu(out, slope)


# keep: whether raw and statistics are wanted for the gradient; else, or without norm, they are
# empty
_FORWARD = (
    "(Tensor x, Tensor weight, Tensor? bias, str? norm, str padding, float? slope, bool keep) "
    "-> (Tensor out, Tensor raw, Tensor statistics)"
)


@torch.library.custom_op(
    "oldrestore::conv_norm_act", mutates_args=(), device_types="cpu", schema=_FORWARD
)
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str | None,
    padding: str,
    slope: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().contiguous(memory_format=_native.memory_format(x))
    out, raw, statistics = _outputs(x, weight, norm, keep)
    _native.core().conv_norm_act(
        x.numpy(),
        packed_weights.of(weight),
        None if bias is None else _native.array(bias.contiguous()),
        out.numpy(),
        _native.array(raw),
        _native.array(statistics),
        instance_norm=norm == "instance",
        reflect=padding == "reflect",
        slope=_NO_ACTIVATION if slope is None else slope,
        threads=torch.get_num_threads(),
    )
    return out, raw, statistics


def _outputs(
    x: Tensor, weight: Tensor, norm: str | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out, channels = _native.like(x, len(weight)), len(weight)
    if not keep or norm is None:
        return out, x.new_empty(0), x.new_empty(0)
    statistics = x.new_empty(2, len(x), _native.padded(channels))
    return out, _native.inner_map(x, channels), statistics


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, norm, _, _, keep = arguments
    return _outputs(x, weight, norm, keep)


# wanted: of x, weight, bias; the others come back empty
_BACKWARD = (
    "(Tensor grad, Tensor x, Tensor weight, Tensor out, Tensor raw, Tensor statistics, str? norm, "
    "str padding, float? slope, bool[] wanted) -> (Tensor x, Tensor weight, Tensor bias)"
)


@torch.library.custom_op(
    "oldrestore::conv_norm_act_gradient", mutates_args=(), device_types="cpu", schema=_BACKWARD
)
def _gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    raw: Tensor,
    statistics: Tensor,
    norm: str | None,
    padding: str,
    slope: float | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    memory_format = _native.memory_format(x)
    x = x.detach().contiguous(memory_format=memory_format)
    grads = _gradients(x, weight, wanted)
    if x.numel() == 0:
        for found in grads:
            found.zero_()
        return grads
    _native.core().conv_norm_act_gradient(
        x.numpy(),
        packed_weights.of(weight, is_rotated=True),
        out.numpy(),
        _native.array(raw),
        _native.array(statistics),
        grad.contiguous(memory_format=_native.memory_format(out)).numpy(),
        *map(_native.array, grads),
        instance_norm=norm == "instance",
        reflect=padding == "reflect",
        slope=_NO_ACTIVATION if slope is None else slope,
        threads=torch.get_num_threads(),
    )
    return grads


def _gradients(x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _native.like(x) if wanted[0] else x.new_empty(0),
        weight.new_empty(*weight.shape) if wanted[1] else x.new_empty(0),
        weight.new_empty(len(weight)) if wanted[2] else x.new_empty(0),
    )


@_gradient.register_fake
def _(_: Tensor, x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, weight, arguments[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.norm, ctx.padding, ctx.slope, keep = inputs
    if not keep:
        raise ValueError("keep: expected True where gradients are wanted")
    ctx.save_for_backward(x, weight, *output)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    found = _gradient(grad, *ctx.saved_tensors, ctx.norm, ctx.padding, ctx.slope, wanted)
    grads = [g if needed else None for g, needed in zip(found, wanted, strict=True)]
    return (*grads, None, None, None, None)


_forward.register_autograd(_backward, setup_context=_setup_context)


def _cpp(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str | None,
    padding: str,
    slope: float | None,
) -> Tensor:
    keep = _dispatch.needs_gradient(x, weight, bias)
    out: Tensor = _forward(x, weight, bias, norm, padding, slope, keep)[0]
    return out


OPERATION = Operation(
    "conv_norm_act",
    (
        Backend("triton", _triton.conv_norm_act, _triton.missing, _triton.unsupported),
        Backend(
            "cuda",
            _cuda_residual_block.conv_norm_act,
            _cuda_native.cuda_missing,
            _cuda_native.dtype_unsupported,
        ),
        Backend("cpp", _cpp, _dispatch.native_missing, _native.unsupported, _native.slower),
        Backend("reference", _reference),
    ),
)
