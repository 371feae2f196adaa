"""partial_nonlocal: the definition, and the fused backend held against it."""

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import partial_nonlocal
from oldrestore.ops.streamed_attention import StreamedAttention

MODULE = importlib.import_module("oldrestore.ops.partial_nonlocal")
SDPA_PATHS = {"biased": 2**62, "gathered": 0}  # from how many logits on keys are gathered
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1, 1, 1), (3, 7, 5, 7, 7), (2, 63, 100, 8, 8), (2, 100, 63, 32, 7)]


@pytest.fixture(params=["reference", "chunked", *SDPA_PATHS])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend, and each path through ``sdpa`` whatever the size."""
    if request.param == "chunked":
        monkeypatch.setattr(MODULE, "CHUNK_LOGITS", 30)  # several chunks, the last one smaller
    if request.param in ("reference", "chunked"):
        return str(request.param)
    logits = SDPA_PATHS[request.param]
    monkeypatch.setattr(MODULE, "GATHER_LOGITS", {"all": logits, "damaged": logits})
    return "sdpa"


fast_paths = pytest.mark.parametrize("backend", ["chunked", *SDPA_PATHS], indirect=True)


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


@fast_paths
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_each_path_is_as_accurate_as_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, queries: str, backend: str
) -> None:
    batch, n_queries, n_keys, depth, depth_value = size
    if queries == "damaged":
        n_queries = n_keys
    inputs = [t.to(dtype) for t in make_inputs(batch, n_queries, n_keys, depth, depth_value)]
    truth = partial_nonlocal(*(t.double() for t in inputs), queries=queries, backend="reference")
    slow = partial_nonlocal(*inputs, queries=queries, backend="reference")
    fast = partial_nonlocal(*inputs, queries=queries, backend=backend)
    assert fast.shape == (batch, n_queries, depth_value)
    assert fast.dtype == dtype
    assert_as_accurate(fast, slow, truth)


@fast_paths
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("queries", ["all", "damaged"])
@pytest.mark.parametrize("is_grey", [True, False], ids=["grey", "binary"])
def test_each_path_has_the_gradient_of_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, queries: str, is_grey: bool, backend: str
) -> None:
    batch, n_queries, n_keys, *depths = size
    n_queries = n_keys if queries == "damaged" else n_queries
    *tensors, mask = make_inputs(batch, n_queries, n_keys, *depths)
    mask = mask if is_grey else (mask > 0.5).double()
    mask[-1] = 1  # a sample with nothing to look at, too

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = partial_nonlocal(*leaves, mask.to(dtype), queries=queries, backend=backend)
        return torch.autograd.grad(out.square().sum(), leaves)

    truth = gradients("reference", torch.float64)
    slow, fast = gradients("reference", dtype), gradients(backend, dtype)
    for of_fast, of_slow, of_truth in zip(fast, slow, truth, strict=True):
        assert_as_accurate(of_fast, of_slow, of_truth)


@pytest.mark.parametrize("backend", ["chunked"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("least_mass", [0.0, 1e-12])
def test_chunks_have_the_gradient_of_the_reference_in_half_precision(
    dtype: torch.dtype, least_mass: float, backend: str
) -> None:
    *tensors, mask = make_inputs(2, 30, 20, 8, 8)

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        # what the half-precision ones are given, in all precisions
        leaves = [t.to(given).to(dtype).requires_grad_() for t in tensors]
        how = {"backend": backend, "least_mass": least_mass}
        out = partial_nonlocal(*leaves, mask.to(given).to(dtype), **how)
        return torch.autograd.grad(out.square().sum(), leaves)

    given = dtype
    truth = gradients("reference", torch.float64)
    slow, fast = gradients("reference", dtype), gradients(backend, dtype)
    for of_fast, of_slow, of_truth in zip(fast, slow, truth, strict=True):
        assert_as_accurate(of_fast, of_slow, of_truth)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_chunks_are_as_accurate_on_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "CHUNK_LOGITS", 2**14)
    inputs = [t.to(dtype) for t in make_inputs(2, 300, 200, 256, 256)]
    results = []
    for device, backend, wide in (
        ("cuda", "chunked", dtype),
        ("cpu", "reference", dtype),
        ("cpu", "reference", torch.float64),
    ):
        *leaves, mask = (t.to(device, wide) for t in inputs)
        leaves = [t.requires_grad_() for t in leaves]
        out = partial_nonlocal(*leaves, mask, least_mass=1e-12, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        results.append([t.detach().cpu() for t in (out, *grads)])
    for fast, slow, truth in zip(*results, strict=True):
        assert_as_accurate(fast, slow, truth)


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


def test_damaged_keys_have_no_influence(backend: str) -> None:
    query, key, value, mask = make_inputs(1, 9, 9, 4, 4)
    mask = (mask > 0.5).double()
    out = partial_nonlocal(query, key, value, mask, backend=backend)
    damaged = mask.bool()[:, :, None]
    other = partial_nonlocal(
        query, key.masked_fill(damaged, 3.0), value.masked_fill(damaged, 1e6), mask, backend=backend
    )
    assert torch.equal(out, other)


def test_undamaged_queries_give_zeros_if_only_damaged_are_asked(backend: str) -> None:
    query, key, value, mask = make_inputs(2, 9, 9, 4, 4)
    everything = partial_nonlocal(query, key, value, mask, backend=backend)
    out = partial_nonlocal(query, key, value, mask, queries="damaged", backend=backend)
    assert bool((out[mask == 0] == 0).all())
    # "gathered" computes the damaged rows alone, and blocked sums may round differently then
    few_eps = 16 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(out[mask > 0], everything[mask > 0], rtol=few_eps, atol=few_eps)


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


def test_large_logits_do_not_overflow(backend: str) -> None:
    query, key, value, mask = (t.float() for t in make_inputs(1, 5, 7, 4, 4))
    out = partial_nonlocal(1e3 * query, 1e3 * key, value, mask, backend=backend)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("queries", ["all", "damaged"])
def test_an_undamaged_photo_is_attended_to_whole(queries: str, backend: str) -> None:
    query, key, value, mask = make_inputs(2, 9, 9, 4, 3)
    out = partial_nonlocal(
        query, key, value, torch.zeros_like(mask), queries=queries, backend=backend
    )
    whole = (query @ key.transpose(1, 2)).softmax(dim=2) @ value
    torch.testing.assert_close(out, whole if queries == "all" else torch.zeros_like(whole))


@pytest.mark.parametrize(
    ("queries", "size", "is_gathered"),
    [
        ("all", (1, 1024, 1024, 16, 16), True),
        ("all", (1, 1024, 1024, 16, 8), True),
        ("all", (1, 1023, 1024, 16, 16), False),
        ("damaged", (2, 256, 256, 16, 16), True),
        ("damaged", (2, 255, 255, 16, 16), False),
        ("all", (200, 64, 576, 8, 8), False),  # many small neighbourhoods
    ],
    ids=str,
)
def test_large_samples_are_gathered_and_small_ones_batched(
    queries: str, size: tuple[int, ...], is_gathered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []

    def attend_gathered(*arguments: object) -> Tensor:
        gathered.append(arguments)
        return attend(*arguments)

    attend = MODULE._attend_gathered
    monkeypatch.setattr(MODULE, "_attend_gathered", attend_gathered)
    inputs = [t.float() for t in make_inputs(*size)]
    fast = partial_nonlocal(*inputs, queries=queries, backend="sdpa")
    assert len(gathered) == (size[0] if is_gathered else 0)
    slow = partial_nonlocal(*inputs, queries=queries, backend="reference")
    truth = partial_nonlocal(*(t.double() for t in inputs), queries=queries, backend="reference")
    assert_as_accurate(fast, slow, truth)


@pytest.mark.parametrize("backend", ["gathered"], indirect=True)
def test_gathering_leaves_out_damaged_keys_and_undamaged_queries(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended = []

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        attended.append((query.shape[1], key.shape[1], value.shape[1], bias is not None))
        return compute(query, key, value, bias)

    compute = MODULE._attend
    monkeypatch.setattr(MODULE, "_attend", attend)
    *tensors, _ = make_inputs(3, 5, 5, 2, 2)
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0.5, 1, 1], [1, 1, 1, 1, 1]]).double()
    partial_nonlocal(*tensors, mask, queries="damaged", backend=backend)
    partial_nonlocal(*tensors, mask, queries="all", backend=backend)
    counts = [(2, 3, 3, False), (4, 2, 2, True), (5, 0, 0, False)]  # bias for grey keys alone
    assert attended == counts + [(5, *count[1:]) for count in counts]


# rows of a transposed map and unequal depths are what torch's fused kernels do not take
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
@pytest.mark.parametrize("kind", ["binary, equal depths", "grey, unequal depths"])
def test_no_matrix_of_all_pairs_forward_or_backward(
    kind: str, backend: str, peak_extra_bytes: Callable[[str, str], int]
) -> None:
    n_cells = 16384
    is_grey = kind.startswith("grey")
    extra = peak_extra_bytes(
        "import importlib; module = importlib.import_module('oldrestore.ops.partial_nonlocal')\n"
        "partial_nonlocal, module.CHUNK_LOGITS = module.partial_nonlocal, 2**20\n"
        f"maps = [torch.rand(1, depth, {n_cells}) for depth in (32, 32, {24 if is_grey else 32})]\n"
        "rows = [m.requires_grad_().transpose(1, 2) for m in maps]\n"
        f"mask = (torch.rand(1, {n_cells}) - 0.9).clamp(min=0) * 10\n"
        + ("" if is_grey else "mask = mask.ceil()\n"),
        f"out = partial_nonlocal(*rows, mask, backend='{backend}')\n"
        "torch.autograd.grad(out.sum(), maps)",
    )
    assert extra < n_cells**2 * 4 / (8 if backend == "sdpa" else 5)


@pytest.mark.parametrize("logits", SDPA_PATHS.values(), ids=SDPA_PATHS)
def test_it_compiles(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "GATHER_LOGITS", {"all": logits, "damaged": logits})
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


def _looking_at_damage(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries from those that look at intact keys to those that look at damaged ones alone."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    value = torch.randn(2, 50, 5, generator=generator, dtype=torch.float64)
    mask = torch.zeros(2, 50, dtype=torch.float64)
    mask[:, 30:45], mask[1, 45:] = 1, 0.25
    key[:, 30:45] += 2
    query *= torch.linspace(0, 12, 40, dtype=torch.float64)[:, None]
    return tuple(t.to(dtype) for t in (query, key, value, mask))  # type: ignore[return-value]


def _published(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, least_mass: float
) -> Tensor:
    """Softmax over all keys, times the mask, divided by its sum or the least mass."""
    weights = (query @ key.transpose(1, 2)).softmax(dim=2) * (1 - mask)[:, None]
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=least_mass) @ value


def test_the_least_mass_is_that_of_the_released_code(backend: str) -> None:
    operands = _looking_at_damage(torch.float64)
    expected = _published(*operands, 1e-12)
    plain = partial_nonlocal(*operands, backend=backend)
    rows = ((expected - plain).abs() > 1e-9).any(dim=2)
    assert rows.any()
    assert not rows.all()
    bounded = partial_nonlocal(*operands, least_mass=1e-12, backend=backend)
    torch.testing.assert_close(bounded, expected)
    # the bound is found in single precision, whatever the operands are
    single = [t.float() for t in operands]
    bounded = partial_nonlocal(*single, least_mass=1e-12, backend=backend)
    torch.testing.assert_close(bounded.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_least_mass_has_the_released_codes_gradient(backend: str) -> None:
    *operands, mask = _looking_at_damage(torch.float64)
    weight = torch.randn(2, 40, 5, dtype=torch.float64)
    found = []
    for function in (
        lambda *x: _published(*x, mask, 1e-12),
        lambda *x: partial_nonlocal(*x, mask, least_mass=1e-12, backend=backend),
    ):
        leaves = [t.clone().requires_grad_() for t in operands]
        (function(*leaves) * weight).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_value", [0.0, 1.0])
def test_the_least_mass_of_an_empty_or_full_mask(backend: str, mask_value: float) -> None:
    query, key, value, mask = _looking_at_damage(torch.float32)
    query, mask = query.requires_grad_(), torch.full_like(mask, mask_value)
    out = partial_nonlocal(query, key, value, mask, least_mass=1e-12, backend=backend)
    expected = partial_nonlocal(query, key, value, mask, backend=backend)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_a_least_mass_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"least_mass: expected 0 up to 1, got 1.5"):
        partial_nonlocal(*make_inputs(1, 2, 2, 2, 2), least_mass=1.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.5])
def test_a_mask_out_of_range_is_named_by_every_backend(backend: str, value: float) -> None:
    query, key, value_, mask = make_inputs(1, 4, 4, 2, 2)
    mask[0, 2] = value
    with pytest.raises(ValueError, match=r"mask: expected values in \[0, 1\], got"):
        partial_nonlocal(query, key, value_, mask, backend=backend)


@pytest.mark.parametrize("part", [3, 40])
@pytest.mark.parametrize("least_mass", [1e-12, 0.3])
def test_keys_in_parts_give_what_all_at_once_give(part: int, least_mass: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 40, 6, generator=generator) * 2 for _ in range(3))
    mask = (torch.rand(1, 40, generator=generator) < 0.3).float()
    kept, lost = mask[0] == 0, mask[0] > 0
    attention = StreamedAttention(
        lambda: zip(key[0][kept].split(part), value[0][kept].split(part), strict=True),
        lambda: iter(key[0][lost].split(part)),
        least_mass,
    )
    found = torch.cat([attention(some) for some in query[0].split(part)])
    expected = partial_nonlocal(query, key, value, mask, least_mass=least_mass, backend="reference")
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
    nothing = StreamedAttention(lambda: iter(()), lambda: iter(()), least_mass)
    assert torch.equal(nothing(query[0]), torch.zeros(40, 6))
