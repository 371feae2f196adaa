"""ScratchDetector: image -> probability of structured damage. PaperDetector: the published one.

Both are U-Nets, as in Wan et al., CVPR 2020, section 3.3. Ours sees colour, has no batch norm and
works at the photo's own resolution; the published one shrinks the photo to 256 px first, where thin
scratches are gone.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import (
    LUMA,
    Conv3x3,
    ConvNormAct,
    Downsample,
    PixelShuffle,
    PixelUnshuffle,
    Upsample,
    init_as_published,
    residual_blocks,
)
from oldrestore.refiner import CELL_PX as REFINER_CELL_PX
from oldrestore.refiner import Refiner, twice

# of the logits, the part that the photo at half its side gives; not in the files
COARSE_SHARE = 0.5
PAPER_SIDE_PX = 256  # the shorter side of what the published detector sees
# ... and the longest it may get: without a limit a strip of film would be enlarged to gigapixels
PAPER_LONGEST_PX = 16 * PAPER_SIDE_PX
PAPER_SLOPE = 0.2  # of its leaky ReLUs below zero


@dataclass(frozen=True)
class DetectorConfig:
    """Layout of the scratch detector.

    channels: width at 1/2, 1/4, 1/8, ... of the side.
    blocks: residual blocks at each of these scales, on the way down; one on the way up.
    refiner: width of the refiner's hidden layers, see `refiner`; 0: there is none.
    """

    channels: tuple[int, ...] = (24, 40, 64, 96)
    blocks: tuple[int, ...] = (1, 2, 4, 6)
    refiner: int = 0

    @property
    def cell_px(self) -> int:
        """The network itself takes sides that are multiples of this."""
        return 1 << len(self.channels)

    @property
    def align_px(self) -> int:
        """Photos are padded to multiples of this: at half the side they are cells too."""
        return max(2 * self.cell_px, REFINER_CELL_PX if self.refiner else 0)

    @property
    def context_px(self) -> int:
        """How far a pixel can influence the logits of the network, before they are refined."""
        down = sum((2 << i) * 2 * count for i, count in enumerate(self.blocks))
        up = sum((2 << i) * 2 for i in range(len(self.channels) - 1))
        return down + up + 2 + 2


class ScratchDetector(nn.Module):
    """image (B, 3, H, W), sides multiples of ``config.cell_px`` -> logits (B, 1, H, W)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.head = nn.Sequential(PixelUnshuffle(2), Conv3x3(12, widths[0]))
        self.down = nn.ModuleList(
            Downsample(shallow, deep) for shallow, deep in itertools.pairwise(widths)
        )
        self.encode = nn.ModuleList(
            residual_blocks(width, count)
            for width, count in zip(widths, config.blocks, strict=True)
        )
        self.up = nn.ModuleList(
            Upsample(deep, shallow) for shallow, deep in itertools.pairwise(widths)
        )
        self.decode = nn.ModuleList(residual_blocks(width, 1) for width in widths[:-1])
        self.tail = nn.Sequential(Conv3x3(widths[0], 4), PixelShuffle(2))
        self.refiner = Refiner(config.refiner) if config.refiner else None

    def forward(self, image: Tensor) -> Tensor:
        features = self.encode[0](self.head(image))
        skips = []
        for down, encode in zip(self.down, self.encode[1:], strict=True):
            skips.append(features)
            features = encode(down(features))
        for up, decode, skip in zip(
            reversed(self.up), reversed(self.decode), reversed(skips), strict=True
        ):
            features = decode(skip + up(features))
        logits: Tensor = self.tail(features)
        return logits

    def at_two_scales(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of the photo at its own side, joined with those at half of it.

        There noise is weaker and wide damage narrower. Sides of ``image`` are multiples of
        ``config.align_px``.
        """
        return joined(twice(self(halved(image))), self(image))

    def probability(self, image: Tensor) -> Tensor:
        """Probability of damage, (B, 1, H, W) in [0, 1]; sides as for `at_two_scales`.

        Of the photo and its mirror image: where the network errs, it often errs in one of them.
        """
        return steady_sigmoid(self.of_both_views(image))

    def of_both_views(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of `probability`, refined if there is a refiner."""
        logits, of_mirrored = (self.at_two_scales(x) for x in (image, image.flip(-1)))
        both = agreed(logits, of_mirrored)
        if self.refiner is None:
            return both
        refined: Tensor = self.refiner(image, logits, of_mirrored.half(), both)
        return refined


def halved(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, step by step: with the same bits in any part of a photo."""
    upper, lower = image[:, :, ::2], image[:, :, 1::2]
    rows = upper + lower
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Logits of both scales, at the finer one's."""
    return COARSE_SHARE * coarse + (1 - COARSE_SHARE) * fine


def agreed(logits: Tensor, of_mirrored: Tensor) -> Tensor:
    """Logits of a photo, and those of its mirror image -> their mean.

    The latter as float16, whatever they come as: in bands, those of a whole photo have to be kept.
    """
    return (logits + of_mirrored.half().flip(-1)) / 2


@dataclass(frozen=True)
class PaperDetectorConfig:
    """Layout of the published detector.

    channels: width at the full side; doubled at each level.
    levels: how often the side is halved.
    """

    channels: int = 64
    levels: int = 4

    @property
    def align_px(self) -> int:
        """`probability` takes photos of any size."""
        return 1

    @property
    def cell_px(self) -> int:
        """The network itself takes sides that are multiples of this."""
        return 1 << self.levels


class PaperDetector(nn.Module):
    """The published U-Net on brightness: batch norm, blur before each halving, bilinear doubling.

    image (B, 3, H, W), sides multiples of ``config.cell_px`` -> logits (B, 1, H, W).
    """

    def __init__(self, config: PaperDetectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels << level for level in range(config.levels + 1)]
        self.head = nn.Conv2d(1, widths[0], 7, padding=3, padding_mode="reflect")
        self.down = nn.ModuleList(_convolution(width, width) for width in widths[:-1])
        self.encode = nn.ModuleList(_two_convolutions(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(
            Conv3x3(deep, shallow, padding_mode="reflect")
            for shallow, deep in itertools.pairwise(widths)
        )
        self.decode = nn.ModuleList(
            _two_convolutions(2 * shallow, shallow) for shallow in widths[:-1]
        )
        self.tail = Conv3x3(widths[0], 1, padding_mode="reflect")
        init_as_published(self)

    def forward(self, image: Tensor) -> Tensor:
        features = F.leaky_relu(self.head(_brightness(image)), PAPER_SLOPE)
        skips = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(features)
            features = encode(_blur_and_halve(down(features)))
        for up, decode, skip in zip(
            reversed(self.up), reversed(self.decode), reversed(skips), strict=True
        ):
            larger = up(F.interpolate(features, scale_factor=2, mode="bilinear"))
            features = decode(torch.cat([larger, skip], dim=1))
        logits: Tensor = self.tail(features)
        return logits

    def probability(self, image: Tensor) -> Tensor:
        """Probability of damage, (B, 1, H, W) in [0, 1], of photos of any size.

        As published: judged with the shorter side at 256 px, given back by nearest neighbours.
        """
        height, width = image.shape[2:]
        size = self.small_size(height, width)
        small = F.interpolate(image, size, mode="bilinear", align_corners=False)
        probability: Tensor = self(small).sigmoid()
        return F.interpolate(probability, (height, width), mode="nearest")

    def small_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is judged of a photo."""
        scale = min(PAPER_SIDE_PX / min(height, width), PAPER_LONGEST_PX / max(height, width))
        cell = self.config.cell_px
        rows, columns = (max(cell, round(side * scale / cell) * cell) for side in (height, width))
        return rows, columns


def _convolution(channels_in: int, channels_out: int) -> ConvNormAct:
    return ConvNormAct(
        channels_in, channels_out, padding_mode="reflect", norm="batch", slope=PAPER_SLOPE
    )


def _two_convolutions(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels_in, channels_out), _convolution(channels_out, channels_out)
    )


def _brightness(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (image * image.new_tensor(LUMA)[None, :, None, None]).sum(dim=1, keepdim=True)


def _blur_and_halve(x: Tensor) -> Tensor:
    """Binomial blur, then every second pixel (Zhang, Making convolutional networks shift-invariant
    again, ICML 2019)."""
    binomial = x.new_tensor([1, 2, 1]) / 4
    psf = (binomial[:, None] * binomial).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), psf, stride=2, groups=x.shape[1])


def steady_sigmoid(logits: Tensor) -> Tensor:
    """The sigmoid; on a CPU by NumPy.

    torch's has other bits where its threads' shares end than within them, and a threshold could
    fall between.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or torch.is_grad_enabled():
        return logits.sigmoid()
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the result is 0
        return torch.from_numpy(1 / (1 + np.exp(-logits.numpy())))


def make_detector(config: DetectorConfig | PaperDetectorConfig) -> ScratchDetector | PaperDetector:
    """The detector of a layout."""
    return (
        PaperDetector(config)
        if isinstance(config, PaperDetectorConfig)
        else ScratchDetector(config)
    )
