"""The residual block, every backend and every runtime: pytest benchmarks/bench_residual_block.py

One group per kind of block, shape and number of threads, forward and backward. Eager PyTorch is
given its best conditions: NCHW, and channels_last with the weights in that order too. The runtimes
get the same block, exported once; they take NCHW.
"""

from pathlib import Path

import machine
import pytest
import rivals
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from oldrestore import ops

# norm, padding: of the compact networks, and of the published ones
KINDS = {"plain": (None, "zero"), "published": ("instance", "reflect")}
SHAPES = {
    "plain": [(1, 64, 256, 256), (1, 128, 128, 128), (1, 32, 512, 512)],
    "published": [(1, 64, 256, 256), (1, 512, 64, 64), (1, 512, 128, 128)],
}
TRAINING_SHAPES = [(8, 64, 64, 64), (8, 128, 64, 64)]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
MOST_RELATIVE_ERROR = 2e-5  # of the largest value, float32 against float64
# of a few elements of a gradient: a ReLU whose input is all but zero falls on either side, and its
# whole gradient comes or goes (away from those cells the error is 1e-6 here)
MOST_TURNED_ERROR = 0.05
ROUNDS = 11


def make_inputs(shape: tuple[int, ...], memory_format: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]

    def weight() -> Tensor:
        scale = 1 / (3 * channels**0.5)
        return scale * torch.randn(channels, channels, 3, 3, generator=generator)

    x = torch.randn(*shape, generator=generator)
    tensors = [x, weight(), torch.randn(channels), weight(), torch.randn(channels)]
    return [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in tensors]


class Block(nn.Module):
    """The block as a graph for the runtimes."""

    def __init__(self, inputs: list[Tensor], norm: str | None, padding: str) -> None:
        super().__init__()
        channels = inputs[0].shape[1]
        mode = {"reflect": "reflect", "zero": "zeros"}[padding]
        layers: list[nn.Module] = []
        for weight, bias in (inputs[1:3], inputs[3:5]):
            conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=mode)
            conv.load_state_dict({"weight": weight, "bias": bias})
            layers += [conv, nn.InstanceNorm2d(channels) if norm else nn.Identity(), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def describe(
    benchmark: BenchmarkFixture, shape: tuple[int, ...], threads: int, passes: int
) -> None:
    """Add machine, versions and rates: ``passes`` direct convolutions of the two, in FLOPs."""
    batch, channels, height, width = shape
    flops = passes * 2 * 2 * 9 * batch * channels**2 * height * width
    peak = machine.fma_gflops(threads)
    benchmark.extra_info.update(
        device=machine.processor(), dtype="float32", versions=machine.versions(), fma_gflops=peak
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = flops / benchmark.stats.stats.median / 1e9
        benchmark.extra_info.update(
            gflop_per_s=rate, of_fma_peak=None if peak is None else rate / peak
        )


def cases() -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", [*ops.available("residual_block"), *rivals.RUNTIMES])
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize(("kind", "shape"), cases(), ids=str)
def bench_residual_block(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    kind: str,
    shape: tuple[int, ...],
    threads: int,
    way: str,
    layout: str,
) -> None:
    torch.set_num_threads(threads)
    norm, padding = KINDS[kind]
    inputs = make_inputs(shape, LAYOUTS[layout])
    arguments = tuple(inputs)
    if way in rivals.RUNTIMES:
        if layout != "nchw":
            pytest.skip("the runtimes take NCHW")
        missing = rivals.RUNTIMES[way].missing()
        if missing is not None:
            pytest.skip(missing)
        arguments = (inputs[0],)
        graph = Block(inputs, norm, padding).eval().requires_grad_(False)
        rivals.RUNTIMES[way].export(graph, arguments, tmp_path)
        run = rivals.RUNTIMES[way].load(tmp_path, threads)
    else:

        def run(*tensors: Tensor) -> Tensor:
            return ops.residual_block(*tensors, norm=norm, padding=padding, backend=way)

    with torch.no_grad():
        doubles = [t.double() for t in inputs]
        truth = ops.residual_block(*doubles, norm=norm, padding=padding, backend="reference")
        error = float((run(*arguments) - truth).abs().max() / truth.abs().max())
        assert error <= MOST_RELATIVE_ERROR
        del truth, doubles
        benchmark.group = f"residual_block {kind} {shape}, {threads} threads"
        benchmark.pedantic(run, arguments, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["relative_error"] = error
    # x twice, the map between twice, out
    benchmark.extra_info["megabytes_moved"] = 4 * 5 * inputs[0].numel() / 1e6
    describe(benchmark, shape, threads, passes=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ops.available("residual_block"))
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TRAINING_SHAPES, ids=str)
def bench_residual_block_with_gradients(
    benchmark: BenchmarkFixture,
    shape: tuple[int, ...],
    kind: str,
    threads: int,
    backend: str,
    layout: str,
) -> None:
    torch.set_num_threads(threads)
    norm, padding = KINDS[kind]
    inputs = make_inputs(shape, LAYOUTS[layout])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    grad = grad.contiguous(memory_format=LAYOUTS[layout])

    def step(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        out = ops.residual_block(*leaves, norm=norm, padding=padding, backend=backend)
        return torch.autograd.grad(out, leaves, grad.to(dtype))

    truth = step("reference", torch.float64)
    for i, (got, expected) in enumerate(zip(step(backend, torch.float32), truth, strict=True)):
        if norm is not None and inputs[i].ndim == 1:
            continue  # a bias before a normalisation: its gradient is rounding alone
        error = (got - expected).abs() / expected.abs().max()
        assert error.max() <= MOST_TURNED_ERROR
        assert error.median() <= MOST_RELATIVE_ERROR
    del truth
    benchmark.group = f"residual_block with gradients {kind} {shape}, {threads} threads"
    benchmark.pedantic(step, (backend, torch.float32), rounds=ROUNDS, warmup_rounds=2)
    describe(benchmark, shape, threads, passes=3)
