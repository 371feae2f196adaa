"""The CUDA attention, run by the shim or a card, held against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import _cuda_partial_nonlocal as cuda
from oldrestore.ops import partial_nonlocal

# batch, queries, keys, depth, depth of the values: one of each; tiles of 32 rows and 64 columns,
# cut and whole; several steps of the depth; narrow and wide sums, two blocks of a wide one
SIZES = [
    (1, 1, 1, 1, 1),
    (3, 7, 5, 7, 2),
    (2, 32, 64, 32, 128),
    (2, 63, 100, 33, 65),
    (1, 3, 2, 4, 130),
    (1, 2, 70, 5, 515),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ("query", "key", "value")


def make_inputs(
    batch: int, n_queries: int, n_keys: int, depth: int, depth_value: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mask of ones, zeros and grey; each sample's first key is undamaged."""
    generator = torch.Generator().manual_seed(n_queries)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    mask = (2 * torch.rand(batch, n_keys, generator=generator) - 0.5).clamp(0, 1)
    mask[:, 0] = 0
    query, key = draw(batch, n_queries, depth), draw(batch, n_keys, depth)
    return query, key / depth**0.5, draw(batch, n_keys, depth_value), mask


def inputs_on(device: torch.device, *size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(device, dtype) for t in make_inputs(*size)]


def reference(*inputs: Tensor, queries: str) -> Tensor:
    return partial_nonlocal(*inputs, queries=queries, backend="reference")


def assert_as_accurate(fast: Tensor, slow: Tensor, truth: Tensor) -> None:
    """``fast`` errs at most twice as much as the reference does in the same dtype."""
    allowed = 2 * ((slow - truth).abs().max() + torch.finfo(slow.dtype).eps * truth.abs().max())
    assert (fast - truth).abs().max() <= allowed  # False for NaN too
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype


def gradients(
    attend: Callable[..., Tensor], inputs: list[Tensor], queries: str
) -> tuple[Tensor, ...]:
    *tensors, mask = inputs
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = attend(*leaves, mask, queries=queries)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator).to(out)
    return torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_it_is_as_accurate_as_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, queries: str, device: torch.device
) -> None:
    batch, n_queries, n_keys, *depths = size
    n_queries = n_keys if queries == "damaged" else n_queries
    inputs = inputs_on(device, batch, n_queries, n_keys, *depths, dtype=dtype)
    fast = cuda.partial_nonlocal(*inputs, queries=queries)
    slow = reference(*inputs, queries=queries)
    truth = reference(*(t.double() for t in inputs), queries=queries)
    assert_as_accurate(fast, slow, truth)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_it_has_the_gradient_of_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, queries: str, device: torch.device
) -> None:
    batch, n_queries, n_keys, *depths = size
    n_queries = n_keys if queries == "damaged" else n_queries
    inputs = inputs_on(device, batch, n_queries, n_keys, *depths, dtype=dtype)
    inputs[3][-1] = 1  # a sample with nothing to look at, too
    fast = gradients(cuda.partial_nonlocal, inputs, queries)
    slow = gradients(reference, inputs, queries)
    truth = gradients(reference, [t.double() for t in inputs], queries)
    for name, *found in zip(NAMES, fast, slow, truth, strict=True):
        assert not bool(found[0][-1].any()), f"{name}: a blind sample has a gradient"
        assert_as_accurate(*found)


def test_a_sample_without_an_undamaged_key_gives_zeros(device: torch.device) -> None:
    inputs = inputs_on(device, 2, 5, 70, 4, 4)
    inputs[3][1] = 1
    out = cuda.partial_nonlocal(*inputs, queries="all")
    assert bool((out[1] == 0).all())
    assert bool((out[0] != 0).any())


def test_damaged_keys_have_no_influence(device: torch.device) -> None:
    query, key, value, mask = inputs_on(device, 2, 9, 90, 4, 4)
    mask = (mask > 0.5).float()
    out = cuda.partial_nonlocal(query, key, value, mask, queries="all")
    damaged = mask.bool()[:, :, None]
    nan = float("nan")
    filled = key.masked_fill(damaged, nan), value.masked_fill(damaged, nan)
    assert torch.equal(cuda.partial_nonlocal(query, *filled, mask, queries="all"), out)


