"""The HR variant's attention: damaged patches are replaced by the most similar intact patch.

``reference`` is the definition. ``chunked`` compares the damaged patches alone, a chunk of keys at
a time; its search is registered as ``oldrestore::patch_attention_source`` with a fake. ``triton``
and ``cuda`` search on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native, _cuda_patch_attention, _dispatch, _triton
from oldrestore.ops._dispatch import Backend, Operation

DAMAGED_ABOVE = 0.6  # mean of a patch's mask; the published code's threshold
NORM_EPS = 1e-12  # least norm that a patch is divided by; torch.nn.functional.normalize's default

# Each of the search's three blocks (queries, keys, their similarities) stays below this. Measured
# on one core with 512 channels and patches of 2 and 8: 16 and 32 MiB are the fastest, 4 MiB takes
# half as long again, 256 MiB a third.
SEARCH_BLOCK_BYTES = 32 * 2**20


def patch_attention(
    x: Tensor, mask: Tensor, patch_size: int, *, backend: str | None = None
) -> Tensor:
    """Replace each damaged patch by the most similar intact patch of the same sample.

        out[i] = x[argmax_j cos(x[i], x[j])]    over intact j, if patch i is damaged
        out[i] = x[i]                           if it is intact

    ``Patch_Attention`` in the HR variant of the code released with Wan et al., CVPR 2020
    (arXiv:2004.09484), where the map's sides had to be multiples of the patch size, or the rest
    became zero. Here the map is extended by replicating its last row and column. A patch that
    reaches over the border is compared with its extension and is never copied from.

    A patch is damaged where the mean of its mask exceeds 0.6. Similarities are computed in
    float32 or wider; the first of equally similar patches is taken.

    Args:
        x: (B, C, H, W) floating point.
        mask: (B, 1, H, W) floating point in [0, 1]; 1 is damaged. It gets no gradient.
        patch_size: side of a patch, in cells.
        backend: "reference", "chunked", "triton", "cuda", or None for the fastest.

    Returns:
        (B, C, H, W), dtype of ``x``. A sample without an intact whole patch is returned as it is.
        The gradient of a copied patch goes to its source, none through the choice.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or value, or the backend asked
            for is unknown.
    """
    _check(x, mask, patch_size)
    _dispatch.check_fractions("mask", mask)
    chosen = OPERATION.choose(backend, x.device, x, mask, patch_size)
    return chosen.run(x, mask.detach(), patch_size)


def _check(x: Tensor, mask: Tensor, patch_size: int) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: expected floating (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x: expected C, H and W >= 1, got {tuple(x.shape)}")
    expected = (x.shape[0], 1, *x.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask: expected {expected} to match x, got {tuple(mask.shape)}")
    if not mask.is_floating_point() or mask.device != x.device:
        raise ValueError(
            f"mask: expected floating point on {x.device} like x, got {mask.dtype} on {mask.device}"
        )
    if patch_size < 1:
        raise ValueError(f"patch_size: expected at least 1, got {patch_size}")


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _extend(x: Tensor, patch_size: int) -> Tensor:
    """Replicate the last row and column until both sides are multiples of ``patch_size``."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % patch_size, 0, -height % patch_size), mode="replicate")


