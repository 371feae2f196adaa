"""The published scratch network with random weights, as `oldrestore` runs it and as others can.

Weights are drawn from the same seed everywhere; they change neither time nor memory. `Eager` is the
published structure module by module. `Graph` computes the same with fewer passes over the N x N
matrix and none that a runtime cannot take: what the rivals are given.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.config import PaperConfig
from oldrestore.layers import ConvNormAct, ResidualBlock
from oldrestore.pipeline import Restorer

CELL_PX = 4  # pixels a latent cell is wide
HOLE_SHARE = 0.08  # of the latent cells
BARRED = -1e9  # added to the logits of damaged cells: their weights are exactly zero in float32
EXACT_ROWS = 1024  # of the N x N matrix held at a time in float64


@functools.cache
def photo(side_px: int) -> tuple[Tensor, Tensor]:
    """Noise (1, 3, S, S) in [-1, 1], and a mask (1, 1, S, S) of whole cells."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, side_px, side_px, generator=generator) * 2 - 1
    cells = torch.rand(1, 1, side_px // CELL_PX, side_px // CELL_PX, generator=generator)
    mask = (cells < HOLE_SHARE).float()
    return image, mask.repeat_interleave(CELL_PX, 2).repeat_interleave(CELL_PX, 3)


def graph_inputs(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What `Graph` takes: the photo with white holes, and which cells are damaged."""
    return image * (1 - mask) + mask, mask[..., ::CELL_PX, ::CELL_PX].contiguous()


def restorer(backend: str | None = None) -> Restorer:
    torch.manual_seed(0)
    return Restorer(PaperConfig(mask=None), device="cpu", backend=backend)


class Eager(nn.Module):
    """The published structure, module by module and with its N x N matrices, on our weights."""

    def __init__(self, ours: Restorer) -> None:
        super().__init__()
        self.encoder = plain(ours.vae_old_encoder)
        self.head = plain(ours.mapping.get_submodule("head"))
        block, *trunk = ours.mapping.get_submodule("trunk").children()
        self.theta, self.phi = block.get_submodule("theta"), block.get_submodule("phi")
        self.mu, self.nu = block.get_submodule("mu"), block.get_submodule("nu")
        self.block_trunk = plain(block.get_submodule("blocks"))
        self.trunk = plain(nn.Sequential(*trunk))
        self.tail = plain(ours.mapping.get_submodule("tail"))
        self.decoder = plain(ours.vae_clean_decoder)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.head(self.encoder(image * (1 - mask) + mask))
        restored: Tensor = self.decoder(self.tail(self.trunk(self.attend(x, mask))))
        return restored

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        size, cells = x.shape[2:], x.shape[2] * x.shape[3]
        g, theta, phi = (layer(x).flatten(2) for layer in (self.mu, self.theta, self.phi))
        affinity = F.softmax(theta.transpose(1, 2) @ phi / 1.0, dim=2)
        touched = F.interpolate(mask, size, mode="bilinear")
        touched[touched > 0] = 1.0
        intact = (1 - touched) * F.interpolate(1 - mask, size)
        affinity = intact.view(len(x), 1, -1).repeat(1, cells, 1) * affinity
        affinity = F.normalize(affinity, p=1, dim=2)
        y = (affinity @ g.transpose(1, 2)).transpose(1, 2).contiguous().view(x.shape)
        y = self.block_trunk(self.nu(y))
        intact = intact.repeat(1, x.shape[1], 1, 1)
        fused: Tensor = intact * x + (1 - intact) * y
        return fused


class Graph(Eager):
    """The same from `graph_inputs`: damaged cells are barred by their logits, in one softmax."""

    def forward(self, filled: Tensor, damaged: Tensor) -> Tensor:
        x = self.head(self.encoder(filled))
        restored: Tensor = self.decoder(self.tail(self.trunk(self.attend(x, damaged))))
        return restored

    def attend(self, x: Tensor, damaged: Tensor) -> Tensor:
        g, theta, phi = (layer(x).flatten(2) for layer in (self.mu, self.theta, self.phi))
        bias = damaged.flatten(2) * BARRED
        y = self.received(theta.transpose(1, 2), phi, g.transpose(1, 2), bias)
        y = self.block_trunk(self.nu(y.transpose(1, 2).reshape(x.shape)))
        fused: Tensor = (1 - damaged) * x + damaged * y
        return fused

    def received(self, theta: Tensor, phi: Tensor, g: Tensor, bias: Tensor) -> Tensor:
        return (theta @ phi + bias).softmax(2) @ g


class Exact(Graph):
    """`Graph` for float64, where the whole N x N matrix would take gigabytes."""

    def received(self, theta: Tensor, phi: Tensor, g: Tensor, bias: Tensor) -> Tensor:
        rows = torch.split(theta, EXACT_ROWS, dim=1)
        return torch.cat([(part @ phi + bias).softmax(2) @ g for part in rows], dim=1)


class PlainResidual(nn.Module):
    """A residual block as plain modules, with the parameters of ours."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for conv in (block.conv1, block.conv2):
            if block.padding == "reflect":
                layers += [nn.ReflectionPad2d(1), conv]
            else:
                layers += [nn.ZeroPad2d(1), conv]
            if block.norm == "instance":
                layers.append(nn.InstanceNorm2d(conv.out_channels))
            layers.append(nn.ReLU(inplace=True))
        self.branch = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def plain(layers: nn.Module) -> nn.Sequential:
    """Our layers as the plain modules of the published code; the parameters are shared."""
    modules: list[nn.Module] = []
    for layer in layers.children():
        if isinstance(layer, ResidualBlock):
            modules.append(PlainResidual(layer))
        elif isinstance(layer, ConvNormAct):
            modules += [_plain_convolution(layer.conv), nn.InstanceNorm2d(layer.conv.out_channels)]
            modules.append(nn.ReLU(inplace=True))
        elif isinstance(layer, nn.Conv2d):
            modules.append(_plain_convolution(layer))
        else:
            modules.append(layer)
    return nn.Sequential(*modules)


def _plain_convolution(ours: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """torch's own convolution with the parameters of ours."""
    if isinstance(ours, nn.ConvTranspose2d):
        return ours
    plain = nn.Conv2d(
        ours.in_channels,
        ours.out_channels,
        ours.kernel_size,
        ours.stride,
        ours.padding,
        padding_mode=ours.padding_mode,
    )
    plain.weight, plain.bias = ours.weight, ours.bias
    return plain