def test_undamaged_queries_get_zeros_and_give_no_gradient(device: torch.device) -> None:
    inputs = inputs_on(device, 2, 90, 90, 4, 4)
    mask = inputs[3]
    everything = cuda.partial_nonlocal(*inputs, queries="all")
    out = cuda.partial_nonlocal(*inputs, queries="damaged")
    assert bool((out[mask == 0] == 0).all())
    torch.testing.assert_close(out[mask > 0], everything[mask > 0])
    of_query = gradients(cuda.partial_nonlocal, inputs, "damaged")[0]
    assert bool((of_query[mask == 0] == 0).all())
    assert bool((of_query[mask > 0] != 0).any())


def test_large_logits_do_not_overflow(device: torch.device) -> None:
    query, key, value, mask = inputs_on(device, 1, 5, 70, 4, 4)
    inputs = [1e3 * query, 1e3 * key, value, mask]
    out = cuda.partial_nonlocal(*inputs, queries="all")
    torch.testing.assert_close(out, reference(*inputs, queries="all"))
    for gradient in gradients(cuda.partial_nonlocal, inputs, "all"):
        assert bool(gradient.isfinite().all())


def test_non_contiguous_tensors_are_taken(device: torch.device) -> None:
    inputs = inputs_on(device, 2, 9, 9, 4, 4)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    out = cuda.partial_nonlocal(*inputs, queries="damaged")
    assert torch.equal(cuda.partial_nonlocal(*strided, queries="damaged"), out)


@pytest.mark.parametrize("queries", ["all", "damaged"])
@pytest.mark.parametrize(
    "size", [(0, 3, 3, 2, 2), (2, 0, 0, 2, 2), (2, 3, 3, 0, 2), (2, 3, 3, 2, 0)], ids=str
)
def test_empty_operands_are_those_of_the_reference(
    size: tuple[int, ...], queries: str, device: torch.device
) -> None:
    batch, n_queries, n_keys, depth, depth_value = size
    shapes = [(batch, n_queries, depth), (batch, n_keys, depth), (batch, n_keys, depth_value)]
    inputs = [torch.ones(s, device=device) for s in [*shapes, (batch, n_keys)]]
    inputs[3] *= 0.5
    out = cuda.partial_nonlocal(*inputs, queries=queries)
    torch.testing.assert_close(out, reference(*inputs, queries=queries))
    expected = gradients(reference, inputs, queries)
    for got, wanted in zip(
        gradients(cuda.partial_nonlocal, inputs, queries), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_no_key_at_all_gives_zeros(device: torch.device) -> None:
    inputs = [torch.ones(s, device=device) for s in [(2, 3, 2), (2, 0, 2), (2, 0, 4), (2, 0)]]
    assert torch.equal(
        cuda.partial_nonlocal(*inputs, queries="all"), torch.zeros(2, 3, 4, device=device)
    )


def test_only_the_wanted_gradients_are_computed(device: torch.device) -> None:
    query, key, value, mask = inputs_on(device, 1, 5, 7, 4, 4)
    value.requires_grad_()
    out = cuda.partial_nonlocal(query, key, value, mask, queries="all")
    out.sum().backward()
    assert value.grad is not None
    assert query.grad is None
    assert key.grad is None


@pytest.mark.parametrize("device", ["shim"], indirect=True)
def test_the_order_of_threads_and_blocks_changes_no_bit(
    device: torch.device, set_schedule: Callable[[int], None]
) -> None:
    inputs = inputs_on(device, 2, 70, 70, 33, 9)

    def run() -> list[Tensor]:
        out = cuda.partial_nonlocal(*inputs, queries="damaged")
        return [out, *gradients(cuda.partial_nonlocal, inputs, "damaged")]

    first = run()
    for schedule in (1, 2):
        set_schedule(schedule)
        for got, expected in zip(run(), first, strict=True):
            assert torch.equal(got, expected)


def test_it_passes_opcheck(device: torch.device) -> None:
    *tensors, mask = inputs_on(device, 1, 3, 3, 2, 2)
    leaves = [t.requires_grad_() for t in tensors]
    operator = torch.ops.oldrestore.cuda_partial_nonlocal
    torch.library.opcheck(operator, (*leaves, mask, "damaged"))


def test_a_compiled_call_equals_the_eager_one(device: torch.device) -> None:
    inputs = inputs_on(device, 1, 9, 9, 4, 4)
    compiled = torch.compile(cuda.partial_nonlocal, backend="aot_eager", fullgraph=True)
    expected = cuda.partial_nonlocal(*inputs, queries="all")
    assert torch.equal(compiled(*inputs, queries="all"), expected)
