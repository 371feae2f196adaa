"""The partial nonlocal block's attention: damaged places look at undamaged ones.

``reference`` is the definition. ``sdpa`` is torch's fused attention: over the undamaged keys alone
where a sample is large, over all keys of all samples under a bias where they are small and many.
``triton`` and ``cuda`` list the undamaged keys on the device. ``chunked`` takes some queries at a
time through the vendor's matrix products.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native, _cuda_partial_nonlocal, _dispatch, _triton
from oldrestore.ops._dispatch import Backend, Operation

# From how many logits (queries x keys) on, a sample's keys are gathered. Measured on one core with
# 8 % damaged, depths 64 and 512, batches 1 to 8. For "all" the two ways take the same time here,
# and larger samples 0.9 to 1.0 of it if gathered, less where more is damaged; for "damaged" it is
# 0.4 to 0.7 here and down to 0.2 for larger ones. Below, gathering each sample costs more.
GATHER_LOGITS = {"all": 2**20, "damaged": 2**16}
SHARE_LOGITS = 2**22  # held at a time to find where ``least_mass`` matters: 16 MiB
CHUNK_LOGITS = 2**22  # likewise by ``chunked``: what a GPU's last-level cache holds
# From this depth on the products outweigh the passes over the logits: the fused kernels hold fewer
# queries at a time, and multiply them with the keys again for every slice of a wide result.
CHUNK_DEPTH = 256


def partial_nonlocal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    queries: str = "all",
    least_mass: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attend from the queries to the undamaged keys only.

        out[i] = sum_j a[i, j] * value[j]
        a[i, j] = (1 - mask[j]) * exp(query[i] . key[j]) / (the same, summed over j)

    The partial nonlocal block of Wan et al., CVPR 2020 (arXiv:2004.09484), section 3.3. The dot
    product is not scaled. The released code divides by no less than ``least_mass`` = 1e-12 of the
    sum over all keys: a query that looks at almost nothing but damage receives less than all.

    Args:
        query: (B, M, D) floating point.
        key: (B, N, D), like ``query``.
        value: (B, N, E); E may differ from D.
        mask: (B, N) in [0, 1], of the keys; 1 is damaged. It gets no gradient.
        queries: "all", or "damaged": positions with mask 0 give zeros; needs M == N.
        least_mass: the divisor is at least this share of exp(query[i] . key[j]) summed over all j.
        backend: "reference", "sdpa", "chunked", "triton", "cuda", or None for the fastest.

    Returns:
        (B, M, E), dtype of ``value``. A sample with no undamaged key gives zeros.

    Raises:
        ValueError: shapes, dtypes, devices, ``queries`` or ``least_mass`` disagree, the mask has
            values outside [0, 1], or the backend asked for cannot run them.
    """
    query, key, value, mask = _dispatch.autocast(query, key, value, mask)
    _check(query, key, value, mask, queries)
    if not 0 <= least_mass < 1:
        raise ValueError(f"least_mass: expected 0 up to 1, got {least_mass}")
    mask = mask.detach()
    _dispatch.check_fractions("mask", mask)
    chosen = OPERATION.choose(backend, query.device, query, key, value, mask)
    operands = (query, key, value, mask)
    if not least_mass:
        return chosen.run(*operands, queries=queries)
    if chosen.name == "triton" and not _dispatch.needs_gradient(*operands):
        return _triton.bounded_partial_nonlocal(*operands, queries=queries, least_mass=least_mass)
    if chosen.name == "chunked":
        return _chunked(*operands, queries=queries, least_mass=least_mass)
    if chosen.name == "reference" or _dispatch.is_static():
        return _reference_bounded(*operands, queries=queries, least_mass=least_mass)
    out = chosen.run(*operands, queries=queries)
    return out * _share(query, key, mask, least_mass).unsqueeze(2).to(out.dtype)


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
    logits = query @ key.transpose(1, 2) + torch.log1p(-mask).unsqueeze(1)  # (B, M, N)
    blind = _blind(mask)
    # filled before softmax too: over -inf alone both its value and its gradient are NaN
    weights = logits.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    return _keep(weights @ value, mask, queries)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str) -> Tensor:
    is_large = query.shape[1] * key.shape[1] >= GATHER_LOGITS[queries]
    # how many keys are kept depends on the data, which a compiled graph cannot follow
    if is_large and not _dispatch.is_static():
        samples = zip(query, key, value, mask, strict=True)
        return torch.stack([_attend_gathered(*sample, queries) for sample in samples])
    return _attend_biased(query, key, value, mask, queries)


def _attend_biased(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str) -> Tensor:
    """All samples at once, damaged keys barred by a bias of minus infinity."""
    blind = _blind(mask)
    bias = torch.log1p(-mask).unsqueeze(1).masked_fill(blind, 0.0)  # (B, 1, N)
    out = _attend(query, key, value, bias)
    return _keep(out.masked_fill(blind, 0.0), mask, queries)


