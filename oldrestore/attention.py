"""The nonlocal blocks: damaged places take what undamaged ones have.

The `compact` network has the one that looks at a bounded neighbourhood, so that a photo gives the
same result whole or in tiles; the `paper` network those over the whole photo, as published.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import BRANCH_INIT_SCALE, Conv1x1, Conv3x3, ResidualBlock, paper_blocks
from oldrestore.ops import is_static, partial_nonlocal, patch_attention

# the published attention divides by no less than this share of the sum over all cells
PAPER_LEAST_MASS = 1e-12
BLOCKS_AT_ONCE = 64  # of the bounded attention: keys and values of 24 MB at the default sizes


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

    operation = "partial_nonlocal"

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
        self.theta = Conv1x1(channels, attention_channels)
        self.phi = Conv1x1(channels, attention_channels)
        self.mu = Conv1x1(channels, channels)
        self.nu = Conv1x1(channels, channels)
        self.backend: str | None = None
        with torch.no_grad():
            self.nu.weight.mul_(BRANCH_INIT_SCALE)

    @property
    def context_cells(self) -> int:
        """How far, in cells, a key can be from its query."""
        return self.block - 1 + self.halo

    def forward(self, features: Tensor, mask: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """Fuse the received features where the mask says so.

        Args:
            features: (B, C, H, W).
            mask: (B, 1, H, W) in [0, 1]; 1 = damaged.
            above, below: how many of the rows, up to ``halo``, are there as keys alone, where this
                is a part of a map. Nothing of the map lies beyond fewer.

        Returns:
            (B, C, H - above - below, W); cells with mask 0 are untouched.
        """
        height, width = features.shape[2] - above - below, features.shape[3]
        pad_h, pad_w = -height % self.block, -width % self.block
        border = (self.halo, self.halo + pad_w, self.halo - above, self.halo - below + pad_h)
        keys = F.pad(self.phi(features), border)
        values = F.pad(self.mu(features), border)
        barred = F.pad(mask, border, value=1.0)  # what lies outside the photo is no key
        features, mask = (x.narrow(2, above, height) for x in (features, mask))
        queries = F.pad(self.theta(features), (0, pad_w, 0, pad_h))
        damaged = F.pad(mask, (0, pad_w, 0, pad_h))

        window = self.block + 2 * self.halo
        worked_on = _windows(damaged, self.block, self.block).amax(dim=(3, 4, 5)) > 0
        rows, columns = worked_on.shape[1:]
        chosen = None if is_static() else torch.nonzero(worked_on, as_tuple=True)

        def attend(some: tuple[Tensor, ...] | None) -> Tensor:
            def gather(x: Tensor, size: int) -> Tensor:
                blocks = _windows(x, size, self.block)
                return (blocks.flatten(0, 2) if some is None else blocks[some]).flatten(1, 2)

            scale = self.theta.out_channels**-0.5
            return partial_nonlocal(
                gather(queries, self.block) * scale,
                gather(keys, window),
                gather(values, window),
                gather(barred, window).squeeze(-1),
                backend=self.backend,
            )  # (blocks, block * block, C)

        if chosen is None or torch.is_grad_enabled():
            received = attend(chosen)
        else:  # the keys of all at once are many times the map
            parts = zip(*(torch.split(index, BLOCKS_AT_ONCE) for index in chosen), strict=True)
            received = torch.cat([attend(some) for some in parts])
        shape = (len(features), rows, columns, self.block, self.block, received.shape[-1])
        if chosen is None:
            whole = received.reshape(shape)
        else:
            whole = received.new_zeros(shape)
            whole = whole.index_put(chosen, received.reshape(-1, *shape[3:]))
        whole = whole.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        fused: Tensor = features + mask * self.nu(whole.narrow(2, 0, height).narrow(3, 0, width))
        return fused


class GlobalNonlocal(nn.Module):
    """The partial nonlocal block of Wan et al., CVPR 2020, section 3.3, as published.

        O_i = sum_j s_ij mu(F_j)     over all intact cells j of the photo; s as in `PartialNonlocal`
        F_fused = (1 - m) * F + m * rho(nu(O))

    Here rho, the global branch's residual blocks, takes instance-norm statistics over the whole
    map, so O is needed in every cell, damaged or not.

    Args:
        channels: width of the map, of keys and of values.
        blocks: residual blocks of the global branch.
    """

    operation = "partial_nonlocal"

    def __init__(self, channels: int, blocks: int = 3) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels, 1)
        self.phi = nn.Conv2d(channels, channels, 1)
        self.mu = nn.Conv2d(channels, channels, 1)
        self.nu = nn.Conv2d(channels, channels, 1)
        self.blocks = paper_blocks(channels, blocks)
        self.backend: str | None = None

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Fuse what the photo's intact cells give to the damaged ones.

        Args:
            features: (B, C, H, W).
            mask: (B, 1, H', W') in [0, 1] at any resolution; 1 = damaged.

        Returns:
            (B, C, H, W); intact cells are untouched.
        """
        damaged = damaged_cells(mask, features)
        if not (is_static() or damaged.any()):  # exactly the identity then
            return features

        cells = features.flatten(2).transpose(1, 2)  # (B, H * W, C)
        received = partial_nonlocal(
            project(cells, self.theta),
            project(cells, self.phi),
            project(cells, self.mu),
            damaged.flatten(1),
            least_mass=PAPER_LEAST_MASS,
            backend=self.backend,
        )
        nu = self.nu.weight.flatten(1)
        assert self.nu.bias is not None
        received = nu @ received.transpose(1, 2) + self.nu.bias.view(-1, 1)  # (B, C, H * W)
        return features.lerp(self.blocks(received.reshape(features.shape)), damaged)


class PatchAttention(nn.Module):
    """The HR variant's block: damaged patches take the most similar intact patch, whole.

    The result lies beside the features and the mask for a convolution to fuse, as published.

    Args:
        channels: width of the map.
        patch_size: side of a patch, in cells.
    """

    operation = "patch_attention"

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.block = ResidualBlock(channels, norm="instance", padding="reflect")
        self.combine = Conv3x3(2 * channels + 1, channels)
        self.backend: str | None = None

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (B, C, H, W), mask (B, 1, H', W') in [0, 1] -> (B, C, H, W)."""
        damaged = touched_cells(mask, features)
        composed = patch_attention(
            self.block(features), damaged, self.patch_size, backend=self.backend
        )
        fused: Tensor = self.combine(torch.cat([features, composed, damaged], dim=1))
        return fused


def project(cells: Tensor, layer: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of (B, N, C), which is how the attention wants it."""
    return F.linear(cells, layer.weight.flatten(1), layer.bias)


def touched_cells(mask: Tensor, features: Tensor) -> Tensor:
    """(B, 1, H, W) of 0 and 1: cells in which bilinear resampling sees any damage."""
    seen = F.interpolate(mask, features.shape[2:], mode="bilinear", align_corners=False)
    return (seen > 0).to(features.dtype)


def damaged_cells(mask: Tensor, features: Tensor) -> Tensor:
    """The published rule: intact is what bilinear resampling calls so, times the nearest pixel."""
    nearest = F.interpolate(1 - mask, features.shape[2:], mode="nearest").to(features.dtype)
    return 1 - (1 - touched_cells(mask, features)) * nearest


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """(B, C, H, W) -> view (B, rows, columns, size, size, C) of its windows."""
    return x.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 4, 5, 1)
