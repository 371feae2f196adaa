"""What a residual block does between its convolutions: normalise, activate, pad, add.

The convolutions stay with the vendor's library, which wants channels_last maps; so every kernel
here reads memory as (B, H, W, C), and a program owns some pixels of one sample and some channels.
Arithmetic is in float32 whatever the map is. The statistics are means and sums of squared
deviations of chunks of pixels, merged as Chan, Golub and LeVeque (1983) do: a mean far larger than
the deviation costs no accuracy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-5  # torch.nn.InstanceNorm2d's default, which the published networks use
TILE = 2048  # elements at once: 16 for each thread of 4 warps
CHANNELS = 128  # at once: whole cache lines in every dtype
CHUNK_PIXELS = 256  # behind one partial sum: enough programs for a map of 64 x 64
CHUNKS = 64  # partial sums merged at once


@triton.jit
def merge(count, mean, square, more, more_mean, more_square):
    """Size, mean and sum of squared deviations of two sets together."""
    both = count + more
    share = more / both
    step = more_mean - mean
    return both, mean + step * share, square + more_square + step * step * (count * share)


@triton.jit
def chunk_statistics_kernel(
    x_ptr, mean_ptr, square_ptr, n_pixels, n_channels, n_chunks,
    CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of a chunk of pixels, for each channel."""
    part = tl.program_id(0)
    sample = (part // n_chunks).to(tl.int64)
    begin = (part % n_chunks) * CHUNK
    end = tl.minimum(begin + CHUNK, n_pixels)
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_column = column < n_channels

    count = 0.0
    mean = tl.zeros((BLOCK_COLS,), tl.float32)
    square = tl.zeros((BLOCK_COLS,), tl.float32)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < end)[:, None] & is_column[None, :]
        place = (sample * n_pixels + row)[:, None] * n_channels + column[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        more = tl.minimum(end - first, BLOCK_ROWS).to(tl.float32)
        tile_mean = tl.sum(x, 0) / more
        step = tl.where(inside, x - tile_mean[None, :], 0.0)
        count, mean, square = merge(count, mean, square, more, tile_mean, tl.sum(step * step, 0))
    place = part.to(tl.int64) * n_channels + column
    tl.store(mean_ptr + place, mean, mask=is_column)
    tl.store(square_ptr + place, square, mask=is_column)


@triton.jit
def merge_statistics_kernel(
    chunk_mean_ptr, chunk_square_ptr, mean_ptr, rstd_ptr, n_pixels, n_channels, n_chunks, eps,
    CHUNK: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of a sample's channels, from those of its chunks."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_column = column < n_channels

    count = 0.0
    mean = tl.zeros((BLOCK_COLS,), tl.float32)
    square = tl.zeros((BLOCK_COLS,), tl.float32)
    for first in range(0, n_chunks, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < n_chunks)[:, None] & is_column[None, :]
        place = (sample * n_chunks + row)[:, None] * n_channels + column[None, :]
        size = tl.minimum(n_pixels - row * CHUNK, CHUNK)
        size = tl.where(row < n_chunks, size, 0).to(tl.float32)
        means = tl.load(chunk_mean_ptr + place, mask=inside, other=0.0)
        squares = tl.load(chunk_square_ptr + place, mask=inside, other=0.0)
        more = tl.sum(size, 0)
        more_mean = tl.sum(means * size[:, None], 0) / more
        step = means - more_mean[None, :]
        more_square = tl.sum(squares + step * step * size[:, None], 0)
        count, mean, square = merge(count, mean, square, more, more_mean, more_square)
    place = sample * n_channels + column
    tl.store(mean_ptr + place, mean, mask=is_column)
    tl.store(rstd_ptr + place, tl.rsqrt(square / n_pixels + eps), mask=is_column)


@triton.jit
def reflected(index, size):
    """An index at most ``size - 1`` outside 0 ... size - 1, mirrored at the border pixels."""
    index = tl.abs(index)
    return tl.where(index < size, index, 2 * (size - 1) - index)


@triton.jit
def normalised(x, mean_ptr, rstd_ptr, place, is_column, IS_NORMED: tl.constexpr):
    """``x`` (rows, channels) in float32, normalised with the statistics at ``place``."""
    x = x.to(tl.float32)
    if IS_NORMED:
        mean = tl.load(mean_ptr + place, mask=is_column, other=0.0)
        rstd = tl.load(rstd_ptr + place, mask=is_column, other=0.0)
        x = (x - mean[None, :]) * rstd[None, :]
    return x


@triton.jit
def norm_act_pad_fwd_kernel(
    x_ptr, mean_ptr, rstd_ptr, out_ptr, height, width, n_channels,
    IS_NORMED: tl.constexpr, SLOPE: tl.constexpr, PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """out = reflect_pad(activation(norm(x))); a program owns pixels of the result."""
    out_width = width + 2 * PAD
    n_pixels = (height + 2 * PAD) * out_width
    n_blocks = tl.cdiv(n_pixels, BLOCK_ROWS)
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    row = (tl.program_id(0) % n_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_column = column < n_channels
    inside = (row < n_pixels)[:, None] & is_column[None, :]
    source = reflected(row // out_width - PAD, height) * width + reflected(
        row % out_width - PAD, width
    )
    place = (sample * height * width + source)[:, None] * n_channels + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    x = normalised(x, mean_ptr, rstd_ptr, sample * n_channels + column, is_column, IS_NORMED)
    if SLOPE is not None:
        x = tl.where(x < 0, x * SLOPE if SLOPE != 0 else 0.0, x)
    place = (sample * n_pixels + row)[:, None] * n_channels + column[None, :]
    tl.store(out_ptr + place, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_add_fwd_kernel(
    y_ptr, mean_ptr, rstd_ptr, x_ptr, out_ptr, n_pixels, n_channels,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """out = x + norm(y)."""
    n_blocks = tl.cdiv(n_pixels, BLOCK_ROWS)
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    row = (tl.program_id(0) % n_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_column = column < n_channels
    inside = (row < n_pixels)[:, None] & is_column[None, :]
    place = (sample * n_pixels + row)[:, None] * n_channels + column[None, :]
    y = tl.load(y_ptr + place, mask=inside, other=0.0)
    y = normalised(y, mean_ptr, rstd_ptr, sample * n_channels + column, is_column, True)
    out = y + tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def folded(
    grad_ptr, sample, row, column, inside, height, width, n_channels,
    PAD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Gradient of pixels ``row`` from that of the padded map: a mirrored pixel adds its image.

    A pixel is its own image and, one pixel from a border, that of the padding beyond the border;
    in a map two or three pixels wide both borders can be that near.
    """
    i, j = row // width, row % width
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for across in tl.static_range(3 if PAD else 1):
        for down in tl.static_range(3 if PAD else 1):
            is_i = (down == 0) | ((down == 1) & (i == 1)) | ((down == 2) & (i == height - 2))
            is_j = (across == 0) | ((across == 1) & (j == 1)) | ((across == 2) & (j == width - 2))
            from_i = i + PAD if down == 0 else (0 if down == 1 else height + 1)
            from_j = j + PAD if across == 0 else (0 if across == 1 else width + 1)
            at = sample * (height + 2 * PAD) * (width + 2 * PAD) + from_i * (width + 2 * PAD)
            place = (at + from_j)[:, None] * n_channels + column[None, :]
            image = tl.load(grad_ptr + place, mask=inside & (is_i & is_j)[:, None], other=0.0)
            total += image.to(tl.float32)
    return total


@triton.jit
def incoming(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, sample, row, column, height, width, n_channels,
    IS_NORMED: tl.constexpr, SLOPE: tl.constexpr, PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """The normalised map at some pixels, and the gradient that arrives there."""
    is_column = column < n_channels
    inside = (row < height * width)[:, None] & is_column[None, :]
    grad = folded(
        grad_ptr, sample, row, column, inside, height, width, n_channels,
        PAD, BLOCK_ROWS, BLOCK_COLS,
    )  # fmt: skip
    place = (sample * height * width + row)[:, None] * n_channels + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    x = normalised(x, mean_ptr, rstd_ptr, sample * n_channels + column, is_column, IS_NORMED)
    if SLOPE is not None:
        grad = tl.where(x > 0, grad, grad * SLOPE)
    return x, grad


@triton.jit
def norm_act_pad_sums_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, sum_ptr, sum_x_ptr, height, width, n_channels, n_chunks,
    CHUNK: tl.constexpr, SLOPE: tl.constexpr, PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of it times the normalised map, over a chunk of pixels."""
    part = tl.program_id(0)
    sample = (part // n_chunks).to(tl.int64)
    begin = (part % n_chunks) * CHUNK
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros((BLOCK_COLS,), tl.float32)
    total_x = tl.zeros((BLOCK_COLS,), tl.float32)
    for first in range(begin, tl.minimum(begin + CHUNK, height * width), BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        x, grad = incoming(
            grad_ptr, x_ptr, mean_ptr, rstd_ptr, sample, row, column, height, width, n_channels,
            True, SLOPE, PAD, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
        total += tl.sum(grad, 0)
        total_x += tl.sum(grad * x, 0)
    place = part.to(tl.int64) * n_channels + column
    tl.store(sum_ptr + place, total, mask=column < n_channels)
    tl.store(sum_x_ptr + place, total_x, mask=column < n_channels)


@triton.jit
def norm_act_pad_bwd_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, sum_ptr, sum_x_ptr, out_ptr, height, width, n_channels,
    IS_NORMED: tl.constexpr, SLOPE: tl.constexpr, PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Gradient of x: with a norm, rstd * (g - mean(g) - norm(x) * mean(g * norm(x)))."""
    n_pixels = height * width
    n_blocks = tl.cdiv(n_pixels, BLOCK_ROWS)
    sample = (tl.program_id(0) // n_blocks).to(tl.int64)
    row = (tl.program_id(0) % n_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    is_column = column < n_channels
    x, grad = incoming(
        grad_ptr, x_ptr, mean_ptr, rstd_ptr, sample, row, column, height, width, n_channels,
        IS_NORMED, SLOPE, PAD, BLOCK_ROWS, BLOCK_COLS,
    )  # fmt: skip
    if IS_NORMED:
        place = sample * n_channels + column
        mean = tl.load(sum_ptr + place, mask=is_column, other=0.0) / n_pixels
        mean_x = tl.load(sum_x_ptr + place, mask=is_column, other=0.0) / n_pixels
        rstd = tl.load(rstd_ptr + place, mask=is_column, other=0.0)
        grad = (grad - mean[None, :] - x * mean_x[None, :]) * rstd[None, :]
    place = (sample * n_pixels + row)[:, None] * n_channels + column[None, :]
    inside = (row < n_pixels)[:, None] & is_column[None, :]
    tl.store(out_ptr + place, grad.to(out_ptr.dtype.element_ty), mask=inside)


def blocks(n_channels: int) -> dict[str, int]:
    """How a map is cut: few channels leave room for more pixels."""
    columns = min(CHANNELS, triton.next_power_of_2(n_channels))
    return {"BLOCK_ROWS": min(TILE // columns, CHUNK_PIXELS), "BLOCK_COLS": columns}


def channel_statistics(x: Tensor) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of every channel of every sample.

    Args:
        x: (B, C, H, W) channels_last, not empty; float32, float16 or bfloat16.

    Returns:
        (2, B, C) float32: the means, and the others.
    """
    batch, n_channels, height, width = x.shape
    n_pixels = height * width
    n_chunks = triton.cdiv(n_pixels, CHUNK_PIXELS)
    cut = blocks(n_channels)
    n_columns = triton.cdiv(n_channels, cut["BLOCK_COLS"])
    chunks = x.new_empty((2, batch, n_chunks, n_channels), dtype=torch.float32)
    statistics = x.new_empty((2, batch, n_channels), dtype=torch.float32)
    chunk_statistics_kernel[(batch * n_chunks, n_columns)](
        x, *chunks, n_pixels, n_channels, n_chunks, CHUNK=CHUNK_PIXELS, **cut
    )
    cut["BLOCK_ROWS"] = min(CHUNKS, triton.next_power_of_2(n_chunks))
    merge_statistics_kernel[(batch, n_columns)](
        *chunks, *statistics, n_pixels, n_channels, n_chunks, EPS, CHUNK=CHUNK_PIXELS, **cut
    )
    return statistics


def norm_act_pad(x: Tensor, statistics: Tensor | None, slope: float | None, pad: int) -> Tensor:
    """reflect_pad(leaky_relu((x - mean) * rstd)), in one pass.

    Args:
        x: (B, C, H, W) channels_last, not empty; H and W at least ``pad + 1``.
        statistics: of `channel_statistics`; None: no norm.
        slope: of the activation below zero; 0 is ReLU; None: no activation.
        pad: pixels at each border, 0 or 1.

    Returns:
        (B, C, H + 2 pad, W + 2 pad) channels_last, dtype of ``x``.
    """
    batch, n_channels, height, width = x.shape
    shape = (batch, n_channels, height + 2 * pad, width + 2 * pad)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    cut = blocks(n_channels)
    n_blocks = triton.cdiv(shape[2] * shape[3], cut["BLOCK_ROWS"])
    norm_act_pad_fwd_kernel[(batch * n_blocks, triton.cdiv(n_channels, cut["BLOCK_COLS"]))](
        x, *((x, x) if statistics is None else statistics), out, height, width, n_channels,
        IS_NORMED=statistics is not None, SLOPE=slope, PAD=pad, **cut,
    )  # fmt: skip
    return out


def norm_act_pad_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor | None,
    slope: float | None,
    pad: int,
) -> Tensor:
    """The gradient of the ``x`` of `norm_act_pad`, channels_last; ``grad`` is that too."""
    batch, n_channels, height, width = x.shape
    out = torch.empty_like(x, memory_format=torch.channels_last)
    cut = blocks(n_channels)
    n_columns = triton.cdiv(n_channels, cut["BLOCK_COLS"])
    mean, rstd = sums = (x, x) if statistics is None else statistics.unbind()
    if statistics is not None:
        n_chunks = triton.cdiv(height * width, CHUNK_PIXELS)
        chunks = x.new_empty((2, batch, n_chunks, n_channels), dtype=torch.float32)
        norm_act_pad_sums_kernel[(batch * n_chunks, n_columns)](
            grad, x, mean, rstd, *chunks, height, width, n_channels, n_chunks,
            CHUNK=CHUNK_PIXELS, SLOPE=slope, PAD=pad, **cut,
        )  # fmt: skip
        sums = chunks.sum(2).unbind()
    n_blocks = triton.cdiv(height * width, cut["BLOCK_ROWS"])
    norm_act_pad_bwd_kernel[(batch * n_blocks, n_columns)](
        grad, x, mean, rstd, *sums, out, height, width, n_channels,
        IS_NORMED=statistics is not None, SLOPE=slope, PAD=pad, **cut,
    )  # fmt: skip
    return out


def norm_add(y: Tensor, statistics: Tensor, x: Tensor) -> Tensor:
    """x + (y - mean) * rstd, in one pass; channels_last in and out. Its gradient: `x` gets that of
    the result, ``y`` what `norm_act_pad_backward` makes of it.
    """
    batch, n_channels, height, width = y.shape
    out = torch.empty_like(y, memory_format=torch.channels_last)
    cut = blocks(n_channels)
    n_blocks = triton.cdiv(height * width, cut["BLOCK_ROWS"])
    norm_add_fwd_kernel[(batch * n_blocks, triton.cdiv(n_channels, cut["BLOCK_COLS"]))](
        y, *statistics, x, out, height * width, n_channels, **cut
    )
    return out
