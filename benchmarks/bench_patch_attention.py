"""Patch attention, every backend: pytest benchmarks/bench_patch_attention.py

python benchmarks/bench_patch_attention.py chunked 256 2    # seconds, extra MB, alone

Sizes: the HR variant's latents, 512 channels at a quarter of the photo's side, with its patches.
"""

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

METHODS = ops.available("patch_attention")
CHANNELS = 512
SIDES = [64, 256]  # of the latent, in cells: photos of 256 and 1024 px
PATCH_SIZES = [8, 4, 2]
DIRECTIONS = ("forward", "forward+backward")
DAMAGED_SHARE = 0.05  # of the patches
ROUNDS = 3  # the agreement warms up


def make_inputs(side: int, patch_size: int, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, side, side, generator=generator)
    patches = torch.rand(1, 1, side // patch_size, side // patch_size, generator=generator)
    mask = (patches < DAMAGED_SHARE).float()
    mask = mask.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    return x.requires_grad_(needs_gradient), mask


def run(method: str, x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    out = ops.patch_attention(x, mask, patch_size, backend=method)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), x)
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("patch_size", PATCH_SIZES)
@pytest.mark.parametrize("side", SIDES)
def bench_patch_attention(
    benchmark: BenchmarkFixture,
    side: int,
    patch_size: int,
    threads: int,
    direction: str,
    method: str,
) -> None:
    torch.set_num_threads(threads)
    x, mask = make_inputs(side, patch_size, direction != "forward")
    slow = ops.patch_attention(x.detach(), mask, patch_size, backend="reference")
    assert torch.equal(run(method, x, mask, patch_size), slow)  # nothing is nearly tied here
    del slow
    benchmark.group = f"patch_attention {tuple(x.shape)}, {patch_size=}, {direction}, {threads=}"
    benchmark.pedantic(run, (method, x, mask, patch_size), rounds=ROUNDS)

    cells = float(mask.sum())
    flops = 2 * cells / patch_size**2 * side**2 * CHANNELS  # damaged with all patches
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        dtype="float32",
        torch=torch.__version__,
        megabytes_moved=2 * 4 * x.numel() / 1e6,
    )
    if benchmark.stats is not None and direction == "forward":
        benchmark.extra_info["gflop_per_s"] = flops / benchmark.stats.stats.median / 1e9


def measure(method: str, side: int, patch_size: int) -> dict[str, float | None]:
    """Seconds, the least, and what is held beside the input (with the output), on one thread."""
    torch.set_num_threads(1)
    x, mask = make_inputs(side, patch_size, False)
    before = peak_megabytes()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(method, x, mask, patch_size)
        seconds.append(time.perf_counter() - start)
    after = peak_megabytes()
    extra = None if before is None or after is None else after - before
    return {"seconds": min(seconds), "extra_mb": extra}


if __name__ == "__main__":
    match sys.argv[1:]:
        case [method, side, patch_size] if method in METHODS:
            sys.stdout.write(json.dumps(measure(method, int(side), int(patch_size))) + "\n")
        case _:
            sys.exit(f"usage: bench_patch_attention.py {'|'.join(METHODS)} SIDE PATCH_SIZE")
