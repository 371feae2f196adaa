"""A training step on the CPU: forward and backward, no loss, no optimizer.

pytest benchmarks/bench_training_step.py
pytest benchmarks/bench_training_step.py -k "trunk_64 and instance"

`trunk_64` and `trunk_128` are residual blocks of that width on 64 x 64 cells, batch 8; `mapping` is
the default network's mapping at its training's batch and crop. Gradients of the input and of every
parameter are held to float64 before the timing: the worst may be off by a multiple of what the
plain PyTorch reference's worst is in float32. Most of that is ReLUs whose input is nearly zero and
falls on either side: each moves a gradient by about one element's share of its length. What is
reported is the typical error instead, the median over the input's gradient.
"""

from collections.abc import Callable
from typing import Any

import alone
import machine
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oldrestore.layers import residual_blocks
from oldrestore.mapping import STRIDE_PX, MappingConfig, MappingNetwork
from oldrestore.ops import available, set_backend
from oldrestore.train.config import MappingSettings

TRUNK_BLOCKS = 4
TRUNK_SHAPE = (8, 64, 64)  # batch, height, width
DAMAGED_SHARE = 0.08
ROUNDS = 7
MOST_REFERENCE_ERRORS = 8.0  # which ReLUs fall otherwise is chance; a wrong gradient is all wrong
NETWORKS = ("trunk_64", "trunk_128", "mapping")
WAYS = ("ours", "cpp", "reference", "reference channels_last", "torch.compile")
PADDINGS = {"none": "zero", "instance": "reflect"}  # of the default and the published networks


def make(network: str, norm: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, its weights drawn from one seed, and its inputs; the first gets a gradient."""
    torch.manual_seed(0)
    if network == "mapping":
        settings, config = MappingSettings(), MappingConfig()
        mapping = MappingNetwork(config)
        nn.init.kaiming_normal_(mapping.tail.weight)  # zero at first: no gradient would pass
        side = settings.crop_px // STRIDE_PX
        latent = torch.randn(settings.batch, config.latent_channels, side, side)
        mask = torch.rand(settings.batch, 1, settings.crop_px, settings.crop_px) < DAMAGED_SHARE
        return mapping, (latent, mask.float())
    channels = int(network.removeprefix("trunk_"))
    batch, height, width = TRUNK_SHAPE
    trunk = residual_blocks(
        channels, TRUNK_BLOCKS, norm=None if norm == "none" else norm, padding=PADDINGS[norm]
    )
    return trunk, (torch.randn(batch, channels, height, width),)


def step(model: Callable[..., Tensor], wanted: list[Tensor], inputs: tuple[Tensor, ...]) -> Any:
    """The gradients of ``wanted`` for a fixed gradient of the output; ones would pass no norm."""
    out = model(*inputs)
    generator = torch.Generator().manual_seed(0)
    # one float32 draw, repeated in every dtype and memory format
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return torch.autograd.grad(out, wanted, grad)


def load(network: str, norm: str, way: str, threads: int) -> alone.Loaded:
    """A way to make the step, after its gradients were found right."""
    torch.set_num_threads(threads)
    model, inputs = make(network, norm)
    inputs[0].requires_grad_()
    truth = _gradients(network, norm, torch.float64)
    reference = _gradients(network, norm, torch.float32)
    plain = _worst_error(reference, truth)
    element = inputs[0].numel() ** -0.5
    if "channels_last" in way:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's
        first = inputs[0].detach().contiguous(memory_format=torch.channels_last)
        inputs = (first.requires_grad_(), *inputs[1:])
    backends = {"ours": None, "cpp": "cpp"}
    set_backend(model, backends.get(way, "reference"))
    wanted = [inputs[0], *model.parameters()]
    run: Any = torch.compile(model) if way == "torch.compile" else model
    found = step(run, wanted, inputs)
    error = _worst_error(found, truth)
    if not error <= MOST_REFERENCE_ERRORS * max(plain, element):  # NaN too
        raise AssertionError(f"{way}: off by {error:.1e}, the reference by {plain:.1e}")
    typical = (found[0] - truth[0]).abs().median() / (reference[0] - truth[0]).abs().median()
    return lambda: step(run, wanted, inputs), {"eager_errors": float(typical)}


def _gradients(network: str, norm: str, dtype: torch.dtype) -> Any:
    model, inputs = make(network, norm)
    set_backend(model, "reference")
    model = model.to(dtype)
    first, *others = (x.to(dtype) for x in inputs)
    first.requires_grad_()
    return step(model, [first, *model.parameters()], (first, *others))


def _worst_error(found: Any, truth: Any) -> float:
    """Of the gradients, each relative to its length.

    Left out are biases in front of an instance norm: their gradient is zero but for rounding.
    """
    least = torch.finfo(torch.float32).eps * max(float(b.norm()) for b in truth)
    pairs = [(a.double(), b) for a, b in zip(found, truth, strict=True) if b.norm() > least]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def gflop(network: str, norm: str) -> float:
    """Direct convolutions and products, forward and backward."""
    model, inputs = make(network, norm)
    set_backend(model, "reference")
    inputs[0].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(*inputs).sum().backward()
    return float(counter.get_total_flops()) / 1e9


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize("norm", PADDINGS)
@pytest.mark.parametrize("network", NETWORKS)
def bench_training_step(
    benchmark: BenchmarkFixture, network: str, norm: str, threads: int, way: str
) -> None:
    if network == "mapping" and norm != "none":
        pytest.skip("the default network has no norm")
    if way == "cpp" and network == "mapping":
        pytest.skip("not every operation of the mapping network has a native backend")
    if way == "cpp" and "cpp" not in available("residual_block"):
        pytest.skip("the native extension oldrestore._C is not built")
    benchmark.group = f"training step, {network}, norm {norm}, {threads} threads"
    alone.bench(benchmark, load, (network, norm, way, threads), ROUNDS)
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = gflop(network, norm) / benchmark.stats.stats.median
        benchmark.extra_info.update(gflop_per_s=rate, device=machine.processor())
