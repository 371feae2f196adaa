"""The Triton backends: the kernels of ``oldrestore.kernels`` as torch operators.

Each kernel is registered under ``oldrestore::`` with a fake and a gradient; the functions without
a leading underscore are what the operations list as their backend. Triton itself is imported at
the first call.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OLDEST_CAPABILITY = 8  # compute capability: bfloat16, and kernels that were compiled for it
MAX_DEPTH = 512  # of queries, keys and values: a program holds a whole query
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_ABSENT = next(
    (name for name in ("triton", "oldrestore.kernels") if importlib.util.find_spec(name) is None),
    None,
)


def missing(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on ``device``."""
    if device.type != "cuda":
        return f"runs on CUDA only, not on {device.type}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if _ABSENT is not None:
        return f"{_ABSENT} is not installed"
    major = torch.cuda.get_device_properties(device).major
    if major < OLDEST_CAPABILITY:
        return f"needs compute capability {OLDEST_CAPABILITY}.0 or newer, not {major}"
    return None


def unsupported(*operands: Any, **_: Any) -> str | None:
    """Why the kernels cannot take these arguments; what is no tensor does not matter."""
    for tensor in operands:
        if not isinstance(tensor, Tensor):
            continue
        if tensor.dtype not in DTYPES:
            return f"takes float32, float16 and bfloat16, not {tensor.dtype}"
        if tensor.numel() == 0:
            return "an operand is empty"
    return None


def unsupported_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> str | None:
    """Why `partial_nonlocal` cannot take these arguments."""
    widest = max(query.shape[-1], value.shape[-1])
    if widest > MAX_DEPTH:
        return f"takes depths to {MAX_DEPTH}, not {widest}"
    return unsupported(query, key, value, mask)


def unsupported_patches(x: Tensor, *_: Any) -> str | None:
    """Why `patch_attention` cannot take these arguments; its mask may be of any precision."""
    return unsupported(x)


def _kernels(name: str) -> Any:
    return importlib.import_module(f"oldrestore.kernels.{name}")


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]  # torch's


def partial_nonlocal(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str
) -> Tensor:
    """See `oldrestore.ops.partial_nonlocal`."""
    out: Tensor = _attend(query, key, value, mask, queries)[0]
    return out


def bounded_partial_nonlocal(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str, least_mass: float
) -> Tensor:
    """See `oldrestore.ops.partial_nonlocal`; the bound gets no gradient.

    The sum over the lost keys comes from the same kernel with the mask turned round, over the
    narrowest values there are.
    """
    out, kept = _attend(query, key, value, mask, queries)
    _, lost = _attend(query, key, value.narrow(2, 0, 1).contiguous(), 1 - mask, "all")
    excess = kept - torch.logaddexp(kept, lost) - math.log(least_mass)
    share = excess.clamp(max=0).exp().nan_to_num(0.0)  # NaN: no key at all
    bounded: Tensor = out * share.unsqueeze(2).to(out.dtype)
    return bounded


@torch.library.custom_op("oldrestore::triton_partial_nonlocal", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str
) -> tuple[Tensor, Tensor]:
    """The attention, and the log-sum-exp of each query's scores."""
    with _on(query):
        out, lse = _kernels("partial_nonlocal").forward(query, key, value, mask, queries)
    return out, lse


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str
) -> tuple[Tensor, Tensor]:
    del key, mask, queries  # torch passes them, and the shapes do not depend on them
    batch, n_queries, _ = query.shape
    out = value.new_empty((batch, n_queries, value.shape[2]))
    return out, query.new_empty((batch, n_queries), dtype=torch.float32)


