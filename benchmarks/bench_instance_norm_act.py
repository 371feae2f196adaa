"""Norm and activation alone, every backend: pytest benchmarks/bench_instance_norm_act.py

One group per shape and number of threads, forward and backward. The shapes are those of the
published encoder and decoder at a 256 px photo, behind convolutions of sizes 7 and 4.
"""

import machine
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

SIDES_PX = (64, 128, 256)
CHANNELS = 64
MOST_RELATIVE_ERROR = 2e-6  # of the largest value, float32 against float64
ROUNDS = 21


@pytest.mark.parametrize("backend", ops.available("instance_norm_act"))
@pytest.mark.parametrize("with_gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize("side_px", SIDES_PX)
def bench_instance_norm_act(
    benchmark: BenchmarkFixture, side_px: int, threads: int, with_gradients: bool, backend: str
) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 1, CHANNELS, side_px, side_px, generator=generator)

    def run(backend: str, dtype: torch.dtype) -> Tensor:
        leaf = x.detach().to(dtype).requires_grad_(with_gradients)
        out = ops.instance_norm_act(leaf, slope=0.0, backend=backend)
        return torch.autograd.grad(out, leaf, grad.to(dtype))[0] if with_gradients else out

    truth = run("reference", torch.float64)
    error = float((run(backend, torch.float32) - truth).abs().max() / truth.abs().max())
    assert error <= MOST_RELATIVE_ERROR
    kind = "with gradients" if with_gradients else "forward"
    benchmark.group = f"instance_norm_act {tuple(x.shape)} {kind}, {threads} threads"
    benchmark.pedantic(run, (backend, torch.float32), rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info.update(
        device=machine.processor(),
        dtype="float32",
        versions=machine.versions(),
        relative_error=error,
        megabytes_moved=4 * x.numel() * (5 if with_gradients else 2) / 1e6,
    )
