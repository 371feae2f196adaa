"""The layers that the networks share: convolutions, residual block; and which backend runs them.

A layer that an operation runs has ``operation``, its name, and ``backend``: None for the fastest.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.ops import (
    available,
    conv_norm_act,
    describe,
    instance_norm_act,
    is_static,
    residual_block,
    set_backend,
)

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and PIL's mode L
PAPER_INIT_STD = 0.02  # of every convolution's weights in the published code
# of a matrix product: on some processors MKL adds up in another order where a thread has fewer than
# 12 columns; of few columns it gives each thread a multiple of 32, and the last one the rest
COLUMNS = 32
MANY_COLUMNS = 8192  # above, 256 threads have at least 32 each

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

    operation = "residual_block"

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

    operation = "conv_norm_act"

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


class Conv1x1(nn.Conv2d):
    """A convolution of size 1; on a CPU a matrix product.

    That is faster than the vendor's convolution, and what it gives a pixel depends neither on the
    number of threads nor on the other pixels, so that tiles have the bits of the whole.
    """

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x) if _takes_products(x) else super().forward(x)


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

    operation = "conv_norm_act"

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
        weight, bias = self.doubling_weights()
        out = conv_norm_act(x, weight, bias, norm=None, padding="zero", backend=self.backend)
        return shuffled(out, 2)

    def doubling_weights(self) -> tuple[Tensor, Tensor | None]:
        """Of the plain convolution (4 C_out, C_in, 3, 3) before a pixel shuffle; and its bias."""
        taps = torch.tensor(_DOUBLING_TAPS)
        weight = F.pad(self.conv.weight.transpose(0, 1), (0, 1, 0, 1))  # (C_out, C_in, 5, 5)
        weight = weight[:, :, taps[:, None, :, None], taps[None, :, None, :]]
        bias = None if self.conv.bias is None else self.conv.bias.repeat_interleave(4)
        return weight.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous(), bias


class NarrowConv(nn.Conv2d):
    """A convolution to very few channels, as the last one of a decoder.

    On a CPU one along the rows to as many times the channels as it has rows, then a sum of shifted
    maps: the vendor's convolution computes full vectors of channels, of which three fill little.
    """

    backend: str | None = None

    def forward(self, x: Tensor, *, has_neighbours: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); ``x`` may bring the rows above and below along."""
        rows, columns = self.kernel_size
        above, left = (int(n) for n in self.padding)
        above = 0 if has_neighbours else above
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if self.backend == "reference" or x.device.type != "cpu":
            padded = F.pad(x, (left, left, above, above), mode=mode)
            return F.conv2d(padded, self.weight, self.bias)
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
    """2x2 convolution of stride 2: halves the map without looking over the cell's border.

    On a CPU a matrix product, as `Conv1x1` is.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not _takes_products(x) or x.shape[2] % 2 or x.shape[3] % 2:
            return super().forward(x)
        return _product(self, unshuffled(x, 2))


def _takes_products(x: Tensor) -> bool:
    """Whether a convolution without neighbourhood is a matrix product; its gradient is torch's."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not is_static()


def unshuffled(x: Tensor, stride: int) -> Tensor:
    """`torch.nn.functional.pixel_unshuffle`; on a CPU by slices, in about half its time."""
    height, width = x.shape[2:]
    if not _takes_products(x) or height % stride or width % stride:
        return F.pixel_unshuffle(x, stride)
    cells = x.new_empty(*x.shape[:2], stride, stride, height // stride, width // stride)
    for row in range(stride):
        for column in range(stride):
            cells[:, :, row, column] = x[:, :, row::stride, column::stride]
    return cells.flatten(1, 3)


def shuffled(x: Tensor, stride: int) -> Tensor:
    """`torch.nn.functional.pixel_shuffle`, likewise."""
    if not _takes_products(x) or x.shape[1] % stride**2:
        return F.pixel_shuffle(x, stride)
    cells = x.reshape(len(x), -1, stride, stride, *x.shape[2:])
    out = x.new_empty(*cells.shape[:2], *(stride * side for side in x.shape[2:]))
    for row in range(stride):
        for column in range(stride):
            out[:, :, row::stride, column::stride] = cells[:, :, row, column]
    return out


class PixelUnshuffle(nn.PixelUnshuffle):
    """Cells of pixels to channels, by `unshuffled`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class names it so
        return unshuffled(input, self.downscale_factor)


class PixelShuffle(nn.PixelShuffle):
    """Channels to cells of pixels, by `shuffled`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class names it so
        return shuffled(input, self.upscale_factor)


def _product(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer as a matrix product for each pixel of (B, C, H, W).

    A part of a map gives the same bits as the whole, on any number of threads.
    """
    pixels = x.flatten(2)  # (B, C, H * W)
    count = pixels.shape[2]
    if count < MANY_COLUMNS and count % COLUMNS:
        pixels = F.pad(pixels, (0, -count % COLUMNS))
    out = torch.matmul(layer.weight.flatten(1), pixels)[..., :count]
    if layer.bias is not None:
        out += layer.bias[:, None]
    return out.reshape(len(x), len(layer.weight), *x.shape[2:])


class Upsample(nn.Sequential):
    """1x1 convolution and pixel shuffle: doubles the map without looking over the cell's border."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(Conv1x1(channels_in, 4 * channels_out), PixelShuffle(2))


def doubled(x: Tensor) -> Tensor:
    """Every cell as 2 x 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def smoothed(around: Tensor) -> Tensor:
    """What ``doubled`` gave, and a row more above and below -> doubled bilinearly."""
    rows = (around[:, :, :-2] + 2 * around[:, :, 1:-1] + around[:, :, 2:]) / 4
    wide = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    return (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 4


def choose_backend(
    networks: Iterable[nn.Module], backend: str | None, device: torch.device
) -> None:
    """Have each operation that has this backend run by it, the others by their fastest.

    Raises:
        ValueError: no operation has it on ``device``.
    """
    if backend is None:
        return
    rows = [row for row in describe(device) if row["backend"] == backend and not row["missing"]]
    if not rows:
        raise ValueError(
            f"backend: no operation can use {backend!r} on {device}; see oldrestore info"
        )
    chosen = {row["operation"] for row in rows}
    for network in networks:
        if backend == "reference":  # in all layers
            set_backend(network, backend)
            continue
        for module in network.modules():
            if getattr(module, "operation", None) in chosen:
                module.backend = backend  # type: ignore[assignment]  # a plain attribute
