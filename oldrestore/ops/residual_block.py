"""The residual block: the definition, and the native forward behind it.

``reference`` is the definition. ``cpp`` is csrc/cpu/residual_block.cpp: both convolutions as
Winograd F(4x4, 3x3), registered as ``oldrestore::residual_block`` with a fake and a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from oldrestore.ops import _dispatch
from oldrestore.ops._dispatch import Backend, Operation

INSTANCE_NORM_EPS = 1e-5  # torch.nn.InstanceNorm2d's default, which the published networks use
_PADDING_MODES = {"reflect": "reflect", "zero": "constant"}


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
        backend: "reference", "cpp", or None for the fastest.

    Returns:
        (B, C, H, W), dtype of ``x``; channels_last if ``x`` is. An empty batch stays empty.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value, or the backend asked
            for cannot run it.
    """
    x, weight1, bias1, weight2, bias2 = _dispatch.autocast(x, weight1, bias1, weight2, bias2)
    _check(x, weight1, bias1, weight2, bias2, norm, padding)
    chosen = OPERATION.choose(backend, x.device, x, weight1, bias1, weight2, bias2)
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
    if padding not in _PADDING_MODES:
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
    inner = torch.relu(_normalise(_convolve(x, weight1, bias1, padding), norm))
    return x + _normalise(_convolve(inner, weight2, bias2, padding), norm)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    if padding == "zero":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def _normalise(x: Tensor, norm: str | None) -> Tensor:
    # written out: F.instance_norm refuses a map of one pixel, and an empty batch
    if norm is None or x.numel() == 0:
        return x
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + INSTANCE_NORM_EPS)


class _PackedWeights:
    """Transformed weights, kept while the weights live.

    What is kept is compared with the weights bit for bit at every use (1 % of the operation's time
    or less), so that no way of changing them in place can leave it stale.
    """

    def __init__(self) -> None:
        self._by_weight = WeakTensorKeyDictionary()

    def of(self, weight: Tensor) -> Any:
        array = weight.detach().contiguous().numpy()
        packed: Any = self._by_weight.get(weight)  # type: ignore[no-untyped-call]  # torch's
        if packed is None or not packed.matches(array):
            packed = _native().PackedWeights(array)
            self._by_weight[weight] = packed
        return packed

    def __len__(self) -> int:
        return len(self._by_weight)


_packed_weights = _PackedWeights()


def _native() -> Any:
    assert _dispatch.NATIVE is not None, "dispatch let cpp through without the extension"
    return _dispatch.NATIVE


def _memory_format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


_ARGUMENTS = (
    "Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, str? norm, str padding"
)


@torch.library.custom_op(
    "oldrestore::residual_block",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_ARGUMENTS}) -> Tensor",
)
def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm: str | None,
    padding: str,
) -> Tensor:
    x = x.detach().contiguous(memory_format=_memory_format(x))
    out = _empty_like(x)
    _native().residual_block(
        x.numpy(),
        _packed_weights.of(weight1),
        None if bias1 is None else bias1.detach().contiguous().numpy(),
        _packed_weights.of(weight2),
        None if bias2 is None else bias2.detach().contiguous().numpy(),
        out.numpy(),
        instance_norm=norm == "instance",
        reflect=padding == "reflect",
        threads=torch.get_num_threads(),
    )
    return out


@_forward.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output  # not needed, but torch passes it by this name
    *tensors, ctx.norm, ctx.padding = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recompute the reference and differentiate that."""
    with torch.enable_grad():
        tensors = [
            None if t is None else t.detach().requires_grad_(needed)
            for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        out = _reference(*tensors, norm=ctx.norm, padding=ctx.padding)  # type: ignore[arg-type]
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad))
    grads = [next(found) if t is not None and t.requires_grad else None for t in tensors]
    return (*grads, None, None)


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
    out: Tensor = _forward(x, weight1, bias1, weight2, bias2, norm, padding)
    return out


def _cpp_unsupported(x: Tensor, *_: Tensor | None) -> str | None:
    return None if x.dtype == torch.float32 else f"takes float32, not {x.dtype}"


def _cpp_slower(*tensors: Tensor | None) -> str | None:
    if _dispatch.needs_gradient(*tensors):
        return "gradients are needed, and its backward recomputes the reference"
    return None


OPERATION = Operation(
    "residual_block",
    (
        Backend("cpp", _cpp, _dispatch.native_missing, _cpp_unsupported, _cpp_slower),
        Backend("reference", _reference),
    ),
)
