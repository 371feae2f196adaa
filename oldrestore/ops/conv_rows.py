"""A 3x3 convolution of some rows of a map, as its convolution as a whole gives them.

For maps that are made from the top down, in bands (``oldrestore.tiling``). ``reference`` is the
definition. ``cpp`` is the Winograd convolution of csrc/cpu; a band that starts at a multiple of
`BAND_ROWS` has the bits of the whole map's. Inference only: neither has a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _dispatch, _native
from oldrestore.ops._dispatch import Backend, Operation
from oldrestore.ops._native import packed_weights
from oldrestore.ops.residual_block import PADDINGS

BAND_ROWS = 4  # csrc/cpu/winograd.hpp, kTile: rows that are made together
_NO_ACTIVATION = 1.0  # as a slope


def conv_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: str = "zero",
    slope: float | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve a band of rows whose neighbours are known, activate, add.

        out = leaky_relu(conv(pad(x))) + residual

    Args:
        x: (B, C_in, H + 2, W) floating point: H rows, the one above them and the one below.
        weight: (C_out, C_in, 3, 3), like ``x``.
        bias: (C_out,) or None.
        padding: of the columns, "zero" or "reflect"; rows are not padded.
        slope: of the leaky ReLU, at least 0; 0.0 is ReLU, None no activation.
        residual: (B, C_out, H, W), contiguous, or None.
        backend: "reference", "cpp", or None for the fastest.

    Returns:
        (B, C_out, H, W), dtype of ``x``.

    Raises:
        ValueError: an argument has the wrong shape or value, or the backend asked for cannot run
            it.
    """
    if padding not in PADDINGS:
        raise ValueError(f'padding: expected "reflect" or "zero", got {padding!r}')
    if x.ndim != 4 or x.shape[2] < 3 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        shapes = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ValueError(
            f"x, weight: expected (B, C, 3 rows or more, W), (C', C, 3, 3), got {shapes}"
        )
    chosen = OPERATION.choose(backend, x.device, x, weight, bias, norm=None)
    return chosen.run(x, weight, bias, padding=padding, slope=slope, residual=residual)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: str,
    slope: float | None,
    residual: Tensor | None,
) -> Tensor:
    mode = "constant" if padding == "zero" else padding
    out = F.conv2d(F.pad(x, (1, 1, 0, 0), mode=mode), weight, bias)
    out = out if slope is None else F.leaky_relu(out, slope)
    return out if residual is None else out + residual


def _cpp(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: str,
    slope: float | None,
    residual: Tensor | None,
) -> Tensor:
    x = x.contiguous()
    out = _native.like(x.narrow(2, 1, x.shape[2] - 2), len(weight))
    _native.core().conv_rows(
        x.numpy(),
        packed_weights.of(weight),
        None if bias is None else _native.array(bias.contiguous()),
        None if residual is None else residual.contiguous().numpy(),
        out.numpy(),
        reflect=padding == "reflect",
        slope=_NO_ACTIVATION if slope is None else slope,
        threads=torch.get_num_threads(),
    )
    return out


def _unsupported(x: Tensor, *others: Tensor | None, **__: object) -> str | None:
    if _dispatch.needs_gradient(x, *others):
        return "has no gradient"
    return _native.unsupported(x)


OPERATION = Operation(
    "conv_rows",
    (
        Backend("cpp", _cpp, _dispatch.native_missing, _unsupported, _native.slower),
        Backend("reference", _reference),
    ),
)
