"""FaceEnhancer: an aligned crop of a restored face -> the same face, sharper.

A small U-Net that adds to what it is given: trained on aligned portraits, it knows where eyes,
mouth and hair lie in the crop. It has no statistic over the crop and draws nothing at random.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import (
    Conv1x1,
    Conv3x3,
    Downsample,
    Upsample,
    residual_blocks,
    shuffled,
    unshuffled,
)

SIDE_PX = 256  # of the crops it is trained on, unless a file says another side


@dataclass(frozen=True)
class FaceConfig:
    """Layout of the compact face network.

    channels: width at 1/2, 1/4, 1/8, 1/16 and 1/32 of the crop's side.
    blocks: residual blocks at each of them, before and after; at the last once.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128, 192)
    blocks: tuple[int, ...] = (0, 1, 1, 1, 1)

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or len(self.channels) < 2:
            raise ValueError(
                f"channels, blocks: expected as many of both, 2 at least, got {self.channels} "
                f"and {self.blocks}"
            )


class FaceEnhancer(nn.Module):
    """Faces (B, 3, S, S) -> (B, 3, S, S); S is a multiple of ``align_px``."""

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.channels, config.blocks
        steps = range(1, len(widths))
        self.head = Conv3x3(12, widths[0])
        self.down = nn.ModuleList(Downsample(widths[i - 1], widths[i]) for i in steps)
        self.encode = nn.ModuleList(
            residual_blocks(width, count) for width, count in zip(widths, blocks, strict=True)
        )
        self.up = nn.ModuleList(Upsample(widths[i], widths[i - 1]) for i in steps)
        self.merge = nn.ModuleList(Conv1x1(2 * widths[i - 1], widths[i - 1]) for i in steps)
        self.decode = nn.ModuleList(residual_blocks(widths[i - 1], blocks[i - 1]) for i in steps)
        self.tail = Conv3x3(widths[0], 12)
        nn.init.zeros_(self.tail.weight)  # a fresh network changes nothing
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    @property
    def align_px(self) -> int:
        """The crop's side is a multiple of this."""
        return 1 << len(self.config.channels)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S) in [-1, 1] -> the same, enhanced; not clamped.

        Raises:
            ValueError: other channels or sides.
        """
        if (
            image.ndim != 4
            or image.shape[1] != 3
            or any(s % self.align_px for s in image.shape[2:])
        ):
            expected = f"(B, 3, S, S), S a multiple of {self.align_px}"
            raise ValueError(f"image: expected {expected}, got {tuple(image.shape)}")
        x = F.relu(self.head(unshuffled(image, 2)))
        kept = []
        for i, encode in enumerate(self.encode):
            x = encode(F.relu(self.down[i - 1](x)) if i else x)
            kept.append(x)
        for i in reversed(range(len(self.up))):
            both = torch.cat([F.relu(self.up[i](x)), kept[i]], dim=1)
            x = self.decode[i](F.relu(self.merge[i](both)))
        change: Tensor = shuffled(self.tail(x), 2)
        return image + change
