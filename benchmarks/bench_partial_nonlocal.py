"""Partial nonlocal attention, every backend: pytest benchmarks/bench_partial_nonlocal.py

python benchmarks/bench_partial_nonlocal.py sdpa 16384 forward    # seconds, extra MB, alone

Sizes: the compact network's neighbourhoods (many small problems) and the published network's whole
map (one large problem, depth 512; 4096 and 16384 cells are photos of 256 and 512 px a side). Beside
the backends stands "biased": ``sdpa`` if it never gathered the undamaged keys.
"""

import importlib
import json
import platform
import sys
import time

import pytest
import torch
from process_memory import peak_megabytes
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

MODULE = importlib.import_module("oldrestore.ops.partial_nonlocal")
METHODS = (*ops.available("partial_nonlocal"), "biased")
NEVER = {"all": sys.maxsize, "damaged": sys.maxsize}  # logits from which keys are gathered

# batch, queries, keys, depth
SIZES = [(64, 64, 576, 32), (256, 64, 576, 32), (1, 4096, 4096, 512), (1, 16384, 16384, 512)]
DEPTH = SIZES[-1][-1]
DIRECTIONS = ("forward", "forward+backward")
DAMAGED_SHARE = 0.08  # of the cells of a scratched photo
ROUNDS = 3  # the agreement warms up
HELD_QUERIES = 64  # against float64; all of them would need a matrix of all pairs
MOST_RELATIVE_ERROR = 1e-4  # of the largest value, float32 against float64


def make_inputs(size: tuple[int, ...], needs_gradient: bool) -> tuple[list[Tensor], Tensor]:
    batch, n_queries, n_keys, depth = size
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(batch, n, depth, generator=generator) / depth**0.25
        for n in (n_queries, n_keys, n_keys)
    ]
    mask = (torch.rand(batch, n_keys, generator=generator) < DAMAGED_SHARE).float()
    return [t.requires_grad_(needs_gradient) for t in tensors], mask


def attend(method: str, tensors: list[Tensor], mask: Tensor, queries: str) -> Tensor:
    backend = "sdpa" if method == "biased" else method
    return ops.partial_nonlocal(*tensors, mask, queries=queries, backend=backend)


def run(method: str, tensors: list[Tensor], mask: Tensor, queries: str) -> None:
    out = attend(method, tensors, mask, queries)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), tensors)


def assert_agrees(method: str, tensors: list[Tensor], mask: Tensor, queries: str) -> float:
    """Some queries, and the gradients of their squares, against the reference in float64."""
    some = slice(None, None, max(1, tensors[0].shape[1] // HELD_QUERIES))
    out = attend(method, tensors, mask, queries)[:, some]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    truth = attend("reference", [wide[0][:, some], *wide[1:]], mask.double(), "all")
    if queries == "damaged":
        truth = truth * (mask > 0)[:, some, None]
    pairs = [(out, truth)]
    if out.requires_grad:
        found = torch.autograd.grad(out.square().sum(), tensors)
        expected = torch.autograd.grad(truth.square().sum(), wide)
        pairs += zip(found, expected, strict=True)
    error = max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)
    assert error <= MOST_RELATIVE_ERROR
    return error


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("queries", ["all", "damaged"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_partial_nonlocal(
    benchmark: BenchmarkFixture,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, ...],
    threads: int,
    queries: str,
    direction: str,
    method: str,
) -> None:
    batch, n_queries, n_keys, depth = size
    if queries == "damaged" and n_queries != n_keys:
        pytest.skip("a neighbourhood has more keys than queries: its queries are all asked")
    if method == "biased":
        monkeypatch.setattr(MODULE, "GATHER_LOGITS", NEVER)
    torch.set_num_threads(threads)
    tensors, mask = make_inputs(size, direction != "forward")
    error = assert_agrees(method, tensors, mask, queries)
    benchmark.group = f"partial_nonlocal {size}, {queries}, {direction}, {threads} threads"
    benchmark.pedantic(run, (method, tensors, mask, queries), rounds=ROUNDS)

    flops = 2 * 2 * batch * n_queries * n_keys * depth  # forward, all pairs: two products
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        dtype="float32",
        torch=torch.__version__,
        relative_error=error,
        megabytes_moved=4 * batch * (2 * n_queries + 2 * n_keys) * depth / 1e6,
    )
    if benchmark.stats is not None and direction == "forward":
        benchmark.extra_info["gflop_per_s"] = flops / benchmark.stats.stats.median / 1e9


def measure(method: str, n_cells: int, direction: str) -> dict[str, float | None]:
    """Seconds, the least, and what is held beside the inputs, on one thread."""
    torch.set_num_threads(1)
    if method == "biased":
        MODULE.GATHER_LOGITS = NEVER
    tensors, mask = make_inputs((1, n_cells, n_cells, DEPTH), direction != "forward")
    before = peak_megabytes()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(method, tensors, mask, "all")
        seconds.append(time.perf_counter() - start)
    after = peak_megabytes()
    extra = None if before is None or after is None else after - before
    return {"seconds": min(seconds), "extra_mb": extra}


if __name__ == "__main__":
    match sys.argv[1:]:
        case [method, cells, direction] if method in METHODS and direction in DIRECTIONS:
            sys.stdout.write(json.dumps(measure(method, int(cells), direction)) + "\n")
        case _:
            names = f"{'|'.join(METHODS)} CELLS {'|'.join(DIRECTIONS)}"
            sys.exit(f"usage: bench_partial_nonlocal.py {names}")
