"""partial_nonlocal: the definition, and the fused backend held against it."""

import math

import pytest
import torch
from torch import Tensor

from oldrestore.ops import partial_nonlocal

BACKENDS = ["reference", "sdpa"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1, 1, 1), (3, 7, 5, 7, 7), (2, 63, 100, 8, 8), (2, 100, 63, 32, 7)]


def make_inputs(
    batch: int, n_queries: int, n_keys: int, depth: int, depth_value: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float64; a mask of ones, zeros and grey, with the first sample's first key undamaged."""
    generator = torch.Generator().manual_seed(n_queries)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    grey = torch.rand(batch, n_keys, generator=generator, dtype=torch.float64)
    mask = (2 * grey - 0.5).clamp(0, 1)
    mask[:, 0] = 0
    query, key = draw(batch, n_queries, depth), draw(batch, n_keys, depth)
    return query, key / depth**0.5, draw(batch, n_keys, depth_value), mask


def assert_as_accurate(fast: Tensor, slow: Tensor, truth: Tensor) -> None:
    """``fast`` errs at most twice as much as the reference does in the same dtype.

    In float64 the truth is the reference, whose own error is unknown: there the two must be close.
    """
    if slow.dtype == torch.float64:
        torch.testing.assert_close(fast, slow)
        return
    eps = torch.finfo(slow.dtype).eps
    allowed = 2 * ((slow - truth).abs().max() + eps * truth.abs().max())
    assert (fast - truth).abs().max() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_equation(backend: str) -> None:
    query, key, value, mask = make_inputs(2, 3, 4, 2, 2)
    out = partial_nonlocal(query, key, value, mask, backend=backend)
    for b in range(2):
        for i in range(3):
            weights = [
                (1 - mask[b, j].item()) * math.exp(query[b, i] @ key[b, j]) for j in range(4)
            ]
            expected = sum(w * value[b, j] for j, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(out[b, i], expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_sdpa_is_as_accurate_as_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, queries: str
) -> None:
    batch, n_queries, n_keys, depth, depth_value = size
    if queries == "damaged":
        n_queries = n_keys
    inputs = [t.to(dtype) for t in make_inputs(batch, n_queries, n_keys, depth, depth_value)]
    truth = partial_nonlocal(*(t.double() for t in inputs), queries=queries, backend="reference")
    slow = partial_nonlocal(*inputs, queries=queries, backend="reference")
    fast = partial_nonlocal(*inputs, queries=queries, backend="sdpa")
    assert fast.shape == (batch, n_queries, depth_value)
    assert fast.dtype == dtype
    assert_as_accurate(fast, slow, truth)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sdpa_has_the_gradient_of_the_reference(size: tuple[int, ...], dtype: torch.dtype) -> None:
    *tensors, mask = make_inputs(*size)
    mask[-1] = 1  # a sample with nothing to look at, too

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = partial_nonlocal(*leaves, mask.to(dtype), backend=backend)
        return torch.autograd.grad(out.square().sum(), leaves)

    truth = gradients("reference", torch.float64)
    slow, fast = gradients("reference", dtype), gradients("sdpa", dtype)
    for of_fast, of_slow, of_truth in zip(fast, slow, truth, strict=True):
        assert_as_accurate(of_fast, of_slow, of_truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_without_an_undamaged_key_gives_zeros_and_no_nan(
    backend: str, dtype: torch.dtype
) -> None:
    query, key, value, mask = (t.to(dtype) for t in make_inputs(2, 5, 5, 4, 4))
    mask[1] = 1
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = partial_nonlocal(*leaves, mask, backend=backend)
    assert bool((out[1] == 0).all())
    assert bool((out[0] != 0).any())
    for gradient in torch.autograd.grad(out.sum(), leaves):
        assert bool(gradient.isfinite().all())
        assert bool((gradient[1] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_keys_have_no_influence(backend: str) -> None:
    query, key, value, mask = make_inputs(1, 9, 9, 4, 4)
    mask = (mask > 0.5).double()
    out = partial_nonlocal(query, key, value, mask, backend=backend)
    damaged = mask.bool()[:, :, None]
    other = partial_nonlocal(
        query, key.masked_fill(damaged, 3.0), value.masked_fill(damaged, 1e6), mask, backend=backend
    )
    assert torch.equal(out, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_undamaged_queries_give_zeros_if_only_damaged_are_asked(backend: str) -> None:
    query, key, value, mask = make_inputs(2, 9, 9, 4, 4)
    everything = partial_nonlocal(query, key, value, mask, backend=backend)
    out = partial_nonlocal(query, key, value, mask, queries="damaged", backend=backend)
    assert bool((out[mask == 0] == 0).all())
    assert torch.equal(out[mask > 0], everything[mask > 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_tensors_are_taken(backend: str) -> None:
    inputs = make_inputs(2, 9, 9, 4, 4)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    out = partial_nonlocal(*inputs, backend=backend)
    torch.testing.assert_close(partial_nonlocal(*strided, backend=backend), out)


@pytest.mark.parametrize("size", [(0, 3, 4, 2, 2), (2, 0, 4, 2, 2), (2, 3, 0, 2, 2)], ids=str)
def test_empty_operands_give_empty_or_zero_results(size: tuple[int, ...]) -> None:
    batch, n_queries, n_keys, depth, depth_value = size
    out = partial_nonlocal(
        torch.zeros(batch, n_queries, depth),
        torch.zeros(batch, n_keys, depth),
        torch.zeros(batch, n_keys, depth_value),
        torch.zeros(batch, n_keys),
    )
    assert torch.equal(out, torch.zeros(batch, n_queries, depth_value))


def test_sdpa_refuses_empty_operands_by_name() -> None:
    empty = torch.zeros(0, 3, 2)
    with pytest.raises(ValueError, match="cannot use 'sdpa': an operand is empty"):
        partial_nonlocal(empty, empty, empty, torch.zeros(0, 3), backend="sdpa")


def test_large_logits_do_not_overflow() -> None:
    query, key, value, mask = (t.float() for t in make_inputs(1, 5, 7, 4, 4))
    for backend in BACKENDS:
        out = partial_nonlocal(1e3 * query, 1e3 * key, value, mask, backend=backend)
        assert bool(out.isfinite().all())


def test_it_compiles() -> None:
    inputs = make_inputs(2, 9, 9, 4, 4)
    compiled = torch.compile(partial_nonlocal, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), partial_nonlocal(*inputs))


BAD = {
    "queries: expected": {"queries": "undamaged"},
    'queries: "damaged" needs': {"queries": "damaged", "query": torch.zeros(2, 4, 2)},
    "query": {"query": torch.zeros(2, 3, 2, dtype=torch.int64)},
    "key: expected": {"key": torch.zeros(2, 3, 5)},
    "key: expected torch.float32": {"key": torch.zeros(2, 3, 2, dtype=torch.float64)},
    "value": {"value": torch.zeros(2, 4, 2)},
    "mask: expected \\(2, 3\\)": {"mask": torch.zeros(2, 1, 3)},
    "mask: expected torch.float32": {"mask": torch.zeros(2, 3, dtype=torch.bool)},
    "backend": {"backend": "cpp"},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_argument_is_named(message: str) -> None:
    tensor = torch.zeros(2, 3, 2)
    arguments = {"query": tensor, "key": tensor, "value": tensor, "mask": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=f"^{message}"):
        partial_nonlocal(**arguments | BAD[message])
