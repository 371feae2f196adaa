"""Partial nonlocal attention, every backend: pytest benchmarks/bench_partial_nonlocal.py

Sizes: the compact network's neighbourhoods (many small problems) and the published network's whole
map (one large problem, depth 512). One group per size and direction.
"""

import platform

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

SIZES = [(64, 64, 256, 64), (256, 64, 256, 64), (1, 1024, 1024, 512), (1, 4096, 4096, 512)]
DAMAGED_SHARE = 0.08  # of the cells of a scratched photo
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


@pytest.mark.parametrize("backend", ops.available("partial_nonlocal"))
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_partial_nonlocal(
    benchmark: BenchmarkFixture,
    size: tuple[int, ...],
    threads: int,
    direction: str,
    backend: str,
) -> None:
    torch.set_num_threads(threads)
    is_backward = direction != "forward"
    tensors, mask = make_inputs(size, is_backward)

    def run(backend: str, tensors: list[Tensor], mask: Tensor) -> Tensor:
        out = ops.partial_nonlocal(*tensors, mask, backend=backend)
        if is_backward:
            torch.autograd.grad(out.sum(), tensors)
        return out

    truth = run("reference", [t.double() for t in tensors], mask.double()).detach()
    error = (run(backend, tensors, mask).detach() - truth).abs().max() / truth.abs().max()
    assert error <= MOST_RELATIVE_ERROR
    del truth
    benchmark.group = f"partial_nonlocal {size}, {direction}, {threads} threads"
    benchmark.pedantic(run, (backend, tensors, mask), rounds=5, warmup_rounds=1)

    batch, n_queries, n_keys, depth = size
    flops = 2 * 2 * batch * n_queries * n_keys * depth  # forward: two products
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        dtype="float32",
        torch=torch.__version__,
        relative_error=error.item(),
        megabytes_moved=4 * batch * (2 * n_queries + 2 * n_keys) * depth / 1e6,
    )
    if benchmark.stats is not None and not is_backward:
        benchmark.extra_info["gflop_per_s"] = flops / benchmark.stats.stats.median / 1e9
