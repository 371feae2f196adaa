"""The whole published network, holes included, beside itself in eager PyTorch, on two threads:

pytest benchmarks/bench_paper.py                 # 256 px: every way, as ratios
python benchmarks/bench_paper.py ours 1024       # seconds and peak memory, in a process alone
python benchmarks/bench_paper.py reference 1024  # our networks in plain PyTorch
python benchmarks/bench_paper.py eager 512       # the published structure in eager PyTorch

Weights are untrained: they change neither time nor memory.
"""

import functools
import json
import platform
import sys
import time
from collections.abc import Callable

import pytest
import torch
from process_memory import peak_megabytes
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.config import PaperConfig
from oldrestore.layers import ConvNormAct, ResidualBlock
from oldrestore.pipeline import Restorer

WAYS = ("ours", "reference", "eager")
SIDE_PX = 256
THREADS = 2
ROUNDS = 5
HOLE_SHARE = 0.08  # of the latent cells
RATIO = 1e-3  # by which outputs in [-1, 1] may differ: rounding, multiplied by the attention


@functools.cache
def photo(side_px: int) -> tuple[Tensor, Tensor]:
    """Noise, and a mask of whole cells."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, side_px, side_px, generator=generator) * 2 - 1
    cells = torch.rand(1, 1, side_px // 4, side_px // 4, generator=generator) < HOLE_SHARE
    return image, cells.float().repeat_interleave(4, 2).repeat_interleave(4, 3)


@functools.cache
def restorer() -> Restorer:
    torch.manual_seed(0)
    return Restorer(PaperConfig(mask=None), device="cpu")


class Eager(nn.Module):
    """The published structure, module by module and with its N x N matrices, on our weights."""

    def __init__(self, ours: Restorer) -> None:
        super().__init__()
        self.encoder = _eager(ours.vae_old_encoder)
        self.head = _eager(ours.mapping.get_submodule("head"))
        self.block, *trunk = ours.mapping.get_submodule("trunk")
        self.block_trunk = _eager(self.block.get_submodule("blocks"))
        self.trunk = _eager(nn.Sequential(*trunk))
        self.tail = _eager(ours.mapping.get_submodule("tail"))
        self.decoder = _eager(ours.vae_clean_decoder)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.head(self.encoder(image * (1 - mask) + mask))
        x = self.trunk(self.attend(x, mask))
        restored: Tensor = self.decoder(self.tail(x))
        return restored

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        size, cells = x.shape[2:], x.shape[2] * x.shape[3]
        g, theta, phi = (
            layer(x).flatten(2) for layer in (self.block.mu, self.block.theta, self.block.phi)
        )
        affinity = F.softmax(theta.transpose(1, 2) @ phi / 1.0, dim=2)
        touched = F.interpolate(mask, size, mode="bilinear")
        touched[touched > 0] = 1.0
        intact = (1 - touched) * F.interpolate(1 - mask, size)
        affinity = intact.view(len(x), 1, -1).repeat(1, cells, 1) * affinity
        affinity = F.normalize(affinity, p=1, dim=2)
        y = (affinity @ g.transpose(1, 2)).transpose(1, 2).contiguous().view(x.shape)
        y = self.block_trunk(self.block.nu(y))
        intact = intact.repeat(1, x.shape[1], 1, 1)
        return intact * x + (1 - intact) * y


class _Residual(nn.Module):
    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        width = block.conv1.out_channels
        self.branch = nn.Sequential(
            nn.ReflectionPad2d(1),
            block.conv1,
            nn.InstanceNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            block.conv2,
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _eager(layers: nn.Module) -> nn.Sequential:
    """Our layers as the plain modules of the published code; the parameters are shared."""
    plain: list[nn.Module] = []
    for layer in layers.children():
        if isinstance(layer, ResidualBlock):
            plain.append(_Residual(layer))
        elif isinstance(layer, ConvNormAct):
            width = layer.conv.out_channels
            plain += [layer.conv, nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]
        else:
            plain.append(layer)
    return nn.Sequential(*plain)


def way(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A way to restore (image, mask) -> restored."""
    ours = restorer()
    if name == "eager":
        return torch.inference_mode()(Eager(ours))
    if name == "reference":
        ours = Restorer(ours.config, device="cpu", backend="reference")
        for key, network in ours.networks().items():
            network.load_state_dict(restorer().networks()[key].state_dict())
    return ours.restore_tensor


@functools.cache
def assert_ways_agree() -> None:
    image, mask = photo(SIDE_PX)
    expected = way("eager")(image, mask)
    for name in WAYS[:-1]:
        assert (way(name)(image, mask) - expected).abs().max() <= RATIO


@pytest.mark.parametrize("name", WAYS)
def bench_paper(benchmark: BenchmarkFixture, name: str) -> None:
    torch.set_num_threads(THREADS)
    assert_ways_agree()
    benchmark.group = f"published scratch network, {SIDE_PX} x {SIDE_PX}, {THREADS} threads"
    benchmark.pedantic(way(name), photo(SIDE_PX), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        torch=torch.__version__,
    )


def measure(name: str, side_px: int) -> dict[str, float | None]:
    """Seconds of one photo, the second of two, and the peak memory of the process."""
    torch.set_num_threads(THREADS)
    run, operands = way(name), photo(side_px)
    before = peak_megabytes()
    run(*photo(64))
    start = time.perf_counter()
    run(*operands)
    return {
        "seconds": time.perf_counter() - start,
        "peak_mb": peak_megabytes(),
        "peak_mb_before": before,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WAYS or not sys.argv[2].isdigit():
        sys.exit(f"usage: python benchmarks/bench_paper.py {'|'.join(WAYS)} SIDE")
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))) + "\n")
