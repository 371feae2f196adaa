"""MobileNetV2's block: 1x1 to many channels, a 3x3 filter of each, 1x1 to few.

``reference`` is the definition. ``cpp`` is csrc/cpu/bottleneck.cpp: the many channels, six times
those of the map, exist for three rows of a strip of it at a time. What it gives a cell depends
neither on the number of threads nor on the rows given, so that bands have the bits of the whole.
It has no gradient: the layers that are run so were trained elsewhere and stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _dispatch, _native
from oldrestore.ops._dispatch import Backend, Operation

_STRIDES = (1, 2)


def bottleneck(
    x: Tensor,
    widen: Tensor | None,
    widen_bias: Tensor | None,
    filters: Tensor,
    filter_bias: Tensor | None,
    narrow: Tensor,
    narrow_bias: Tensor | None,
    *,
    stride: int = 1,
    is_residual: bool = False,
    above: int = 0,
    below: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Widen, filter each channel, narrow, add.

        out = narrow(relu6(filter(relu6(widen(x))))) + x

    The inverted residual with a linear bottleneck of Sandler et al., MobileNetV2, CVPR 2018, its
    batch norms folded into weights and biases. Filters see zeros around the map.

    Args:
        x: (B, C_in, H, W) floating point; of a band of rows, with its neighbours.
        widen, widen_bias: (C, C_in, 1, 1) and (C,); None: ``x`` itself is filtered, C is C_in.
        filters, filter_bias: (C, 1, 3, 3) and (C,).
        narrow, narrow_bias: (C_out, C, 1, 1) and (C_out,). Any bias may be None.
        stride: of the filters, 1 or 2.
        is_residual: add ``x``, where stride is 1 and C_out is C_in.
        above, below: 0 or 1 rows of ``x`` at its ends that are only there to be looked at.
        backend: "reference", "cpp", or None for the fastest.

    Returns:
        (B, C_out, H', W'), dtype of ``x``: its sides, without ``above`` and ``below``, over the
        stride, rounded up.

    Raises:
        ValueError: an argument has the wrong shape or value, or the backend asked for cannot run
            it.
    """
    if x.ndim != 4 or x.shape[2] <= above + below:
        raise ValueError(f"x: expected (B, C, H, W) with rows to give, got {tuple(x.shape)}")
    if stride not in _STRIDES or above not in (0, 1) or below not in (0, 1):
        raise ValueError(
            f"stride, above, below: expected 1 or 2, 0 or 1, 0 or 1, got {stride}, {above}, {below}"
        )
    width, channels_in = len(filters), x.shape[1]
    matrices = [(narrow, width, "narrow: (C', C, 1, 1)")]
    if widen is not None:
        matrices.append((widen, channels_in, "widen: (C, C_in, 1, 1)"))
    for matrix, depth, expected in matrices:
        if tuple(matrix.shape) != (len(matrix), depth, 1, 1):
            raise ValueError(f"{expected} expected, got {tuple(matrix.shape)}")
    if tuple(filters.shape[1:]) != (1, 3, 3) or width != (
        channels_in if widen is None else len(widen)
    ):
        raise ValueError(f"filters: (C, 1, 3, 3) expected, got {tuple(filters.shape)}")
    biases = ((widen_bias, width), (filter_bias, width), (narrow_bias, len(narrow)))
    for name, (bias, count) in zip(
        ("widen_bias", "filter_bias", "narrow_bias"), biases, strict=True
    ):
        if bias is not None and tuple(bias.shape) != (count,):
            raise ValueError(f"{name}: ({count},) expected, got {tuple(bias.shape)}")
    if is_residual and (stride != 1 or len(narrow) != channels_in):
        raise ValueError("is_residual: expected stride 1 and as many channels as x has")
    parameters = (widen, widen_bias, filters, filter_bias, narrow, narrow_bias)
    rows = x.shape[2] - above - below
    chosen = OPERATION.choose(backend, x.device, x, *parameters, stride=stride, rows=rows)
    return chosen.run(
        x, *parameters, stride=stride, is_residual=is_residual, above=above, below=below
    )


def _reference(
    x: Tensor,
    widen: Tensor | None,
    widen_bias: Tensor | None,
    filters: Tensor,
    filter_bias: Tensor | None,
    narrow: Tensor,
    narrow_bias: Tensor | None,
    *,
    stride: int,
    is_residual: bool,
    above: int,
    below: int,
) -> Tensor:
    wide = x if widen is None else F.relu6(F.conv2d(x, widen, widen_bias))
    wide = F.pad(wide, (1, 1, 1 - above, 1 - below))
    filtered = F.relu6(F.conv2d(wide, filters, filter_bias, stride, groups=len(filters)))
    out = F.conv2d(filtered, narrow, narrow_bias)
    return out + x.narrow(2, above, out.shape[2]) if is_residual else out


def _cpp(
    x: Tensor,
    widen: Tensor | None,
    widen_bias: Tensor | None,
    filters: Tensor,
    filter_bias: Tensor | None,
    narrow: Tensor,
    narrow_bias: Tensor | None,
    *,
    stride: int,
    is_residual: bool,
    above: int,
    below: int,
) -> Tensor:
    batch, _, height, width = x.shape
    if _native.memory_format(x) == torch.contiguous_format:
        x = x.contiguous()
    shape = (batch, len(narrow), (height - above - below) // stride, width // stride)
    out = _native.empty(x, shape)
    matrices = [None if w is None else w.flatten(1) for w in (widen, narrow)]
    operands = (matrices[0], widen_bias, filters.flatten(1, 2), filter_bias, matrices[1])
    _native.core().bottleneck(
        x.numpy(),
        *(None if w is None else _native.array(w.contiguous()) for w in (*operands, narrow_bias)),
        out.numpy(),
        stride=stride,
        above=above,
        below=below,
        residual=is_residual,
        threads=torch.get_num_threads(),
    )
    return out


def _unsupported(x: Tensor, *parameters: Tensor | None, stride: int, rows: int) -> str | None:
    if _dispatch.needs_gradient(x, *parameters):
        return "has no gradient"
    if torch.compiler.is_compiling():
        return "is not known to the compiler"
    if rows % stride or x.shape[3] % stride:
        return f"takes sides that are multiples of the stride, {stride}"
    return _native.unsupported(x)


OPERATION = Operation(
    "bottleneck",
    (
        Backend("cpp", _cpp, _dispatch.native_missing, _unsupported),
        Backend("reference", _reference),
    ),
)
