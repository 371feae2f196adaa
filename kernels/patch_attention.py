"""Which intact patch resembles each damaged one most: the search of patch attention.

Damaged patches and intact ones are listed on the device (`compaction`); a program owns a tile of
damaged patches, walks all intact ones and keeps the best so far, so that no matrix of N x N exists.
Copying the patches is left to torch, whose gather has the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from oldrestore.kernels.architecture import architecture
from oldrestore.kernels.compaction import compact

# Of float32 products, on tensor cores with the error of float32: a near tie is decided by it.
PRECISION = "tf32x3"
NORM_EPS = 1e-12  # least norm that a patch is divided by; torch.nn.functional.normalize's default
SPLITS = 16  # parts of the keys: damaged patches alone are too few to fill a GPU
LAST = tl.constexpr(2**31 - 1)  # later than any patch


@triton.jit
def patch_attention_kernel(
    patch_ptr, scale_ptr, query_index_ptr, query_count_ptr, key_index_ptr, key_count_ptr,
    top_ptr, best_ptr, n_patches, depth, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """The most similar key of a tile of listed queries, of a part of the listed keys."""
    n_tiles = tl.cdiv(n_patches, BLOCK_QUERIES)
    sample = (tl.program_id(0) // n_tiles).to(tl.int64)
    begin = (tl.program_id(0) % n_tiles) * BLOCK_QUERIES
    split = tl.program_id(1)
    n_queries = tl.load(query_count_ptr + sample)
    n_keys = tl.load(key_count_ptr + sample)
    place = begin + tl.arange(0, BLOCK_QUERIES)
    is_query = place < n_queries
    origin = sample * n_patches
    query = tl.load(query_index_ptr + origin + place, mask=is_query, other=0)
    query_row = (origin + query)[:, None] * depth
    share = tl.cdiv(tl.cdiv(n_keys, SPLITS), BLOCK_KEYS) * BLOCK_KEYS
    end = tl.minimum((split + 1) * share, n_keys)

    top = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
    best = query  # where there is no key the patch keeps itself
    for start in range(split * share, tl.where(begin < n_queries, end, 0), BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS)
        is_key = slot < end
        key = tl.load(key_index_ptr + origin + slot, mask=is_key, other=0)
        key_row = (origin + key)[:, None] * depth
        score = tl.zeros((BLOCK_QUERIES, BLOCK_KEYS), tl.float32)
        for first in range(0, depth, BLOCK_INNER):
            column = (first + tl.arange(0, BLOCK_INNER))[None, :]
            inside = column < depth
            a = tl.load(patch_ptr + query_row + column, mask=is_query[:, None] & inside, other=0.0)
            b = tl.load(patch_ptr + key_row + column, mask=is_key[:, None] & inside, other=0.0)
            score = tl.dot(a, tl.trans(b), score, input_precision=PRECISION)
        scale = tl.load(scale_ptr + origin + key, mask=is_key, other=0.0)
        score = tl.where(is_key[None, :], score * scale[None, :], float("-inf"))
        tile_top = tl.max(score, 1)
        tile_best = tl.min(tl.where(score == tile_top[:, None], key[None, :], LAST), 1)
        better = tile_top > top  # not >=: keys come in order, and the first one wins
        best = tl.where(better, tile_best, best)
        top = tl.where(better, tile_top, top)
    tl.store(top_ptr + (origin + query) * SPLITS + split, top, mask=is_query)
    tl.store(best_ptr + (origin + query) * SPLITS + split, best.to(tl.int64), mask=is_query)


@dataclass(frozen=True)
class Tile:
    """queries, keys: patches at once; inner: features at once; warps, stages: as Triton's."""

    queries: int
    keys: int
    inner: int
    warps: int = 8
    stages: int = 2

    @property
    def constants(self) -> dict[str, int | str]:
        """What the kernel is compiled for."""
        return {
            "PRECISION": PRECISION,
            "BLOCK_QUERIES": self.queries,
            "BLOCK_KEYS": self.keys,
            "BLOCK_INNER": self.inner,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# By architecture and bytes of an element: the widest that compile without a spill.
TILES: dict[tuple[int, int], Tile] = {
    (80, 2): Tile(128, 64, 64),
    (90, 2): Tile(128, 64, 64),
    (100, 2): Tile(128, 64, 64),
    (120, 2): Tile(128, 64, 64),
    (80, 4): Tile(64, 32, 32),
    (90, 4): Tile(128, 64, 32),
    (100, 4): Tile(128, 64, 32),
    (120, 4): Tile(64, 32, 32),
}


def search(patches: Tensor, is_query: Tensor, is_key: Tensor) -> Tensor:
    """The most similar key of every query, by cosine; the first of equally similar ones.

    A query's own length changes no comparison, so keys alone are normalised.

    Args:
        patches: (B, N, F) float32, float16 or bfloat16, N < 2**31.
        is_query: (B, N) bool.
        is_key: (B, N) bool.

    Returns:
        (B, N) int64: patch numbers; a patch that is no query, or has no key, names itself.
    """
    batch, n_patches, depth = patches.shape
    patches = patches.contiguous()
    norm = torch.linalg.vector_norm(patches, dim=2, dtype=torch.float32)
    scale = norm.clamp(min=NORM_EPS).reciprocal()
    parts = (batch, n_patches, SPLITS)
    top = torch.full(parts, float("-inf"), dtype=torch.float32, device=patches.device)
    best = torch.arange(n_patches, device=patches.device)[:, None].repeat(batch, 1, SPLITS)
    tile = TILES[architecture(patches.device), patches.element_size()]
    patch_attention_kernel[(batch * triton.cdiv(n_patches, tile.queries), SPLITS)](
        patches, scale, *compact(is_query), *compact(is_key), top, best, n_patches, depth,
        SPLITS=SPLITS, **tile.constants,
    )  # fmt: skip
    # of equal parts the first, which has the earlier keys
    return best.gather(2, top.argmax(dim=2, keepdim=True))[:, :, 0]
