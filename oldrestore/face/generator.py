"""The published face generator: an aligned, degraded face -> the same face, drawn anew.

SPADE (Park et al., CVPR 2019) as Wan et al. released it: every normalisation is steered by the
degraded face itself, without a map of its parts. Spectral norm is folded into the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import Conv3x3

SIDES_PX = (256, 512)  # Setting_9_epoch_100, FaceSR_512
WIDEST = 16  # the start has this many times the channels of the end
HALVINGS = 5  # the first map's side is the crop's over two to this power
WIDTHS = (16, 16, 16, 8, 4, 2, 1)  # of the blocks' results, in the channels of the end
DOUBLED = (True, False, True, True, True, True, False)  # whether a map doubles after its block
STEERING_CHANNELS = 128
SLOPE = 0.2  # of the leaky ReLUs below zero


@dataclass(frozen=True)
class PaperFaceConfig:
    """Layout of the published face generator.

    side_px: of the crops it was trained on, 256 or 512; the weights have the same shapes.
    channels: of the last block.
    """

    side_px: int = 256
    channels: int = 64

    def __post_init__(self) -> None:
        if self.side_px not in SIDES_PX:
            raise ValueError(f"side_px: expected one of {SIDES_PX}, got {self.side_px}")


class SteeredNorm(nn.Module):
    """Spatially adaptive normalisation (Park et al., eq. 1).

    out = norm(x) * (1 + gamma(face)) + beta(face)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = Conv3x3(3, STEERING_CHANNELS)
        self.gamma = Conv3x3(STEERING_CHANNELS, channels)
        self.beta = Conv3x3(STEERING_CHANNELS, channels)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        steering = F.relu(self.shared(_resized(face, list(x.shape[2:]))))
        out: Tensor = self.norm(x) * (1 + self.gamma(steering)) + self.beta(steering)
        return out


class SteeredBlock(nn.Module):
    """shortcut(x) + conv(act(norm(conv(act(norm(x)))))), all norms steered by the face."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = min(channels_in, channels_out)
        self.conv1 = Conv3x3(channels_in, middle)
        self.conv2 = Conv3x3(middle, channels_out)
        self.norm1 = SteeredNorm(channels_in)
        self.norm2 = SteeredNorm(middle)
        self.shortcut: nn.Conv2d | None = None
        self.norm_shortcut: SteeredNorm | None = None
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)
            self.norm_shortcut = SteeredNorm(channels_in)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        kept: Tensor = x
        if self.shortcut is not None:
            assert self.norm_shortcut is not None
            kept = self.shortcut(self.norm_shortcut(x, face))
        out: Tensor = self.conv1(F.leaky_relu(self.norm1(x, face), SLOPE))
        out = self.conv2(F.leaky_relu(self.norm2(out, face), SLOPE))
        return kept + out


class FaceGenerator(nn.Module):
    """Faces (B, 3, S, S) in [-1, 1] -> (B, 3, S, S), S the config's ``side_px``."""

    def __init__(self, config: PaperFaceConfig) -> None:
        super().__init__()
        self.config = config
        width = WIDEST * config.channels
        self.start = Conv3x3(3, width)
        blocks = []
        for factor in WIDTHS:
            blocks.append(SteeredBlock(width, factor * config.channels))
            width = factor * config.channels
        self.blocks = nn.ModuleList(blocks)
        self.tail = Conv3x3(width, 3)

    def forward(self, image: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: ``image`` has another shape.
        """
        side = self.config.side_px
        if tuple(image.shape[1:]) != (3, side, side):
            raise ValueError(f"image: expected (B, 3, {side}, {side}), got {tuple(image.shape)}")
        x: Tensor = self.start(_resized(image, [side >> HALVINGS] * 2))
        for block, is_doubled in zip(self.blocks, DOUBLED, strict=True):
            x = block(x, image)
            if is_doubled:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        enhanced: Tensor = self.tail(F.leaky_relu(x, SLOPE))
        return torch.tanh(enhanced)


def _resized(face: Tensor, size: list[int]) -> Tensor:
    """As published: bilinear, without averaging where it shrinks."""
    return F.interpolate(face, size, mode="bilinear", align_corners=False)
