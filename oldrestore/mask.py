"""ScratchDetector: image -> probability of structured damage, at the photo's own resolution.

A U-Net, as in Wan et al., CVPR 2020, section 3.3, but on colour, without batch norm, and fully
convolutional at native resolution: the published detector shrinks the photo to 256 px first, where
thin scratches are gone.
"""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from oldrestore.layers import Downsample, Upsample, residual_blocks


@dataclass(frozen=True)
class DetectorConfig:
    """Layout of the scratch detector.

    channels: width at 1/2, 1/4, 1/8, ... of the side.
    blocks: residual blocks at each of these scales, on the way down; one on the way up.
    """

    channels: tuple[int, ...] = (24, 40, 64, 96)
    blocks: tuple[int, ...] = (1, 1, 2, 2)

    @property
    def align_px(self) -> int:
        """Photos are padded to multiples of this, and tiles start at them."""
        return 1 << len(self.channels)

    @property
    def context_px(self) -> int:
        """How far a pixel can influence the logits."""
        down = sum((2 << i) * 2 * count for i, count in enumerate(self.blocks))
        up = sum((2 << i) * 2 for i in range(len(self.channels) - 1))
        return down + up + 2 + 2


class ScratchDetector(nn.Module):
    """image (B, 3, H, W), sides multiples of ``config.align_px`` -> logits (B, 1, H, W)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.head = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1))
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
        self.tail = nn.Sequential(nn.Conv2d(widths[0], 4, 3, padding=1), nn.PixelShuffle(2))

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

    def probability(self, image: Tensor) -> Tensor:
        """Probability of damage, (B, 1, H, W) in [0, 1]."""
        probability: Tensor = self(image).sigmoid()
        return probability
