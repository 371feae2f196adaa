"""The Triton attention against the definition, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import _triton
from oldrestore.ops.partial_nonlocal import _reference

Accurate = Callable[..., None]

# batch, queries, keys, depth, depth of the values: below, at and over the sides of a tile
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 2, 3, 2, 3),
    (2, 63, 100, 16, 8),
    (2, 100, 63, 7, 33),
    (1, 130, 7, 64, 63),
    (1, 3, 33, 140, 300),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = DTYPES[1:]


def make_inputs(size: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """float64: query, key, value, and a mask of ones, zeros and grey, another for each sample."""
    batch, n_queries, n_keys, depth, depth_value = size
    generator = torch.Generator().manual_seed(sum(size))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    grey = torch.rand(batch, n_keys, generator=generator, dtype=torch.float64)
    mask = (2 * grey - 0.5).clamp(0, 1)
    mask[:, 0] = 0
    operands = (draw(batch, n_queries, depth), draw(batch, n_keys, depth) / depth**0.5)
    return [t.to(device) for t in (*operands, draw(batch, n_keys, depth_value), mask)]


def differentiate(
    run: Callable[..., Tensor], inputs: list[Tensor], queries: str, grad: Tensor
) -> list[Tensor]:
    """The result, and the gradients of query, key and value."""
    *operands, mask = inputs
    leaves = [t.detach().requires_grad_() for t in operands]
    out = run(*leaves, mask, queries=queries)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def cancelled(inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Float32's rounding of the terms whose difference the gradient of a score is.

    It is w * (grad . value - grad . out), and the two products are rounded apart: each by an eps of
    sum |grad| |value|. What is near zero after that, as with one key alone, keeps this error.
    """
    query, key, value, _ = (t.double().abs() for t in inputs)
    term = torch.finfo(torch.float32).eps * (grad.double().abs() @ value.mT).amax()
    return [0 * term, term * key.amax(), term * query.sum(dim=1).amax(), 0 * term]


def assert_agrees(
    inputs: list[Tensor], dtype: torch.dtype, queries: str, accurate: Accurate
) -> None:
    inputs = [t.to(dtype) for t in inputs]
    generator = torch.Generator().manual_seed(inputs[0].numel())
    grad = torch.randn(*inputs[0].shape[:2], inputs[2].shape[2], generator=generator)
    grad = grad.to(inputs[0])
    truth = differentiate(_reference, [t.double() for t in inputs], queries, grad)
    slow = differentiate(_reference, inputs, queries, grad)
    fast = differentiate(_triton.partial_nonlocal, inputs, queries, grad)
    for results in zip(fast, slow, truth, cancelled(inputs, grad), strict=True):
        accurate(*results)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_agrees_with_the_reference(
    size: tuple[int, ...], device: torch.device, assert_as_accurate: Accurate
) -> None:
    assert_agrees(make_inputs(size, device), torch.float32, "all", assert_as_accurate)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_damaged_queries_alone_agree_with_the_reference(
    n: int, device: torch.device, assert_as_accurate: Accurate
) -> None:
    inputs = make_inputs((2, n, n, 16, 24), device)
    assert_agrees(inputs, torch.float32, "damaged", assert_as_accurate)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (1, 66, 66, 16, 7)], ids=str)
def test_half_precision_agrees_with_the_reference(
    size: tuple[int, ...],
    queries: str,
    dtype: torch.dtype,
    device: torch.device,
    assert_as_accurate: Accurate,
) -> None:
    assert_agrees(make_inputs(size, device), dtype, queries, assert_as_accurate)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_the_widest_depth_agrees_with_the_reference(
    dtype: torch.dtype, queries: str, device: torch.device, assert_as_accurate: Accurate
) -> None:
    inputs = make_inputs((1, 144, 144, 512, 512), device)
    assert_agrees(inputs, dtype, queries, assert_as_accurate)


