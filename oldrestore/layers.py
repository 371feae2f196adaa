"""The blocks that the networks share: convolutions, residual block, partial nonlocal blocks.

The `compact` network takes only those that look at a bounded neighbourhood, so that a photo gives
the same result whole or in tiles. The `paper` network has instance norm and attention over the
whole photo, as published.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.ops import (
    available,
    conv_norm_act,
    instance_norm_act,
    is_static,
    partial_nonlocal,
    patch_attention,
    residual_block,
    set_backend,
)

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and PIL's mode L
# the published attention divides by no less than this share of the sum over all cells
PAPER_LEAST_MASS = 1e-12
PAPER_INIT_STD = 0.02  # of every convolution's weights in the published code

# The second convolution of a block starts this much smaller: a fresh block is near the identity,
# without which deep stacks that have no normalisation do not train (Zhang et al., Fixup, 2019).
BRANCH_INIT_SCALE = 0.1

# the taps of a transposed convolution of size 4 and stride 2 that reach an even output from the
# input left of it, its own and the right one, then those of an odd output; 4: none
_DOUBLING_TAPS = ((3, 1, 4), (4, 2, 0))

_FUSED_PADDING = {"zeros": "zero", "reflect": "reflect"}  # torch's names and the operations'


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


def residual_blocks(
    channels: int, count: int, *, norm: str | None = None, padding: str = "zero"
) -> nn.Sequential:
    """``count`` residual blocks in a row; none gives the identity."""
    return nn.Sequential(
        *(ResidualBlock(channels, norm=norm, padding=padding) for _ in range(count))
    )


def paper_blocks(channels: int, count: int) -> nn.Sequential:
    """``count`` residual blocks as published: instance norm, reflected borders."""
    return residual_blocks(channels, count, norm="instance", padding="reflect")


class Conv3x3(nn.Conv2d):
    """A convolution of size 3 that keeps the sides; ``padding_mode`` "zeros" or "reflect"."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
    ) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, padding_mode=padding_mode)
        self.backend: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_act(
            x,
            self.weight,
            self.bias,
            norm=None,
            padding=_FUSED_PADDING[self.padding_mode],
            backend=self.backend,
        )