def judge_patches(mask: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Which patches are queries, and which are keys: two (B, rows, columns) of bool."""
    height, width = mask.shape[2:]
    is_damaged = F.avg_pool2d(_extend(_widen(mask), patch_size), patch_size)[:, 0] > DAMAGED_ABOVE
    is_key = ~is_damaged
    is_key[:, height // patch_size :] = False
    is_key[:, :, width // patch_size :] = False
    return is_damaged & is_key.flatten(1).any(dim=1)[:, None, None], is_key


def _reference(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    height, width = x.shape[2:]
    is_query, is_key = judge_patches(mask, patch_size)
    batch, rows, columns = is_key.shape
    tiles = (batch, x.shape[1], rows, patch_size, columns, patch_size)
    blocks = _extend(x, patch_size).reshape(tiles).permute(0, 2, 4, 1, 3, 5)
    patches = blocks.flatten(3).flatten(1, 2)  # (B, N, C * p * p)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(_widen(patches), dim=2, eps=NORM_EPS)
        similarity = unit @ unit.transpose(1, 2)  # (B, N, N)
        best = similarity.masked_fill(~is_key.flatten(1)[:, None], -math.inf).argmax(dim=2)
        own = torch.arange(rows * columns, device=x.device)
        source = torch.where(is_query.flatten(1), best, own)  # (B, N)
    copied = patches.gather(1, source[:, :, None].expand_as(patches))
    whole = copied.reshape(blocks.shape).permute(0, 3, 1, 4, 2, 5)
    return whole.flatten(4).flatten(2, 3)[:, :, :height, :width].contiguous()


def _chunked(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    return _copy_patches(x, _find_sources(x.detach(), mask, patch_size), patch_size)


def _searched_by(search: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The operation around one kernel that searches and asks the host for nothing."""

    def run(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
        is_query, is_key = judge_patches(mask, patch_size)
        batch, rows, columns = is_key.shape
        tiles = (batch, x.shape[1], rows, patch_size, columns, patch_size)
        blocks = _extend(x.detach(), patch_size).reshape(tiles).permute(0, 2, 4, 3, 5, 1)
        patches = blocks.flatten(3).flatten(1, 2)  # (B, N, p * p * C)
        source = search(patches, is_query.flatten(1), is_key.flatten(1))
        return _copy_patches(x, source.view(is_key.shape), patch_size)

    return run


def _copy_patches(x: Tensor, source: Tensor, patch_size: int) -> Tensor:
    """Fill every patch from its ``source``, (B, rows, columns) of indices into the grid."""
    height, width = x.shape[2:]
    y = torch.arange(height, device=x.device)[:, None]
    x_ = torch.arange(width, device=x.device)[None]
    patch = source[:, y // patch_size, x_ // patch_size]  # (B, H, W)
    from_y = patch // source.shape[2] * patch_size + y % patch_size
    from_x = patch % source.shape[2] * patch_size + x_ % patch_size
    cell = (from_y * width + from_x).flatten(1)[:, None]  # (B, 1, H * W)
    return x.flatten(2).gather(2, cell.expand(-1, x.shape[1], -1)).view(x.shape)


@torch.library.custom_op("oldrestore::patch_attention_source", mutates_args=())
def _find_sources(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """For each patch the index of the patch that it becomes, (B, rows, columns) int64."""
    is_query, is_key = judge_patches(mask, patch_size)
    batch, rows, columns = is_key.shape
    source = torch.arange(rows * columns, device=x.device).repeat(batch, 1)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for sample in range(batch):
            queries = is_query[sample].flatten().nonzero()[:, 0]  # (n,)
            for start in range(0, len(queries), chunk_patches(x, patch_size)):
                some = queries[start : start + chunk_patches(x, patch_size)]
                vectors = extract_patches(x[sample], some, columns, patch_size)
                keys = key_chunks(x[sample], is_key[sample], patch_size)
                columns_of_keys = x.shape[3] // patch_size
                found = closest_patches(vectors, keys)
                source[sample, some] = to_grid(found, columns_of_keys, columns)
    return source.view(batch, rows, columns)


@_find_sources.register_fake
def _(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    del mask  # torch passes it, and the shape does not depend on it
    batch, _, height, width = x.shape
    shape = (batch, -(-height // patch_size), -(-width // patch_size))
    return torch.empty(shape, dtype=torch.int64, device=x.device)


def chunk_patches(x: Tensor, patch_size: int) -> int:
    """How many queries, or keys, are compared at once."""
    floats = SEARCH_BLOCK_BYTES // _widen(x[:0]).element_size()
    return max(1, min(floats // (x.shape[1] * patch_size**2), math.isqrt(floats)))


def extract_patches(x: Tensor, patches: Tensor, columns: int, patch_size: int) -> Tensor:
    """The named patches of the map (C, H, W), extended over its border: (n, p * p * C)."""
    within = torch.arange(patch_size, device=x.device)
    y = (patches // columns * patch_size)[:, None] + within
    x_ = (patches % columns * patch_size)[:, None] + within
    y, x_ = y.clamp(max=x.shape[1] - 1), x_.clamp(max=x.shape[2] - 1)
    return _widen(x[:, y[:, :, None], x_[:, None]].permute(1, 2, 3, 0).flatten(1))


def closest_patches(queries: Tensor, chunks: Iterable[tuple[int, Tensor, Tensor]]) -> Tensor:
    """The most similar intact patch for each of the queries (n, p * p * C), of ``key_chunks``."""
    units = F.normalize(queries, dim=1, eps=NORM_EPS)
    best = units.new_full((len(units),), -math.inf)
    closest = torch.zeros_like(best, dtype=torch.int64)
    for first, keys, is_intact in chunks:
        norms = torch.linalg.vector_norm(keys, dim=1).clamp(min=NORM_EPS)
        similarity = (units @ keys.T).div_(norms).masked_fill_(~is_intact, -math.inf)
        value, position = similarity.max(dim=1)  # the first of equals, as is > below
        is_better = value > best
        best = torch.where(is_better, value, best)
        closest = torch.where(is_better, first + position, closest)
    return closest


def to_grid(patches: Tensor, whole_columns: int, columns: int) -> Tensor:
    """From indices into the whole patches to those into the grid, which has those of the border."""
    return patches // whole_columns * columns + patches % whole_columns


def key_chunks(x: Tensor, is_key: Tensor, patch_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Whole patches, some rows of the grid at a time: first index, (n, p * p * C), is intact.

    A chunk has one row of patches at least, however large that is.
    """
    rows, columns = x.shape[1] // patch_size, x.shape[2] // patch_size
    blocks = x.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    blocks = blocks.permute(1, 2, 3, 4, 0)  # (rows, columns, p, p, C), a view of whole patches
    is_key = is_key[:rows, :columns]
    step = max(1, chunk_patches(x[None], patch_size) // columns)
    for row in range(0, rows, step):
        is_intact = is_key[row : row + step].flatten()
        if bool(is_intact.any()):
            band = blocks[row : row + step]
            yield row * columns, _widen(band.flatten(2).flatten(0, 1)), is_intact


OPERATION = Operation(
    "patch_attention",
    (
        Backend(
            "triton",
            _searched_by(_triton.search_patches),
            _triton.missing,
            _triton.unsupported_patches,
        ),
        Backend(
            "cuda",
            _searched_by(_cuda_patch_attention.search_patches),
            _cuda_native.cuda_missing,
            _cuda_native.dtype_unsupported,
        ),
        Backend("chunked", _chunked),
        Backend("reference", _reference),
    ),
)