@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_empty_and_full_masks_are_taken_side_by_side(
    queries: str, device: torch.device, assert_as_accurate: Accurate
) -> None:
    inputs = make_inputs((3, 40, 40, 8, 8), device)
    inputs[3][0], inputs[3][1] = 0, 1
    assert_agrees(inputs, torch.float32, queries, assert_as_accurate)
    out, *grads = differentiate(
        _triton.partial_nonlocal,
        [t.float() for t in inputs],
        queries,
        torch.ones(3, 40, 8, device=device),
    )
    for blind in (out, *grads):
        assert not blind[1].any()
    assert bool(out[0].any()) == (queries == "all")


def test_damaged_keys_are_never_read(device: torch.device) -> None:
    query, key, value, mask = (t.float() for t in make_inputs((2, 9, 70, 8, 8), device))
    mask = (mask > 0.5).float()
    out = _triton.partial_nonlocal(query, key, value, mask, queries="all")
    damaged = mask.bool()[:, :, None]
    key, value = (t.masked_fill(damaged, float("nan")) for t in (key, value))
    assert torch.equal(_triton.partial_nonlocal(query, key, value, mask, queries="all"), out)


def test_large_scores_do_not_overflow(device: torch.device, assert_as_accurate: Accurate) -> None:
    inputs = make_inputs((1, 20, 70, 16, 8), device)
    inputs[0] *= 1e3
    single = [t.float() for t in inputs]
    out, *grads = differentiate(
        _triton.partial_nonlocal, single, "all", torch.ones(1, 20, 8, device=device)
    )
    truth, slow = (_reference(*t, queries="all") for t in ([x.double() for x in single], single))
    assert_as_accurate(out, slow, truth)
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_operands_need_not_be_contiguous(device: torch.device) -> None:
    inputs = [t.float() for t in make_inputs((2, 21, 21, 8, 8), device)]
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    grad = torch.randn(8, 21, 2).to(device).transpose(0, 2)
    for run in ("all", "damaged"):
        expected = differentiate(_triton.partial_nonlocal, inputs, run, grad.contiguous())
        found = differentiate(_triton.partial_nonlocal, strided, run, grad)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


def test_the_least_mass_bounds_the_divisor(device: torch.device) -> None:
    query, key, value, mask = (t.float() for t in make_inputs((2, 40, 50, 6, 5), device))
    key[:, 30:45], mask[:, 30:45] = key[:, 30:45] + 2, 1
    query *= torch.linspace(0, 30, 40, device=device)[:, None]
    mask[1, 45:], mask[0, :] = 0.25, mask[0]
    logits = (query.double() @ key.double().mT).softmax(dim=2) * (1 - mask.double())[:, None]
    expected = logits / logits.sum(dim=2, keepdim=True).clamp(min=1e-12) @ value.double()
    plain = _triton.partial_nonlocal(query, key, value, mask, queries="all")
    operands = (query, key, value, mask)
    bounded = _triton.bounded_partial_nonlocal(*operands, queries="all", least_mass=1e-12)
    assert (plain - expected).abs().max() > 0.1  # else the bound does nothing here
    # scores to 1e2 in float32: their exponentials are known to some 1e-5
    torch.testing.assert_close(bounded.double(), expected, rtol=1e-4, atol=1e-4)
    mask = torch.ones_like(mask)
    bounded = _triton.bounded_partial_nonlocal(*operands[:3], mask, queries="all", least_mass=0.1)
    assert (bounded == 0).all()


@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_torch_accepts_the_registration(queries: str, device: torch.device) -> None:
    *operands, mask = (t.float() for t in make_inputs((2, 9, 9, 8, 5), device))
    leaves = [t.requires_grad_() for t in operands]
    torch.library.opcheck(_triton._attend, (*leaves, mask, queries))
    compiled = torch.compile(_triton.partial_nonlocal, backend="aot_eager", fullgraph=True)
    out = compiled(*leaves, mask, queries=queries)
    assert torch.equal(out, _triton.partial_nonlocal(*leaves, mask, queries=queries))
