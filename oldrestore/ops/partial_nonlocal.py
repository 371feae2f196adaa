"""The partial nonlocal block's attention: damaged places look at undamaged ones.

``reference`` is the definition; ``sdpa`` is torch's fused attention under a key bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _dispatch
from oldrestore.ops._dispatch import Backend, Operation


def partial_nonlocal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    queries: str = "all",
    backend: str | None = None,
) -> Tensor:
    """Attend from the queries to the undamaged keys only.

        out[i] = sum_j a[i, j] * value[j]
        a[i, j] = (1 - mask[j]) * exp(query[i] . key[j]) / (the same, summed over j)

    The partial nonlocal block of Wan et al., CVPR 2020 (arXiv:2004.09484), section 3.3. The dot
    product is not scaled.

    Args:
        query: (B, M, D) floating point.
        key: (B, N, D), like ``query``.
        value: (B, N, E); E may differ from D.
        mask: (B, N) in [0, 1], of the keys; 1 is damaged. It gets no gradient.
        queries: "all", or "damaged": positions with mask 0 give zeros; needs M == N.
        backend: "reference", "sdpa", or None for the fastest.

    Returns:
        (B, M, E), dtype of ``value``. A sample with no undamaged key gives zeros.

    Raises:
        ValueError: shapes, dtypes, devices or ``queries`` disagree, or the backend asked for
            cannot run them.
    """
    query, key, value, mask = _dispatch.autocast(query, key, value, mask)
    _check(query, key, value, mask, queries)
    chosen = OPERATION.choose(backend, query.device, query, key, value, mask)
    return chosen.run(query, key, value, mask.detach(), queries=queries)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str) -> None:
    if queries not in ("all", "damaged"):
        raise ValueError(f'queries: expected "all" or "damaged", got {queries!r}')
    if query.ndim != 3 or not query.is_floating_point():
        raise ValueError(f"query: expected floating (B, M, D), got {query.dtype} {_shape(query)}")
    batch, n_queries, depth = query.shape
    if key.ndim != 3 or key.shape[0] != batch or key.shape[2] != depth:
        raise ValueError(f"key: expected ({batch}, N, {depth}) to match query, got {_shape(key)}")
    n_keys = key.shape[1]
    if value.ndim != 3 or value.shape[:2] != (batch, n_keys):
        raise ValueError(f"value: expected ({batch}, {n_keys}, E), got {_shape(value)}")
    if tuple(mask.shape) != (batch, n_keys):
        raise ValueError(f"mask: expected ({batch}, {n_keys}) to match key, got {_shape(mask)}")
    if queries == "damaged" and n_queries != n_keys:
        raise ValueError(
            f'queries: "damaged" needs as many queries as keys, got {n_queries} and {n_keys}'
        )
    for name, tensor in (("key", key), ("value", value), ("mask", mask)):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name}: expected {query.dtype} on {query.device} like query, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str) -> Tensor:
    logits = query @ key.transpose(1, 2) + torch.log1p(-mask)[:, None, :]  # (B, M, N)
    blind = _blind(mask)
    # filled before softmax too: over -inf alone both its value and its gradient are NaN
    weights = logits.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    return _keep(weights @ value, mask, queries)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str) -> Tensor:
    blind = _blind(mask)
    bias = torch.log1p(-mask)[:, None, :].masked_fill(blind, 0.0)  # (B, 1, N)
    bias = bias.expand(-1, query.shape[1], -1)[:, None]  # (B, 1, M, N), no copy
    out = F.scaled_dot_product_attention(
        query[:, None], key[:, None], value[:, None], attn_mask=bias, scale=1.0
    )
    return _keep(out[:, 0].masked_fill(blind, 0.0), mask, queries)


def _blind(mask: Tensor) -> Tensor:
    """(B, 1, 1): which samples have no undamaged key at all."""
    return (mask == 1).all(dim=1)[:, None, None]


def _keep(out: Tensor, mask: Tensor, queries: str) -> Tensor:
    return out if queries == "all" else out.masked_fill((mask == 0)[:, :, None], 0.0)


def _sdpa_unsupported(*operands: Tensor) -> str | None:
    if any(t.numel() == 0 for t in operands):
        return "an operand is empty"
    return None


OPERATION = Operation(
    "partial_nonlocal",
    (
        Backend("sdpa", _sdpa, unsupported=_sdpa_unsupported),
        Backend("reference", _reference),
    ),
)
