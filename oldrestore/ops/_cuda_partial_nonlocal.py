"""The partial nonlocal block's attention on CUDA devices: csrc/cuda/partial_nonlocal.cuh.

Undamaged keys are listed on the device, without waiting for it, and no matrix of all pairs exists.
Registered as ``oldrestore::cuda_partial_nonlocal`` with a fake and a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oldrestore.ops import _cuda_native
from oldrestore.ops._cuda_native import address, element


def partial_nonlocal(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str
) -> Tensor:
    """`oldrestore.ops.partial_nonlocal` on checked arguments in float32 or half precision."""
    out: Tensor = _forward(query, key, value, mask, queries)[0]
    return out


def _shape(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int, int]:
    batch, n_queries, depth = query.shape
    return batch, n_queries, key.shape[1], depth, value.shape[2]


class _Lists:
    """Which queries and keys take part; keeps the memory that the extension is told of."""

    def __init__(self, mask: Tensor, queries: str) -> None:
        batch, n = mask.shape
        mask = mask.contiguous()
        native = _cuda_native.extension()
        common = {
            "mask": address(mask),
            "batch": batch,
            "n": n,
            "dtype": element(mask),
            "stream": _cuda_native.stream(mask),
        }
        indices = torch.empty((2, batch, n), dtype=torch.int32, device=mask.device)
        counts = torch.empty((2, batch), dtype=torch.int32, device=mask.device)
        bias = torch.empty((batch, n), dtype=torch.float32, device=mask.device)
        of_keys = {"list": address(indices[0]), "count": address(counts[0])}
        native.list_undamaged(**common, **of_keys, bias=address(bias))
        of_queries = {"list": 0, "count": 0}
        if queries == "damaged":
            of_queries = {"list": address(indices[1]), "count": address(counts[1])}
            native.list_damaged(**common, **of_queries)
        self.memory = (indices, counts, bias)
        self.native = native.AttentionLists(
            key_list=of_keys["list"],
            key_count=of_keys["count"],
            key_bias=address(bias),
            query_list=of_queries["list"],
            query_count=of_queries["count"],
        )


@torch.library.custom_op(
    "oldrestore::cuda_partial_nonlocal",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor mask, str queries) -> (Tensor, Tensor)",
)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str
) -> tuple[Tensor, Tensor]:
    """The result, and the log of each query's sum of exponentials, (B, M) float32."""
    query, key, value = (t.contiguous() for t in (query, key, value))
    shape = _shape(query, key, value)
    # only the rows of listed queries are written
    allocate = torch.empty if queries == "all" else torch.zeros
    out = allocate((*query.shape[:2], value.shape[2]), dtype=value.dtype, device=value.device)
    lse = allocate(query.shape[:2], dtype=torch.float32, device=value.device)
    with _cuda_native.on_device_of(query):
        lists = _Lists(mask, queries)
        _cuda_native.extension().partial_nonlocal_forward(
            query=address(query),
            key=address(key),
            value=address(value),
            out=address(out),
            lse=address(lse),
            lists=lists.native,
            shape=shape,
            dtype=element(query),
            stream=_cuda_native.stream(query),
        )
    return out, lse


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    del key
    out = value.new_empty((*query.shape[:2], value.shape[2]))
    return out, value.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.custom_op(
    "oldrestore::cuda_partial_nonlocal_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor mask, Tensor out,"
    " Tensor lse, str queries, bool[] wanted) -> Tensor[]",
)
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: str,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients of query, key and value; of no element where they are not wanted."""
    grad, query, key, value = (t.contiguous() for t in (grad, query, key, value))
    # only the rows of listed queries and keys are written
    grads = [
        torch.zeros_like(t) if is_wanted else t.new_empty(0)
        for t, is_wanted in zip((query, key, value), wanted, strict=True)
    ]
    of_query, of_key, of_value = (
        address(g) if is_wanted else 0 for g, is_wanted in zip(grads, wanted, strict=True)
    )
    delta = torch.empty_like(lse)
    with _cuda_native.on_device_of(query):
        lists = _Lists(mask, queries)
        _cuda_native.extension().partial_nonlocal_backward(
            query=address(query),
            key=address(key),
            value=address(value),
            out=address(out),
            grad=address(grad),
            lse=address(lse),
            delta=address(delta),
            grad_query=of_query,
            grad_key=of_key,
            grad_value=of_value,
            lists=lists.native,
            shape=_shape(query, key, value),
            dtype=element(query),
            stream=_cuda_native.stream(query),
        )
    return grads


@_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: str,
    wanted: list[bool],
) -> list[Tensor]:
    del grad, mask, out, lse, queries
    return [
        t.new_empty(t.shape if is_wanted else 0)
        for t, is_wanted in zip((query, key, value), wanted, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.queries = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward_of(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = _backward(grad, *ctx.saved_tensors, ctx.queries, wanted)
    found = (g if is_wanted else None for g, is_wanted in zip(grads, wanted, strict=True))
    return (*found, None, None)


_forward.register_autograd(_backward_of, setup_context=_setup_context)
