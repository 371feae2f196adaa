"""Attention from (all | damaged) positions to undamaged ones, without a matrix of N x N.

The undamaged keys are listed on the device (`compaction`), and every kernel runs over that list.
Forward keeps a running softmax (Milakov and Gimelshein, arXiv:1805.02867) and saves its
log-sum-exp; backward recomputes the weights from it (Dao et al., arXiv:2205.14135), in one kernel
that owns rows of queries and one that owns rows of keys, so that no two programs add to one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from oldrestore.kernels.architecture import architecture
from oldrestore.kernels.compaction import compact

DOT_LEAST = 16  # the smallest side that a tensor core takes
PRECISION = "tf32x3"  # of float32 products: three tensor-core products, with the error of float32
DELTA_ROWS = 16
DELTA_COLUMNS = 128


@triton.jit
def load_rows(ptr, row, is_row, n_columns, first, BLOCK: tl.constexpr):
    """(len(row), BLOCK): columns ``first`` and on of some rows; zero outside."""
    column = first + tl.arange(0, BLOCK)
    inside = is_row[:, None] & (column < n_columns)[None, :]
    return tl.load(ptr + row[:, None] * n_columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(ptr, row, is_row, n_columns, first, block, BLOCK: tl.constexpr):
    """Write what `load_rows` would read, in the dtype of ``ptr``."""
    column = first + tl.arange(0, BLOCK)
    inside = is_row[:, None] & (column < n_columns)[None, :]
    place = ptr + row[:, None] * n_columns + column[None, :]
    tl.store(place, block.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def listed_rows(index_ptr, count_ptr, sample, place, n_rows, IS_LISTED: tl.constexpr):
    """Rows of the flattened (B * n_rows) matrix at ``place`` of a sample's list, and which exist.

    Without a list every row is there.
    """
    if IS_LISTED:
        is_row = place < tl.load(count_ptr + sample)
        local = tl.load(index_ptr + sample * n_rows + place, mask=is_row, other=0)
    else:
        is_row = place < n_rows
        local = place
    return sample * n_rows + local.to(tl.int64), is_row


@triton.jit
def listed_count(count_ptr, sample, n_rows, IS_LISTED: tl.constexpr):
    """How many rows `listed_rows` knows."""
    if IS_LISTED:
        count = tl.load(count_ptr + sample)
    else:
        count = n_rows
    return count


@triton.jit
def products(
    a_ptr, a_row, is_a, b_ptr, b_row, is_b, n_columns, BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_A, BLOCK_B): dot products of some rows of a with some rows of b."""
    acc = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for first in range(0, n_columns, BLOCK_INNER):
        a = load_rows(a_ptr, a_row, is_a, n_columns, first, BLOCK_INNER)
        b = load_rows(b_ptr, b_row, is_b, n_columns, first, BLOCK_INNER)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def partial_nonlocal_fwd_kernel(
    query_ptr, key_ptr, value_ptr, bias_ptr, key_index_ptr, key_count_ptr, query_index_ptr,
    query_count_ptr, out_ptr, lse_ptr, n_queries, n_keys, depth, depth_value,
    IS_LISTED: tl.constexpr, PRECISION: tl.constexpr, IS_WHOLE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_INNER: tl.constexpr, BLOCK_SLICE: tl.constexpr,
):  # fmt: skip
    """One program a tile of queries and a slice of the values' columns."""
    n_tiles = tl.cdiv(n_queries, BLOCK_QUERIES)
    sample = (tl.program_id(0) // n_tiles).to(tl.int64)
    place = (tl.program_id(0) % n_tiles) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    first = tl.program_id(1) * BLOCK_SLICE
    row, is_row = listed_rows(query_index_ptr, query_count_ptr, sample, place, n_queries, IS_LISTED)
    if IS_WHOLE:
        query = load_rows(query_ptr, row, is_row, depth, 0, BLOCK_INNER)
    n_active = listed_count(query_count_ptr, sample, n_queries, IS_LISTED)
    has_row = (tl.program_id(0) % n_tiles) * BLOCK_QUERIES < n_active
    count = tl.where(has_row, tl.load(key_count_ptr + sample), 0)

    top = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    acc = tl.zeros((BLOCK_QUERIES, BLOCK_SLICE), tl.float32)
    for start in range(0, count, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        at, is_key = listed_rows(key_index_ptr, key_count_ptr, sample, slot, n_keys, True)
        bias = tl.load(bias_ptr + at, mask=is_key, other=float("-inf"))
        if IS_WHOLE:
            key = load_rows(key_ptr, at, is_key, depth, 0, BLOCK_INNER)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        else:
            score = products(
                query_ptr, row, is_row, key_ptr, at, is_key, depth,
                BLOCK_QUERIES, BLOCK_KEYS, BLOCK_INNER, PRECISION,
            )  # fmt: skip
        score += bias[None, :]
        new_top = tl.maximum(top, tl.max(score, 1))
        shrink = tl.exp(top - new_top)
        weight = tl.exp(score - new_top[:, None])
        total = total * shrink + tl.sum(weight, 1)
        value = load_rows(value_ptr, at, is_key, depth_value, first, BLOCK_SLICE)
        acc = acc * shrink[:, None]
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        top = new_top

    total = tl.where(total == 0, 1.0, total)  # 0: no key at all, and zeros then
    out = acc / total[:, None]
    store_rows(out_ptr, row, is_row, depth_value, first, out, BLOCK_SLICE)
    tl.store(lse_ptr + row, top + tl.log(total), mask=is_row & (first == 0))


@triton.jit
def partial_nonlocal_delta_kernel(
    out_ptr, grad_ptr, delta_ptr, n_rows, depth_value, BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """delta[i] = sum_e out[i, e] * grad[i, e]: what softmax's gradient subtracts."""
    place = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = place < n_rows
    row = place.to(tl.int64)
    delta = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, depth_value, BLOCK):
        out = load_rows(out_ptr, row, is_row, depth_value, first, BLOCK).to(tl.float32)
        grad = load_rows(grad_ptr, row, is_row, depth_value, first, BLOCK).to(tl.float32)
        delta += tl.sum(out * grad, 1)
    tl.store(delta_ptr + row, delta, mask=is_row)


@triton.jit
def partial_nonlocal_bwd_query_kernel(
    query_ptr, key_ptr, value_ptr, bias_ptr, key_index_ptr, key_count_ptr, query_index_ptr,
    query_count_ptr, grad_ptr, lse_ptr, delta_ptr, grad_query_ptr, n_queries, n_keys, depth,
    depth_value, IS_LISTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_INNER: tl.constexpr, BLOCK_SLICE: tl.constexpr,
):  # fmt: skip
    """One program a tile of queries and a slice of the columns of their gradient."""
    n_tiles = tl.cdiv(n_queries, BLOCK_QUERIES)
    sample = (tl.program_id(0) // n_tiles).to(tl.int64)
    place = (tl.program_id(0) % n_tiles) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    first = tl.program_id(1) * BLOCK_SLICE
    row, is_row = listed_rows(query_index_ptr, query_count_ptr, sample, place, n_queries, IS_LISTED)
    n_active = listed_count(query_count_ptr, sample, n_queries, IS_LISTED)
    has_row = (tl.program_id(0) % n_tiles) * BLOCK_QUERIES < n_active
    count = tl.where(has_row, tl.load(key_count_ptr + sample), 0)
    lse = tl.load(lse_ptr + row, mask=is_row, other=float("inf"))
    delta = tl.load(delta_ptr + row, mask=is_row, other=0.0)

    acc = tl.zeros((BLOCK_QUERIES, BLOCK_SLICE), tl.float32)
    for start in range(0, count, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        at, is_key = listed_rows(key_index_ptr, key_count_ptr, sample, slot, n_keys, True)
        bias = tl.load(bias_ptr + at, mask=is_key, other=float("-inf"))
        score = products(
            query_ptr, row, is_row, key_ptr, at, is_key, depth,
            BLOCK_QUERIES, BLOCK_KEYS, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        weight = tl.exp(score + bias[None, :] - lse[:, None])
        grad_weight = products(
            grad_ptr, row, is_row, value_ptr, at, is_key, depth_value,
            BLOCK_QUERIES, BLOCK_KEYS, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        key = load_rows(key_ptr, at, is_key, depth, first, BLOCK_SLICE)
        grad_score = (weight * (grad_weight - delta[:, None])).to(key.dtype)
        acc = tl.dot(grad_score, key, acc, input_precision=PRECISION)
    store_rows(grad_query_ptr, row, is_row, depth, first, acc, BLOCK_SLICE)


@triton.jit
def partial_nonlocal_bwd_key_kernel(
    query_ptr, key_ptr, value_ptr, bias_ptr, key_index_ptr, key_count_ptr, query_index_ptr,
    query_count_ptr, grad_ptr, lse_ptr, delta_ptr, grad_key_ptr, grad_value_ptr, n_queries,
    n_keys, depth, depth_value, IS_LISTED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_INNER: tl.constexpr,
    BLOCK_SLICE: tl.constexpr,
):  # fmt: skip
    """One program a tile of listed keys and a slice of the columns of both their gradients."""
    n_tiles = tl.cdiv(n_keys, BLOCK_KEYS)
    sample = (tl.program_id(0) // n_tiles).to(tl.int64)
    slot = (tl.program_id(0) % n_tiles) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    first = tl.program_id(1) * BLOCK_SLICE
    at, is_key = listed_rows(key_index_ptr, key_count_ptr, sample, slot, n_keys, True)
    bias = tl.load(bias_ptr + at, mask=is_key, other=float("-inf"))
    has_key = (tl.program_id(0) % n_tiles) * BLOCK_KEYS < tl.load(key_count_ptr + sample)
    n_active = listed_count(query_count_ptr, sample, n_queries, IS_LISTED)

    acc_key = tl.zeros((BLOCK_KEYS, BLOCK_SLICE), tl.float32)
    acc_value = tl.zeros((BLOCK_KEYS, BLOCK_SLICE), tl.float32)
    for start in range(0, tl.where(has_key, n_active, 0), BLOCK_QUERIES):
        place = start + tl.arange(0, BLOCK_QUERIES)
        row, is_row = listed_rows(
            query_index_ptr, query_count_ptr, sample, place, n_queries, IS_LISTED
        )
        lse = tl.load(lse_ptr + row, mask=is_row, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=is_row, other=0.0)
        score = products(
            key_ptr, at, is_key, query_ptr, row, is_row, depth,
            BLOCK_KEYS, BLOCK_QUERIES, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        weight = tl.exp(score + bias[:, None] - lse[None, :])
        grad = load_rows(grad_ptr, row, is_row, depth_value, first, BLOCK_SLICE)
        acc_value = tl.dot(weight.to(grad.dtype), grad, acc_value, input_precision=PRECISION)
        grad_weight = products(
            value_ptr, at, is_key, grad_ptr, row, is_row, depth_value,
            BLOCK_KEYS, BLOCK_QUERIES, BLOCK_INNER, PRECISION,
        )  # fmt: skip
        query = load_rows(query_ptr, row, is_row, depth, first, BLOCK_SLICE)
        grad_score = (weight * (grad_weight - delta[None, :])).to(query.dtype)
        acc_key = tl.dot(grad_score, query, acc_key, input_precision=PRECISION)
    store_rows(grad_key_ptr, at, is_key, depth, first, acc_key, BLOCK_SLICE)
    store_rows(grad_value_ptr, at, is_key, depth_value, first, acc_value, BLOCK_SLICE)


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work.

    queries, keys: rows at once; inner: columns of a dot product at once; columns: width of the
    slice of the result that a program owns; warps, stages: as Triton has them.
    """

    queries: int
    keys: int
    inner: int
    columns: int
    warps: int = 8
    stages: int = 2

    def fitted(self, depth: int, depth_result: int) -> dict[str, int]:
        """The kernel's constants, not wider than the operands."""
        return {
            "BLOCK_QUERIES": self.queries,
            "BLOCK_KEYS": self.keys,
            "BLOCK_INNER": min(self.inner, _width(depth)),
            "BLOCK_SLICE": min(self.columns, _width(depth_result)),
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# By architecture and bytes of an element: forward, gradient of the queries, of keys and values. The
# widest that compile without a spill at depth 512 (tests/kernels/resources.json).
TILES: dict[tuple[int, int], tuple[Tile, Tile, Tile]] = {
    (80, 2): (Tile(64, 32, 512, 256), Tile(64, 32, 64, 256), Tile(64, 64, 64, 128)),
    (90, 2): (Tile(64, 32, 512, 256), Tile(64, 64, 64, 256), Tile(64, 64, 64, 128)),
    (100, 2): (Tile(64, 32, 512, 256), Tile(64, 64, 64, 128), Tile(64, 64, 64, 128)),
    # one stage: two do not fit in the 99 KiB of shared memory
    (120, 2): (Tile(64, 32, 512, 256, stages=1), Tile(64, 32, 64, 128), Tile(32, 64, 32, 128)),
    (80, 4): (Tile(64, 32, 32, 128), Tile(64, 32, 32, 128), Tile(32, 32, 16, 64)),
    (90, 4): (Tile(64, 32, 32, 128), Tile(64, 32, 32, 64), Tile(32, 64, 32, 32)),
    (100, 4): (Tile(64, 32, 64, 128), Tile(64, 32, 32, 128), Tile(64, 64, 32, 64)),
    (120, 4): (Tile(64, 32, 32, 128), Tile(64, 32, 32, 128), Tile(32, 32, 32, 64)),
}


def _width(n_columns: int) -> int:
    return max(DOT_LEAST, int(triton.next_power_of_2(n_columns)))


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str
) -> tuple[Tensor, Tensor]:
    """The attention, and the log-sum-exp of each query's scores.

    Args:
        query: (B, M, D), D at most 512; float32, float16 or bfloat16.
        key: (B, N, D).
        value: (B, N, E), E at most 512.
        mask: (B, N) in [0, 1]; 1 is damaged: no key.
        queries: "all" or "damaged" (the others' rows are zeros).

    Returns:
        (B, M, E), dtype of ``value``; and (B, M) float32, zero where nothing was asked.
    """
    batch, n_queries, depth = query.shape
    n_keys, depth_value = value.shape[1:]
    is_listed = queries == "damaged"
    make = torch.zeros if is_listed else torch.empty
    out = make((batch, n_queries, depth_value), dtype=value.dtype, device=value.device)
    lse = make((batch, n_queries), dtype=torch.float32, device=value.device)
    tile = _tiles(query)[0]
    sizes = tile.fitted(depth, depth_value)
    grid = (
        batch * triton.cdiv(n_queries, tile.queries),
        triton.cdiv(depth_value, sizes["BLOCK_SLICE"]),
    )
    partial_nonlocal_fwd_kernel[grid](
        *(t.contiguous() for t in (query, key, value)), *_lists(mask, is_listed),
        out, lse, n_queries, n_keys, depth, depth_value,
        IS_LISTED=is_listed, PRECISION=PRECISION, IS_WHOLE=sizes["BLOCK_INNER"] >= depth, **sizes,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from what `forward` took and gave."""
    batch, n_queries, depth = query.shape
    n_keys, depth_value = value.shape[1:]
    is_listed = queries == "damaged"
    query, key, value, grad = (t.contiguous() for t in (query, key, value, grad))
    grad_query = torch.zeros_like(query) if is_listed else torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    delta = torch.empty_like(lse)
    n_rows = batch * n_queries
    partial_nonlocal_delta_kernel[(triton.cdiv(n_rows, DELTA_ROWS),)](
        out, grad, delta, n_rows, depth_value,
        BLOCK_ROWS=DELTA_ROWS, BLOCK=min(DELTA_COLUMNS, _width(depth_value)),
    )  # fmt: skip
    _, tile_query, tile_key = _tiles(query)
    lists = _lists(mask, is_listed)
    common = (query, key, value, *lists, grad, lse, delta)
    counts = (n_queries, n_keys, depth, depth_value)
    sizes = tile_query.fitted(max(depth, depth_value), depth)
    n_tiles = batch * triton.cdiv(n_queries, tile_query.queries)
    partial_nonlocal_bwd_query_kernel[(n_tiles, triton.cdiv(depth, sizes["BLOCK_SLICE"]))](
        *common, grad_query, *counts, IS_LISTED=is_listed, PRECISION=PRECISION, **sizes
    )
    widest = max(depth, depth_value)
    sizes = tile_key.fitted(widest, widest)
    n_tiles = batch * triton.cdiv(n_keys, tile_key.keys)
    partial_nonlocal_bwd_key_kernel[(n_tiles, triton.cdiv(widest, sizes["BLOCK_SLICE"]))](
        *common, grad_key, grad_value, *counts,
        IS_LISTED=is_listed, PRECISION=PRECISION, **sizes,
    )  # fmt: skip
    return grad_query, grad_key, grad_value


def _tiles(operand: Tensor) -> tuple[Tile, Tile, Tile]:
    return TILES[architecture(operand.device), operand.element_size()]


def _lists(mask: Tensor, is_listed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The keys' bias (B, N) float32; the list of keys and its count; the same of the queries."""
    mask = mask.contiguous()
    bias = torch.log1p(-mask.float())
    key_index, key_count = compact(mask < 1)
    query_index, query_count = compact(mask > 0) if is_listed else (key_index, key_count)
    return bias, key_index, key_count, query_index, query_count