@torch.library.custom_op("oldrestore::triton_partial_nonlocal_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with _on(query):
        grad_query, grad_key, grad_value = _kernels("partial_nonlocal").backward(
            grad, query, key, value, mask, out, lse, queries
        )
    return grad_query, grad_key, grad_value


@_attend_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_attend(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *operands, ctx.queries = inputs
    ctx.save_for_backward(*operands, *output)


def _differentiate_attend(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    del grad_lse  # nothing is made of it
    return (*_attend_backward(grad, *ctx.saved_tensors, ctx.queries), None, None)


_attend.register_autograd(_differentiate_attend, setup_context=_setup_attend)


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
    """See `oldrestore.ops.residual_block`; the convolutions are torch's, on channels_last maps."""
    is_normed, pad = norm == "instance", int(padding == "reflect")
    padded = _norm_act_pad(x, None, False, None, 1)[0] if pad else x
    inner = _convolve(padded, weight1, None if is_normed else bias1, padding)
    inner = _norm_act_pad(inner, bias1 if is_normed else None, is_normed, 0.0, pad)[0]
    inner = _convolve(inner, weight2, None if is_normed else bias2, padding)
    out: Tensor = _norm_add(inner, bias2, x)[0] if is_normed else x + inner
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
    """See `oldrestore.ops.conv_norm_act`; the convolution is torch's, on a channels_last map."""
    is_normed = norm == "instance"
    padded = _norm_act_pad(x, None, False, None, 1)[0] if padding == "reflect" else x
    out = _convolve(padded, weight, None if is_normed else bias, padding)
    if is_normed or slope is not None:
        out = _norm_act_pad(out, bias if is_normed else None, is_normed, slope, 0)[0]
    return _laid_out_as(x, out)


def instance_norm_act(x: Tensor, *, slope: float | None) -> Tensor:
    """See `oldrestore.ops.instance_norm_act`."""
    return _laid_out_as(x, _norm_act_pad(x, None, True, slope, 0)[0])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, padding=int(padding == "zero"))


def _laid_out_as(x: Tensor, out: Tensor) -> Tensor:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _empty_last(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@torch.library.custom_op("oldrestore::triton_norm_act_pad", mutates_args=())
def _norm_act_pad(
    x: Tensor, bias: Tensor | None, is_normed: bool, slope: float | None, pad: int
) -> tuple[Tensor, Tensor]:
    """reflect_pad(leaky_relu(instance_norm(x))), and (2, B, C) statistics, or (0,) without norm.

    ``bias`` is that of the convolution before: the norm takes it out again, so that it does
    nothing but get a gradient of zeros.
    """
    del bias
    fused = _kernels("residual_block")
    x = x.contiguous(memory_format=torch.channels_last)
    with _on(x):
        statistics = fused.channel_statistics(x) if is_normed else None
        out = fused.norm_act_pad(x, statistics, slope, pad)
    return out, x.new_empty(0, dtype=torch.float32) if statistics is None else statistics


@_norm_act_pad.register_fake
def _(
    x: Tensor, bias: Tensor | None, is_normed: bool, slope: float | None, pad: int
) -> tuple[Tensor, Tensor]:
    del bias, slope
    batch, channels, height, width = x.shape
    out = _empty_last((batch, channels, height + 2 * pad, width + 2 * pad), x)
    return out, x.new_empty((2, batch, channels) if is_normed else (0,), dtype=torch.float32)


@torch.library.custom_op("oldrestore::triton_norm_act_pad_backward", mutates_args=())
def _norm_act_pad_backward(
    grad: Tensor, x: Tensor, statistics: Tensor, slope: float | None, pad: int
) -> Tensor:
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    known = statistics if statistics.numel() else None
    with _on(x):
        out: Tensor = _kernels("residual_block").norm_act_pad_backward(grad, x, known, slope, pad)
    return out


@_norm_act_pad_backward.register_fake
def _(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    del grad
    return _empty_last(x.shape, x)


def _setup_norm_act_pad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, bias, _, ctx.slope, ctx.pad = inputs
    ctx.save_for_backward(x, bias, output[1])


def _differentiate_norm_act_pad(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, statistics = ctx.saved_tensors
    grad_x = _norm_act_pad_backward(grad, x, statistics, ctx.slope, ctx.pad)
    return grad_x, None if bias is None else torch.zeros_like(bias), None, None, None


_norm_act_pad.register_autograd(_differentiate_norm_act_pad, setup_context=_setup_norm_act_pad)


@torch.library.custom_op("oldrestore::triton_norm_add", mutates_args=())
def _norm_add(y: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """x + instance_norm(y), and the norm's statistics; ``bias`` as in `_norm_act_pad`."""
    del bias
    fused = _kernels("residual_block")
    y, x = (t.contiguous(memory_format=torch.channels_last) for t in (y, x))
    with _on(y):
        statistics = fused.channel_statistics(y)
        out = fused.norm_add(y, statistics, x)
    return out, statistics


@_norm_add.register_fake
def _(y: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    del bias, x
    return _empty_last(y.shape, y), y.new_empty((2, *y.shape[:2]), dtype=torch.float32)


def _setup_norm_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])


def _differentiate_norm_add(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    y, bias, statistics = ctx.saved_tensors
    grad_y = _norm_act_pad_backward(grad, y, statistics, None, 0)
    return grad_y, None if bias is None else torch.zeros_like(bias), grad


_norm_add.register_autograd(_differentiate_norm_add, setup_context=_setup_norm_add)


@torch.library.custom_op("oldrestore::triton_patch_search", mutates_args=())
def search_patches(patches: Tensor, is_query: Tensor, is_key: Tensor) -> Tensor:
    """The most similar key of every query by cosine, the first of equally similar ones.

    Args:
        patches: (B, N, F), not empty.
        is_query: (B, N) bool.
        is_key: (B, N) bool.

    Returns:
        (B, N) int64; a patch that is no query, or has no key, names itself. No gradient.
    """
    with _on(patches):
        found: Tensor = _kernels("patch_attention").search(patches, is_query, is_key)
    return found


@search_patches.register_fake
def _(patches: Tensor, is_query: Tensor, is_key: Tensor) -> Tensor:
    del patches, is_key
    return torch.empty(is_query.shape, dtype=torch.int64, device=is_query.device)