def _attend_gathered(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, queries: str
) -> Tensor:
    """One sample: (M, D), (N, D), (N, E), (N,); damaged keys are left out."""
    kept = (mask < 1).nonzero()[:, 0]
    grey = mask[kept]
    bias = torch.log1p(-grey)[None, None] if bool((grey > 0).any()) else None
    # no key at all is not a case of its own: attention over an empty set gives zeros
    operands = key[kept][None], value[kept][None], bias
    if queries == "all":
        return _attend(query[None], *operands)[0]
    asked = (mask > 0).nonzero()[:, 0]
    out = _attend(query[asked][None], *operands)[0]
    return out.new_zeros(len(query), value.shape[1]).index_copy(0, asked, out)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query @ key^T + bias) @ value; bias (B, 1, N)."""
    if bias is not None:
        bias = bias.expand(-1, query.shape[1], -1).unsqueeze(1)  # (B, 1, M, N), no copy
    depth, depth_value = query.shape[2], value.shape[2]
    if depth != depth_value and query.shape[1] * key.shape[1] >= GATHER_LOGITS["all"]:
        # Of unequal depths torch's fused kernels refuse, and the others hold all logits. Zeros
        # change neither logits nor output, but for small problems they cost more than they save.
        query, key = (F.pad(t, (0, max(depth_value - depth, 0))) for t in (query, key))
        value = F.pad(value, (0, max(depth - depth_value, 0)))
    # rows that are not contiguous, as a transposed map's, are refused likewise
    query, key, value = (
        (t if t.is_contiguous() else t.clone(memory_format=torch.contiguous_format)).unsqueeze(1)
        for t in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    return out.squeeze(1).narrow(2, 0, depth_value)


def _reference_bounded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, queries: str, least_mass: float
) -> Tensor:
    """The definition with ``least_mass``, in the order of the released code."""
    weights = _widen(query @ key.transpose(1, 2)).softmax(dim=-1)  # (B, M, N)
    weights = weights * (1 - mask).unsqueeze(1)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=least_mass)
    return _keep(weights.to(value.dtype) @ value, mask, queries)


def _chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    queries: str,
    least_mass: float = 0.0,
) -> Tensor:
    """Some queries at a time: no matrix of all pairs, nor in the gradient."""
    out: Tensor = _Chunked.apply(query, key, value, mask, least_mass)  # type: ignore[no-untyped-call]  # torch's
    return _keep(out, mask, queries)


class _Chunked(torch.autograd.Function):
    """Each chunk's weights are computed once more for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, least_mass: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.least_mass = least_mass
        # written in place: results that stay between chunks would cut up what these free
        out = value.new_empty(*query.shape[:2], value.shape[2])
        rows = _chunk_rows(key)
        for part, its_out in zip(
            torch.split(query, rows, 1), torch.split(out, rows, 1), strict=True
        ):
            weights = _chunk_weights(part, key, mask, least_mass).weights
            its_out.copy_(weights.to(value.dtype) @ value)
        return out.masked_fill_(_blind(mask), 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        grad = grad.masked_fill(_blind(mask), 0.0)
        of_query = torch.zeros_like(query)
        of_key, of_value = (torch.zeros_like(_widen(t)) for t in (key, value))
        rows = _chunk_rows(key)
        chunks = (torch.split(t, rows, 1) for t in (query, grad, of_query))
        for part, its_grad, of_part in zip(*chunks, strict=True):
            found = _chunk_weights(part, key, mask, ctx.least_mass)
            of_value += found.weights.to(value.dtype).transpose(1, 2) @ its_grad
            of_logits = found.logits_gradient(_logits(its_grad, value)).to(key.dtype)
            of_part.copy_(of_logits @ key)
            of_key += of_logits.transpose(1, 2) @ part
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _chunk_rows(key: Tensor) -> int:
    return max(1, CHUNK_LOGITS // max(1, len(key) * key.shape[1]))


class _Weights(NamedTuple):
    """Of a chunk's queries, in float32 at least: weights = shares * scale.

    weights: (B, M, N).
    shares: (B, M, N), a softmax: over all keys if there is a least mass, else over the kept ones.
    scale: (B, M, N), with a least mass: how much is kept of a key, over the mass or its bound.
    is_free: (B, M, 1), with a least mass: whether it is the mass.
    """

    weights: Tensor
    shares: Tensor
    scale: Tensor | None = None
    is_free: Tensor | None = None

    def logits_gradient(self, of_weights: Tensor) -> Tensor:
        """From the gradient of the weights to that of the logits."""
        if self.scale is not None and self.is_free is not None:
            # a divisor that is the mass takes out what all weights have in common
            common = (self.weights * of_weights).sum(dim=2, keepdim=True)
            of_weights = self.scale * (of_weights - common * self.is_free)
        return self.shares * (of_weights - (self.shares * of_weights).sum(dim=2, keepdim=True))


def _chunk_weights(query: Tensor, key: Tensor, mask: Tensor, least_mass: float) -> _Weights:
    logits, damage = _logits(query, key), _widen(mask).unsqueeze(1)
    if not least_mass:
        weights = logits.add_(torch.log1p(-damage).masked_fill(_blind(mask), 0.0)).softmax(dim=-1)
        return _Weights(weights, weights)
    shares = logits.softmax(dim=-1)
    mass = (shares * (1 - damage)).sum(dim=2, keepdim=True)
    scale = (1 - damage) / mass.clamp(min=least_mass)
    return _Weights(shares * scale, shares, scale, mass >= least_mass)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """query @ key^T, of half precision as its product is accumulated."""
    key = key.transpose(1, 2)
    if query.is_cuda and query.dtype.itemsize < torch.float32.itemsize:
        return torch.bmm(query, key, out_dtype=torch.float32)
    return _widen(query) @ _widen(key)


def _share(query: Tensor, key: Tensor, mask: Tensor, least_mass: float) -> Tensor:
    """(B, M) in [0, 1]: what ``least_mass`` leaves of each output, without the N x N logits.

    All but the few rows that it touches are ruled out first.
    """
    samples = zip(query, key, mask, strict=True)
    return torch.stack([_share_of_sample(*sample, least_mass) for sample in samples])


def _share_of_sample(query: Tensor, key: Tensor, mask: Tensor, least_mass: float) -> Tensor:
    """(M, D), (N, D), (N,) -> (M,).

    By Jensen's inequality the kept keys' sum is at least what their mean key alone gives:
    log sum_j w_j exp(q . k_j) >= log W + q . (sum_j w_j k_j / W), with W = sum_j w_j. Where that is
    already far above ``least_mass`` of the damaged keys' sum, nothing is taken away.
    """
    share = query.new_ones(len(query), dtype=torch.float32)
    lost, kept = (mask > 0).nonzero()[:, 0], (mask < 1).nonzero()[:, 0]
    if not len(lost) or not len(kept):
        return share
    query, key, mask = query.float(), key.float(), mask.float()
    weight = 1 - mask[kept]
    with torch.no_grad():
        mean_key = weight @ key[kept] / weight.sum()
        at_least = query @ mean_key + weight.sum().log()
        of_lost = _log_sum_exp(query, key[lost], mask[lost].log())
        rare = (of_lost - at_least > -math.log(least_mass) - 1).nonzero()[:, 0]
    if not len(rare):
        return share
    of_lost = _log_sum_exp(query[rare], key[lost], mask[lost].log())
    of_kept = _log_sum_exp(query[rare], key[kept], weight.log())
    excess = of_kept - torch.logaddexp(of_kept, of_lost)
    return share.index_copy(0, rare, (excess - math.log(least_mass)).clamp(max=0).exp())


def _log_sum_exp(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """log sum_j exp(query . key_j + bias_j), (M,), some queries at a time."""
    rows = max(1, SHARE_LOGITS // len(key))
    parts = [(part @ key.T + bias).logsumexp(dim=1) for part in torch.split(query, rows)]
    return torch.cat(parts)


def _widen(x: Tensor) -> Tensor:
    """Half precision to float32: the least masses are below what it can hold."""
    return x.float() if x.dtype.itemsize < torch.float32.itemsize else x


def _blind(mask: Tensor) -> Tensor:
    """(B, 1, 1): which samples have no undamaged key at all."""
    return (mask == 1).all(dim=1).reshape(-1, 1, 1)


def _keep(out: Tensor, mask: Tensor, queries: str) -> Tensor:
    return out if queries == "all" else out.masked_fill((mask == 0)[:, :, None], 0.0)


def _sdpa_unsupported(*operands: Tensor) -> str | None:
    if any(t.numel() == 0 for t in operands):
        return "an operand is empty"
    return None


def _chunked_slower(query: Tensor, *_: Tensor) -> str | None:
    if not query.is_cuda:
        return "sdpa is as fast on a CPU, and needs less memory"
    if query.shape[2] < CHUNK_DEPTH:
        return f"faster from depth {CHUNK_DEPTH} on"
    return None


OPERATION = Operation(
    "partial_nonlocal",
    (
        Backend("chunked", _chunked, unsupported=_sdpa_unsupported, slower=_chunked_slower),
        Backend("triton", _triton.partial_nonlocal, _triton.missing, _triton.unsupported_attention),
        Backend(
            "cuda",
            _cuda_partial_nonlocal.partial_nonlocal,
            _cuda_native.cuda_missing,
            _cuda_native.dtype_unsupported,
        ),
        Backend("sdpa", _sdpa, unsupported=_sdpa_unsupported),
        Backend("reference", _reference),
    ),
)
