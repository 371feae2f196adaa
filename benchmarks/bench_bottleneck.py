"""MobileNetV2's block, every backend: pytest benchmarks/bench_bottleneck.py

One group per block and number of threads. The blocks are those of the detector's refiner that take
longest, on the maps of a photo of one megapixel.
"""

import machine
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

# channels in and out, expansion, side, stride
BLOCKS = [(16, 24, 6, 512, 2), (24, 24, 6, 256, 1), (32, 32, 6, 128, 1), (96, 96, 6, 64, 1)]
MOST_RELATIVE_ERROR = 2e-6  # of the largest value, float32 against float64
ROUNDS = 11


@pytest.mark.parametrize("backend", ops.available("bottleneck"))
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def bench_bottleneck(
    benchmark: BenchmarkFixture, block: tuple[int, ...], threads: int, backend: str
) -> None:
    torch.set_num_threads(threads)
    channels_in, channels_out, expansion, side_px, stride = block
    width = channels_in * expansion
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, depth: int = 1) -> Tensor:
        return torch.randn(*shape, generator=generator) / depth**0.5

    operands = (
        normal(1, channels_in, side_px, side_px),
        normal(width, channels_in, 1, 1, depth=channels_in),
        normal(width),
        normal(width, 1, 3, 3, depth=9),
        normal(width),
        normal(channels_out, width, 1, 1, depth=width),
        normal(channels_out),
    )

    @torch.inference_mode()
    def run(backend: str, dtype: torch.dtype = torch.float32) -> Tensor:
        x, *parameters = (x.to(dtype) for x in operands)
        is_residual = stride == 1
        return ops.bottleneck(
            x, *parameters, stride=stride, is_residual=is_residual, backend=backend
        )

    truth = run("reference", torch.float64)
    error = float((run(backend) - truth).abs().max() / truth.abs().max())
    assert error <= MOST_RELATIVE_ERROR
    kind = f"{channels_in} to {width} to {channels_out}, stride {stride}"
    benchmark.group = f"bottleneck {side_px} px, {kind}, {threads} threads"
    benchmark.pedantic(run, (backend,), rounds=ROUNDS, warmup_rounds=2)
    cells = side_px**2
    products = channels_in * width + (9 * width + width * channels_out) / stride**2
    benchmark.extra_info.update(
        device=machine.processor(),
        dtype="float32",
        versions=machine.versions(),
        relative_error=error,
        gflop_per_s=2 * cells * products / benchmark.stats.stats.median / 1e9,
    )
