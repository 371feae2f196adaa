"""Refiner: a scratch detector's logits, corrected by one who knows what things look like.

Damage that is drawn teaches what damage is, but hardly what else there is: twigs, hair, lettering
and lace look like scratches to who has seen few of them. The classifiers of ImageNet have seen a
million photos. The refiner looks at a photo through the first layers of one, MobileNetV2 (Sandler
et al., CVPR 2018), which stay as they are, and learns a correction of the logits from what they see
and from the logits themselves.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.backbones import IMAGENET_MEAN, IMAGENET_STD, MOBILENET_BLOCKS
from oldrestore.layers import (
    Conv1x1,
    Conv3x3,
    PixelShuffle,
    PixelUnshuffle,
    doubled,
    smoothed,
)

STEM_CHANNELS = 32
TAPS = (0, 2, 5, 12)  # MobileNetV2's last blocks at each scale from 1/2 to 1/16 of the side
CELL_PX = 16  # sides of what it is shown are multiples of this
CELL = 4  # pixels that are judged together
SUSPICION = -6.0  # logit above which a pixel is judged: a probability of about 0.0025


class Depthwise(nn.Conv2d):
    """A 3x3 filter for each channel, zeros around the map; of stride 2 it halves even sides."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels)


class Bottleneck(nn.Module):
    """Widen, filter each channel, narrow: MobileNetV2's block, batch norms folded in.

    Args:
        channels_in, channels_out: of the block; ``expansion`` times as many are filtered.
        stride: of the filters.
    """

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels_in * expansion
        self.widen = Conv1x1(channels_in, width) if expansion != 1 else None
        self.filter = Depthwise(width, stride)
        self.narrow = Conv1x1(width, channels_out)
        self.is_residual = stride == 1 and channels_in == channels_out

    def widened(self, x: Tensor) -> Tensor:
        """What is filtered."""
        return x if self.widen is None else F.relu6(self.widen(x))

    def narrowed(self, filtered: Tensor, *x: Tensor) -> Tensor:
        """The result, of what the filters gave; ``x`` is what the block was given, if residual."""
        narrow: Tensor = self.narrow(F.relu6(filtered))
        return narrow + x[0] if x else narrow

    def forward(self, x: Tensor) -> Tensor:
        filtered = self.filter(self.widened(x))
        return self.narrowed(filtered, x) if self.is_residual else self.narrowed(filtered)


class Trunk(nn.Module):
    """MobileNetV2's first layers: image (B, 3, H, W) -> features at 1/2, 1/4, 1/8, 1/16."""

    def __init__(self) -> None:
        super().__init__()
        # its convolution of stride 2, over cells of 2 x 2 pixels
        self.stem = nn.Sequential(PixelUnshuffle(2), Conv3x3(12, STEM_CHANNELS))
        blocks: list[nn.Module] = []
        widths, width_in = [], STEM_CHANNELS
        for expansion, width, count, stride in MOBILENET_BLOCKS:
            for i in range(count):
                blocks.append(Bottleneck(width_in, width, expansion, stride if i == 0 else 1))
                widths.append(width)
                width_in = width
        self.blocks = nn.ModuleList(blocks[: TAPS[-1] + 1])
        self.widths = [widths[tap] for tap in TAPS]
        self.requires_grad_(False)

    @staticmethod
    def normalised(image: Tensor) -> Tensor:
        """An image in [-1, 1] as ImageNet's classifiers are shown it."""
        mean, std = (image.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        return ((image + 1) / 2 - mean) / std

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(self.normalised(image)))
        found = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in TAPS:
                found.append(x)
        return found


def over_cells(weight: Tensor) -> Tensor:
    """Filters (O, I, 3, 3) of stride 2 -> the same (O, 4 I, 3, 3) over cells of 2 x 2 pixels.

    A cell is centred where the filters' middle falls on its first pixel; of the cells above and on
    the left they see the last row and column.
    """
    cells = weight.new_zeros(*weight.shape[:2], 2, 2, 3, 3)  # O, I, row and column in the cell
    places = ((0, 1), (1, 0), (1, 1))  # of a filter's rows or columns: the cell, the place in it
    for row, (down, below) in enumerate(places):
        for column, (across, beside) in enumerate(places):
            cells[:, :, below, beside, down, across] = weight[:, :, row, column]
    return cells.flatten(1, 3)


class Refiner(nn.Module):
    """Image and a detector's logits -> refined logits; at first the same.

    What it sees at each 2 x 2 pixels, and nothing around but by the features, goes through two
    hidden layers. It only judges what is suspect: of anything else it was shown nothing.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.take = nn.ModuleList(Conv1x1(channels, width) for channels in self.trunk.widths)
        self.see = nn.Sequential(PixelUnshuffle(2), Conv1x1(2 * CELL, width))
        self.hidden = Conv1x1(width, width)
        self.tail = nn.Sequential(Conv1x1(width, CELL), PixelShuffle(2))
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    @staticmethod
    def shown(logits: Tensor, of_mirrored: Tensor) -> Tensor:
        """What it sees of the logits: those of a photo and those of its mirror image, turned back.

        Args:
            logits: (B, 1, H, W).
            of_mirrored: the same, mirrored, of any precision.
        """
        return torch.cat([logits, of_mirrored.flip(-1).to(logits)], dim=1)

    def judged(self, x: Tensor) -> Tensor:
        """Sum of what was taken and seen, at half the side -> correction at the whole."""
        correction: Tensor = self.tail(F.relu(self.hidden(F.relu(x))))
        return correction

    @staticmethod
    def corrected(logits: Tensor, correction: Tensor) -> Tensor:
        """The logits of both views with the correction, where there is suspicion."""
        return torch.where(logits > SUSPICION, logits + correction, logits)

    def forward(self, image: Tensor, logits: Tensor, of_mirrored: Tensor, both: Tensor) -> Tensor:
        """Refined logits (B, 1, H, W).

        Args:
            image: (B, 3, H, W), sides multiples of 16.
            logits, of_mirrored: (B, 1, H, W), see `shown`.
            both: their mean, the logits to be refined.
        """
        x: Tensor | None = None
        for take, feature in zip(reversed(self.take), reversed(self.trunk(image)), strict=True):
            x = take(feature) if x is None else twice(x) + take(feature)
        return self.corrected(both, self.judged(x + self.see(self.shown(logits, of_mirrored))))


def twice(x: Tensor) -> Tensor:
    """A map at twice its sides, bilinearly."""
    return smoothed(F.pad(doubled(x), (0, 0, 1, 1), mode="replicate"))