class ConvNormAct(nn.Module):
    """Convolution, normalisation and leaky ReLU, in this order.

    Args:
        channels_in, channels_out: widths.
        size, stride, padding: of the convolution, in cells.
        padding_mode: "zeros" or "reflect".
        is_transposed: convolve the other way: ``stride`` enlarges.
        norm: "instance" (no learned scale) or "batch".
        slope: of the activation below zero; 0 is ReLU.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        is_transposed: bool = False,
        norm: str = "instance",
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        shape = (size, stride, padding, is_transposed)
        is_plain = shape == (3, 1, 1, False)
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if is_plain:
            self.conv = Conv3x3(channels_in, channels_out, padding_mode=padding_mode)
        else:
            kind = nn.ConvTranspose2d if is_transposed else nn.Conv2d
            self.conv = kind(
                channels_in, channels_out, size, stride, padding, padding_mode=padding_mode
            )
        norms = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}
        self.norm = norms[norm](channels_out)
        self.slope = slope
        self.backend: str | None = None
        self.is_one_operation = is_plain and norm == "instance"
        self.is_doubling = shape == (4, 2, 1, True)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_one_operation:
            return conv_norm_act(
                x,
                self.conv.weight,
                self.conv.bias,
                padding=_FUSED_PADDING[self.conv.padding_mode],
                slope=self.slope,
                backend=self.backend,
            )
        out = self._double(x) if self.is_doubling else self.conv(x)
        if isinstance(self.norm, nn.InstanceNorm2d):
            return instance_norm_act(out, slope=self.slope, backend=self.backend)
        return F.leaky_relu(self.norm(out), self.slope)

    def _double(self, x: Tensor) -> Tensor:
        """The transposed convolution of size 4 and stride 2; on a CPU as a plain one of size 3.

        Along an axis an even and an odd output see two taps each, which lie within three inputs.
        With a zero as the third they make channels of their own, to be shuffled.
        """
        if self.backend == "reference" or "cpp" not in available("conv_norm_act", x.device):
            plain: Tensor = self.conv(x)
            return plain
        taps = torch.tensor(_DOUBLING_TAPS)
        weight = F.pad(self.conv.weight.transpose(0, 1), (0, 1, 0, 1))  # (C_out, C_in, 5, 5)
        weight = weight[:, :, taps[:, None, :, None], taps[None, :, None, :]]
        out = conv_norm_act(
            x,
            weight.permute(0, 2, 3, 1, 4, 5).flatten(0, 2),  # (4 C_out, C_in, 3, 3)
            None if self.conv.bias is None else self.conv.bias.repeat_interleave(4),
            norm=None,
            padding="zero",
            backend=self.backend,
        )
        return F.pixel_shuffle(out, 2)


class NarrowConv(nn.Conv2d):
    """A convolution to very few channels, as the last one of a decoder.

    On a CPU one along the rows to as many times the channels as it has rows, then a sum of shifted
    maps: the vendor's convolution computes full vectors of channels, of which three fill little.
    """

    backend: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.backend == "reference" or x.device.type != "cpu":
            return super().forward(x)
        rows, columns = self.kernel_size
        above, left = (int(n) for n in self.padding)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        weight = self.weight.permute(2, 0, 1, 3).reshape(-1, self.in_channels, 1, columns)
        partial = F.conv2d(
            F.pad(x, (left, left, above, above), mode=mode), weight
        )  # a map for each row and channel
        height = partial.shape[2] - rows + 1
        of_rows = torch.split(partial, self.out_channels, dim=1)
        out = of_rows[0].narrow(2, 0, height)
        for row in range(1, rows):
            out = out + of_rows[row].narrow(2, row, height)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)


def init_as_published(network: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 0.02), as the published code does."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=PAPER_INIT_STD)


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
        worked_on = _windows(damaged, self.block, self.block).amax(dim=(3, 4, 5)) > 0
        rows, columns = worked_on.shape[1:]
        chosen = None if is_static() else torch.nonzero(worked_on, as_tuple=True)

        def gather(x: Tensor, size: int) -> Tensor:
            blocks = _windows(x, size, self.block)
            return (blocks.flatten(0, 2) if chosen is None else blocks[chosen]).flatten(1, 2)

        scale = self.theta.out_channels**-0.5
        received = partial_nonlocal(
            gather(queries, self.block) * scale,
            gather(keys, window),
            gather(values, window),
            gather(barred, window).squeeze(-1),
            backend=self.backend,
        )  # (blocks, block * block, C)
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
        damaged = _damaged_cells(mask, features)
        if not (is_static() or damaged.any()):  # exactly the identity then
            return features

        cells = features.flatten(2).transpose(1, 2)  # (B, H * W, C)
        received = partial_nonlocal(
            _project(cells, self.theta),
            _project(cells, self.phi),
            _project(cells, self.mu),
            damaged.flatten(1),
            least_mass=PAPER_LEAST_MASS,
            backend=self.backend,
        )
        received = self.nu.weight.flatten(1) @ received.transpose(1, 2)  # (B, C, H * W)
        if self.nu.bias is not None:
            received = received + self.nu.bias[:, None]
        return features.lerp(self.blocks(received.reshape(features.shape)), damaged)


class PatchAttention(nn.Module):
    """The HR variant's block: damaged patches take the most similar intact patch, whole.

    The result lies beside the features and the mask for a convolution to fuse, as published.

    Args:
        channels: width of the map.
        patch_size: side of a patch, in cells.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.block = ResidualBlock(channels, norm="instance", padding="reflect")
        self.combine = Conv3x3(2 * channels + 1, channels)
        self.backend: str | None = None

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (B, C, H, W), mask (B, 1, H', W') in [0, 1] -> (B, C, H, W)."""
        damaged = _touched_cells(mask, features)
        composed = patch_attention(
            self.block(features), damaged, self.patch_size, backend=self.backend
        )
        fused: Tensor = self.combine(torch.cat([features, composed, damaged], dim=1))
        return fused


OPERATIONS: dict[type[nn.Module], str] = {
    Conv3x3: "conv_norm_act",
    ConvNormAct: "conv_norm_act",
    ResidualBlock: "residual_block",
    PartialNonlocal: "partial_nonlocal",
    GlobalNonlocal: "partial_nonlocal",
    PatchAttention: "patch_attention",
}


def choose_backend(
    networks: Iterable[nn.Module], backend: str | None, device: torch.device
) -> None:
    """Have each operation that has this backend run by it, the others by their fastest.

    Raises:
        ValueError: no operation has it on ``device``.
    """
    if backend is None:
        return
    chosen = {name for name in OPERATIONS.values() if backend in available(name, device)}
    if not chosen:
        raise ValueError(
            f"backend: no operation can use {backend!r} on {device}; see oldrestore info"
        )
    for network in networks:
        if backend == "reference":  # in all layers
            set_backend(network, backend)
            continue
        for module in network.modules():
            if OPERATIONS.get(type(module)) in chosen:
                module.backend = backend  # type: ignore[assignment]  # a plain attribute


def _project(cells: Tensor, layer: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of (B, N, C), which is how the attention wants it."""
    return F.linear(cells, layer.weight.flatten(1), layer.bias)


def _touched_cells(mask: Tensor, features: Tensor) -> Tensor:
    """(B, 1, H, W) of 0 and 1: cells in which bilinear resampling sees any damage."""
    seen = F.interpolate(mask, features.shape[2:], mode="bilinear", align_corners=False)
    return (seen > 0).to(features.dtype)


def _damaged_cells(mask: Tensor, features: Tensor) -> Tensor:
    """The published rule: intact is what bilinear resampling calls so, times the nearest pixel."""
    nearest = F.interpolate(1 - mask, features.shape[2:], mode="nearest").to(features.dtype)
    return 1 - (1 - _touched_cells(mask, features)) * nearest


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """(B, C, H, W) -> view (B, rows, columns, size, size, C) of its windows."""
    return x.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 4, 5, 1)
