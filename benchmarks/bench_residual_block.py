"""The residual block, every backend: pytest benchmarks/bench_residual_block.py

One group per shape and number of threads. The reference is given its best conditions: NCHW, and
channels_last with the weights in that order too.
"""

import platform

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

SHAPES = [(1, 64, 256, 256), (1, 96, 256, 256), (1, 128, 128, 128), (1, 32, 512, 512)]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
MOST_RELATIVE_ERROR = 2e-5  # of the largest value, float32 against float64


def make_inputs(shape: tuple[int, ...], memory_format: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]

    def weight() -> Tensor:
        scale = 1 / (3 * channels**0.5)
        return scale * torch.randn(channels, channels, 3, 3, generator=generator)

    x = torch.randn(*shape, generator=generator)
    tensors = [x, weight(), torch.randn(channels), weight(), torch.randn(channels)]
    return [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in tensors]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ops.available("residual_block"))
@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_residual_block(
    benchmark: BenchmarkFixture,
    shape: tuple[int, ...],
    threads: int,
    norm: str | None,
    backend: str,
    layout: str,
) -> None:
    torch.set_num_threads(threads)
    inputs = make_inputs(shape, LAYOUTS[layout])

    def run(backend: str, tensors: list[Tensor]) -> Tensor:
        return ops.residual_block(*tensors, norm=norm, padding="zero", backend=backend)

    with torch.no_grad():
        truth = run("reference", [t.double() for t in inputs])
        error = (run(backend, inputs) - truth).abs().max() / truth.abs().max()
        assert error <= MOST_RELATIVE_ERROR
        del truth
        benchmark.group = f"residual_block {shape}, norm {norm}, {threads} threads"
        benchmark.pedantic(run, (backend, inputs), rounds=15, warmup_rounds=2)

    batch, channels, height, width = shape
    flops = 2 * 2 * 9 * batch * channels**2 * height * width  # two direct 3x3 convolutions
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        dtype="float32",
        torch=torch.__version__,
        relative_error=error.item(),
        megabytes_moved=4 * 5 * inputs[0].numel() / 1e6,  # x twice, the map between twice, out
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gflop_per_s"] = flops / benchmark.stats.stats.median / 1e9
