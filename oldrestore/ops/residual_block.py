"""The residual block: the definition, and the native one.

``reference`` is the definition. ``cpp`` is csrc/cpu/residual_block.cpp: both convolutions as
Winograd F(4x4, 3x3), forward and backward, registered as ``oldrestore::residual_block`` with a fake
and a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native, _cuda_residual_block, _dispatch, _native, _triton
from oldrestore.ops._dispatch import Backend, Operation
from oldrestore.ops._native import packed_weights

INSTANCE_NORM_EPS = 1e-5  # torch.nn.InstanceNorm2d's default, which the published networks use
PADDINGS = ("reflect", "zero")


def residual_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    norm: str | None = "instance",
    padding: str = "reflect",
    backend: str | None = None,
) -> Tensor:
    """Add to ``x`` what two 3x3 convolutions make of it.

        out = x + norm(conv2(pad(relu(norm(conv1(pad(x)))))))

    The residual block of Johnson et al., ECCV 2016 (arXiv:1603.08155), as the latent mapping and
    the VAEs of Wan et al., CVPR 2020 (arXiv:2004.09484) use it.

    Args:
        x: (B, C, H, W) floating point, contiguous or channels_last.
        weight1: (C, C, 3, 3), like ``x``.
        bias1: (C,) or None.
        weight2: (C, C, 3, 3).
        bias2: (C,) or None.
        norm: "instance" (eps 1e-5, no learned scale) or None.
        padding: "reflect" (H and W at least 2) or "zero".
        backend: "reference", "cpp", "triton", "cuda", or None for the fastest.

    Returns:
        (B, C, H, W), dtype of ``x``; channels_last if ``x`` is. An empty batch stays empty.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value, or the backend asked
            for cannot run it.
    """
    x, weight1, bias1, weight2, bias2 = _dispatch.autocast(x, weight1, bias1, weight2, bias2)
    _check(x, weight1, bias1, weight2, bias2, norm, padding)
    chosen = OPERATION.choose(backend, x.device, x, weight1, bias1, weight2, bias2, norm=norm)
    return chosen.run(x, weight1, bias1, weight2, bias2, norm=norm, padding=padding)


def _check(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm: str | None,
    padding: str,
) -> None:
    if norm not in (None, "instance"):
        raise ValueError(f'norm: expected "instance" or None, got {norm!r}')
    if padding not in PADDINGS:
        raise ValueError(f'padding: expected "reflect" or "zero", got {padding!r}')
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: expected floating (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    channels = x.shape[1]
    smallest = 2 if padding == "reflect" else 1
    if channels < 1 or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"x: expected C >= 1, H and W >= {smallest} for {padding} padding, got {tuple(x.shape)}"
        )
    shapes = {
        "weight1": (weight1, (channels, channels, 3, 3)),
        "bias1": (bias1, (channels,)),
        "weight2": (weight2, (channels, channels, 3, 3)),
        "bias2": (bias2, (channels,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {shape} to match x, got {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{name}: expected {x.dtype} on {x.device} like x, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    norm: str | None,
    padding: str,
) -> Tensor:
    inner = torch.relu(normalise(convolve(x, weight1, bias1, padding), norm))
    return x + normalise(convolve(inner, weight2, bias2, padding), norm)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    """The 3x3 convolution of a map padded by one pixel; a part of the references."""
    if padding == "zero":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def normalise(x: Tensor, norm: str | None) -> Tensor:
    """Instance norm without a learned scale, or none; a part of the references."""
    if norm is None or x.numel() == 0:
        return x
    if x.shape[2] * x.shape[3] == 1:  # which torch refuses
        return x - x
    return F.instance_norm(x, eps=INSTANCE_NORM_EPS)


# keep: whether inner, outer and norms are wanted for the gradient; else they are empty
_FORWARD = (
    "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, str? norm, "
    "str padding, bool keep) -> (Tensor out, Tensor inner, Tensor outer, Tensor norms)"
)


@torch.library.custom_op(
    "oldrestore::residual_block", mutates_args=(), device_types="cpu", schema=_FORWARD
)
def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm: str | None,
    padding: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.detach().contiguous(memory_format=_native.memory_format(x))
    out, inner, outer, norms = _outputs(x, norm, keep)
    _native.core().residual_block(
        x.numpy(),
        packed_weights.of(weight1),
        None if bias1 is None else _native.array(bias1.contiguous()),
        packed_weights.of(weight2),
        None if bias2 is None else _native.array(bias2.contiguous()),
        out.numpy(),
        _native.array(inner),
        _native.array(outer),
        _native.array(norms),
        instance_norm=norm == "instance",
        reflect=padding == "reflect",
        threads=torch.get_num_threads(),
    )
    return out, inner, outer, norms


def _outputs(x: Tensor, norm: str | None, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    inner = _native.inner_map(x, channels) if keep else x.new_empty(0)
    if not keep or norm is None:
        return _native.like(x), inner, x.new_empty(0), x.new_empty(0)
    norms = x.new_empty(4, len(x), _native.padded(channels))
    return _native.like(x), inner, torch.empty_like(inner), norms


@_forward.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, norm, _, keep = arguments
    return _outputs(x, norm, keep)


# wanted: of x, weight1, bias1, weight2, bias2; the others come back empty
_BACKWARD = (
    "(Tensor grad, Tensor x, Tensor weight1, Tensor weight2, Tensor inner, Tensor outer, "
    "Tensor norms, str? norm, str padding, bool[] wanted) "
    "-> (Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2)"
)


@torch.library.custom_op(
    "oldrestore::residual_block_gradient", mutates_args=(), device_types="cpu", schema=_BACKWARD
)
def _gradient(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    inner: Tensor,
    outer: Tensor,
    norms: Tensor,
    norm: str | None,
    padding: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    memory_format = _native.memory_format(x)
    x = x.detach().contiguous(memory_format=memory_format)
    grads = _gradients(x, weight1, weight2, wanted)
    if x.numel() == 0:
        for found in grads:
            found.zero_()
        return grads
    _native.core().residual_block_gradient(
        x.numpy(),
        packed_weights.of(weight1, is_rotated=True),
        packed_weights.of(weight2, is_rotated=True),
        inner.numpy(),
        _native.array(outer),
        _native.array(norms),
        grad.contiguous(memory_format=memory_format).numpy(),
        *map(_native.array, grads),
        instance_norm=norm == "instance",
        reflect=padding == "reflect",
        threads=torch.get_num_threads(),
    )
    return grads


def _gradients(
    x: Tensor, weight1: Tensor, weight2: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def place(i: int, like: Tensor, *shape: int) -> Tensor:
        return like.new_empty(*shape) if wanted[i] else like.new_empty(0)

    channels = x.shape[1]
    return (
        _native.like(x) if wanted[0] else x.new_empty(0),
        place(1, weight1, *weight1.shape),
        place(2, weight1, channels),
        place(3, weight2, *weight2.shape),
        place(4, weight2, channels),
    )


@_gradient.register_fake
def _(
    _: Tensor, x: Tensor, weight1: Tensor, weight2: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients(x, weight1, weight2, arguments[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight1, _, weight2, _, ctx.norm, ctx.padding, keep = inputs
    if not keep:
        raise ValueError("keep: expected True where gradients are wanted")
    ctx.save_for_backward(x, weight1, weight2, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    found = _gradient(grad, *ctx.saved_tensors, ctx.norm, ctx.padding, wanted)
    grads = [g if needed else None for g, needed in zip(found, wanted, strict=True)]
    return (*grads, None, None, None)


_forward.register_autograd(_backward, setup_context=_setup_context)


def _cpp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    norm: str | None,
    padding: str,
) -> Tensor:
    keep = _dispatch.needs_gradient(x, weight1, bias1, weight2, bias2)
    out: Tensor = _forward(x, weight1, bias1, weight2, bias2, norm, padding, keep)[0]
    return out


OPERATION = Operation(
    "residual_block",
    (
        Backend("triton", _triton.residual_block, _triton.missing, _triton.unsupported),
        Backend(
            "cuda",
            _cuda_residual_block.residual_block,
            _cuda_native.cuda_missing,
            _cuda_native.dtype_unsupported,
        ),
        Backend("cpp", _cpp, _dispatch.native_missing, _native.unsupported, _native.slower),
        Backend("reference", _reference),
    ),
)
