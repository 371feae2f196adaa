"""The convolution outside blocks, every backend: pytest benchmarks/bench_conv_norm_act.py

One group per shape and number of threads, forward and backward. The shapes are those of the
published mapping's head and tail at a 256 px photo, and of a network's first and last layers.
"""

import machine
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from oldrestore import ops

# batch, channels in and out, height, width; norm, padding and slope as the networks have them
LAYERS = {
    "published head 512": ((1, 512, 512, 64, 64), "instance", "zero", 0.0),
    "published head 64": ((1, 64, 128, 64, 64), "instance", "zero", 0.0),
    "compact head": ((1, 12, 32, 256, 256), None, "zero", None),
    "compact tail": ((1, 64, 64, 128, 128), None, "zero", None),
    "compact image": ((1, 32, 12, 256, 256), None, "zero", None),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
MOST_RELATIVE_ERROR = 2e-5  # of the largest value, float32 against float64
ROUNDS = 11


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ops.available("conv_norm_act"))
@pytest.mark.parametrize("with_gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("threads", machine.thread_counts())
@pytest.mark.parametrize("layer", LAYERS)
def bench_conv_norm_act(
    benchmark: BenchmarkFixture,
    layer: str,
    threads: int,
    with_gradients: bool,
    backend: str,
    layout: str,
) -> None:
    torch.set_num_threads(threads)
    (batch, channels_in, channels_out, height, width), norm, padding, slope = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    memory_format = LAYOUTS[layout]
    x = torch.randn(batch, channels_in, height, width, generator=generator)
    weight = torch.randn(channels_out, channels_in, 3, 3, generator=generator)
    weight = weight / (3 * channels_in**0.5)
    grad = torch.randn(batch, channels_out, height, width, generator=generator)
    x, weight, grad = (t.contiguous(memory_format=memory_format) for t in (x, weight, grad))

    def run(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_(with_gradients) for t in (x, weight)]
        kwargs = {"norm": norm, "padding": padding, "slope": slope, "backend": backend}
        out = ops.conv_norm_act(*leaves, None, **kwargs)
        if not with_gradients:
            return (out,)
        return torch.autograd.grad(out, leaves, grad.to(dtype))

    errors = [
        float((got - truth).abs().max() / truth.abs().max())
        for got, truth in zip(
            run(backend, torch.float32), run("reference", torch.float64), strict=True
        )
    ]
    assert max(errors) <= MOST_RELATIVE_ERROR
    passes = 3 if with_gradients else 1
    kind = "with gradients" if with_gradients else "forward"
    benchmark.group = f"conv_norm_act {layer} {kind}, {threads} threads"
    benchmark.pedantic(run, (backend, torch.float32), rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info.update(
        device=machine.processor(), dtype="float32", versions=machine.versions()
    )
    benchmark.extra_info["relative_error"] = max(errors)
    benchmark.extra_info["megabytes_moved"] = 4 * passes * (x.numel() + grad.numel()) / 1e6
    if benchmark.stats is not None:  # None with --benchmark-disable
        flops = passes * 2 * 9 * batch * channels_in * channels_out * height * width
        benchmark.extra_info["gflop_per_s"] = flops / benchmark.stats.stats.median / 1e9
