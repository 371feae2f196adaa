"""The blocks that the networks share: residual block and partial nonlocal block.

No layer here takes a statistic over the whole map, so a photo gives the same result whole or in
tiles that overlap by the networks' ``context_px``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.ops import partial_nonlocal, residual_block

# The second convolution of a block starts this much smaller: a fresh block is near the identity,
# without which deep stacks that have no normalisation do not train (Zhang et al., Fixup, 2019).
BRANCH_INIT_SCALE = 0.1


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3, at constant width; optionally with instance norm.

    Args:
        channels: width of the map.
        norm: "instance" (the published networks) or None.
        padding: "reflect" (the published networks) or "zero".
    """

    def __init__(self, channels: int, *, norm: str | None = None, padding: str = "zero") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.norm = norm
        self.padding = padding
        self.backend: str | None = None
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight)
        with torch.no_grad():
            self.conv2.weight.mul_(BRANCH_INIT_SCALE)
        for conv in (self.conv1, self.conv2):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return residual_block(
            x,
            self.conv1.weight,
            self.conv1.bias,
            self.conv2.weight,
            self.conv2.bias,
            norm=self.norm,
            padding=self.padding,
            backend=self.backend,
        )


def residual_blocks(channels: int, count: int) -> nn.Sequential:
    """``count`` residual blocks in a row; none gives the identity."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class Downsample(nn.Conv2d):
    """2x2 convolution of stride 2: halves the map without looking over the cell's border."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 2, stride=2)


class Upsample(nn.Sequential):
    """1x1 convolution and pixel shuffle: doubles the map without looking over the cell's border."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(nn.Conv2d(channels_in, 4 * channels_out, 1), nn.PixelShuffle(2))


class PartialNonlocal(nn.Module):
    """Fill damaged cells from the undamaged cells of their neighbourhood.

        O_i = sum_j s_ij mu(F_j),   s_ij = (1-m_j) exp(theta(F_i).phi(F_j)) / sum_k (1-m_k) exp(..)
        F_fused = F + m * nu(O)

    The partial nonlocal block of Wan et al., CVPR 2020, section 3.3, with two differences. The keys
    of a damaged cell are the undamaged cells of its ``block`` x ``block`` block and of a border of
    ``halo`` cells round it, not of the whole photo, so that memory is linear in the photo and tiles
    equal the whole. And the damaged cell keeps its own features beside what it receives: at eight
    pixels a cell, a cell that a hair touches is still mostly picture.

    Args:
        channels: width of the map.
        attention_channels: width of theta and phi.
        block: side of a query block, in cells.
        halo: border of the keys round a block, in cells.
    """

    def __init__(
        self,
        channels: int,
        attention_channels: int = 32,
        *,
        block: int = 8,
        halo: int = 8,
    ) -> None:
        super().__init__()
        self.block = block
        self.halo = halo
        self.theta = nn.Conv2d(channels, attention_channels, 1)
        self.phi = nn.Conv2d(channels, attention_channels, 1)
        self.mu = nn.Conv2d(channels, channels, 1)
        self.nu = nn.Conv2d(channels, channels, 1)
        self.backend: str | None = None
        with torch.no_grad():
            self.nu.weight.mul_(BRANCH_INIT_SCALE)

    @property
    def context_cells(self) -> int:
        """How far, in cells, a key can be from its query."""
        return self.block - 1 + self.halo

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Fuse the received features where the mask says so.

        Args:
            features: (B, C, H, W).
            mask: (B, 1, H, W) in [0, 1]; 1 = damaged.

        Returns:
            (B, C, H, W); cells with mask 0 are untouched.
        """
        height, width = features.shape[-2:]
        pad_h, pad_w = -height % self.block, -width % self.block
        queries = F.pad(self.theta(features), (0, pad_w, 0, pad_h))
        border = (self.halo, self.halo + pad_w, self.halo, self.halo + pad_h)
        keys = F.pad(self.phi(features), border)
        values = F.pad(self.mu(features), border)
        barred = F.pad(mask, border, value=1.0)  # what lies outside the photo is no key
        damaged = F.pad(mask, (0, pad_w, 0, pad_h))

        window = self.block + 2 * self.halo
        batch, row, column = torch.nonzero(
            _windows(damaged, self.block, self.block).amax(dim=(3, 4, 5)) > 0,
            as_tuple=True,
        )

        def gather(x: Tensor, size: int) -> Tensor:
            return _windows(x, size, self.block)[batch, row, column].flatten(1, 2)

        scale = self.theta.out_channels**-0.5
        received = partial_nonlocal(
            gather(queries, self.block) * scale,
            gather(keys, window),
            gather(values, window),
            gather(barred, window).squeeze(-1),
            backend=self.backend,
        )  # (blocks, block * block, C)
        rows, columns = (height + pad_h) // self.block, (width + pad_w) // self.block
        whole = received.new_zeros(
            len(features), rows, columns, self.block, self.block, received.shape[-1]
        )
        received = received.reshape(-1, self.block, self.block, received.shape[-1])
        whole = whole.index_put((batch, row, column), received)
        whole = whole.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        fused: Tensor = features + mask * self.nu(whole[..., :height, :width])
        return fused


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """(B, C, H, W) -> view (B, rows, columns, size, size, C) of its windows."""
    return x.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 4, 5, 1)
