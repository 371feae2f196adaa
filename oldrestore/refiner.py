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
    PixelUnshuffle,
    doubled,
    shuffled,
    smoothed,
    unshuffled,
)
from oldrestore.ops import bottleneck, is_static

STEM_CHANNELS = 32
TAPS = (0, 2, 5, 12)  # MobileNetV2's last blocks at each scale from 1/2 to 1/16 of the side
CELL_PX = 16  # sides of what it is shown are multiples of this
CELL = 4  # pixels that are judged together
DEEP_PX = 4  # of a cell of the second finest features
SUSPICION = -6.0  # logit above which a pixel is judged: a probability of about 0.0025


class Bottleneck(nn.Module):
    """Widen, filter each channel, narrow: MobileNetV2's block, batch norms folded in.

    Args:
        channels_in, channels_out: of the block; ``expansion`` times as many are filtered.
        stride: of the filters.
    """

    operation = "bottleneck"

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels_in * expansion
        self.widen = nn.Conv2d(channels_in, width, 1) if expansion != 1 else None
        self.filter = nn.Conv2d(width, width, 3, groups=width)
        self.narrow = nn.Conv2d(width, channels_out, 1)
        self.stride = stride
        self.is_residual = stride == 1 and channels_in == channels_out
        self.backend: str | None = None

    def forward(self, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """A map, or some rows of it with ``above`` and ``below`` neighbours -> its rows."""
        return bottleneck(
            x,
            None if self.widen is None else self.widen.weight,
            None if self.widen is None else self.widen.bias,
            self.filter.weight,
            self.filter.bias,
            self.narrow.weight,
            self.narrow.bias,
            stride=self.stride,
            is_residual=self.is_residual,
            above=above,
            below=below,
            backend=self.backend,
        )


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
        self.see = Conv1x1(2 * CELL, width)
        self.hidden = Conv1x1(width, width)
        self.tail = Conv1x1(width, CELL)
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

    def forward(self, image: Tensor, logits: Tensor, of_mirrored: Tensor, both: Tensor) -> Tensor:
        """Refined logits (B, 1, H, W).

        Args:
            image: (B, 3, H, W), sides multiples of 16.
            logits, of_mirrored: (B, 1, H, W), see `shown`.
            both: their mean, the logits to be refined.
        """
        half, *deeper = self.trunk(image)
        deep = self.take[-1](deeper[-1])
        for take, feature in zip(self.take[-2:0:-1], deeper[-2::-1], strict=True):
            deep = twice(deep) + take(feature)
        around = F.pad(deep, (0, 0, 1, 1), mode="replicate")
        return self.corrected(around, half, logits, of_mirrored, both)

    def judged(self, x: Tensor) -> Tensor:
        """Sum of what was taken and seen of cells -> corrections of their `CELL` pixels."""
        change: Tensor = self.tail(F.relu(self.hidden(F.relu(x))))
        return change

    def corrected(
        self, around: Tensor, half: Tensor, logits: Tensor, of_mirrored: Tensor, both: Tensor
    ) -> Tensor:
        """The logits of both views with the correction, where there is suspicion.

        Args:
            around: (B, width, H / 4 + 2, W / 4), what was taken of all features but the finest,
                with a row more above and below.
            half: (B, C, H / 2, W / 2), the finest features.
            logits, of_mirrored, both: as for `forward`.
        """
        shown = unshuffled(self.shown(logits, of_mirrored), 2)
        cells = unshuffled(both, 2)
        refined = []
        for index, of_sample in enumerate(cells):
            of_cells = of_sample.flatten(1)
            suspect = (of_cells > SUSPICION).any(dim=0)
            places = torch.arange(len(suspect), device=suspect.device)
            if not is_static():
                places = places[suspect]
            if not len(places):
                refined.append(of_sample)
                continue
            taken = self.take[0](_picked(half[index], places))
            seen = self.see(_picked(shown[index], places))
            x = _twice_at(places, around[index], cells.shape[3]) + taken + seen
            change = self.judged(x)[0, :, 0]
            mine = of_cells[:, places]
            mine = torch.where(mine > SUSPICION, mine + change.to(mine), mine)
            refined.append(of_cells.index_copy(1, places, mine).view_as(of_sample))
        return shuffled(torch.stack(refined), 2)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Some cells (1, C, 1, n) of a map (C, H, W)."""
    return x.flatten(1).index_select(1, places)[None, :, None]


def _twice_at(places: Tensor, around: Tensor, width: int) -> Tensor:
    """What `twice` gives at some cells of its ``width`` columns, (1, C, 1, n).

    Args:
        places: (n,), numbers of cells, row by row.
        around: (C, h + 2, w), the map with a row more above and below.
    """
    rows, columns = places // width, places % width
    row, column = rows // 2 + 1, columns // 2
    other_row = row - 1 + 2 * (rows % 2)
    other_column = (column - 1 + 2 * (columns % 2)).clamp(0, around.shape[2] - 1)
    across = around.shape[2]
    own, beside, over, corner = (
        _picked(around, y * across + x)
        for y, x in (
            (row, column),
            (row, other_column),
            (other_row, column),
            (other_row, other_column),
        )
    )
    return (9 * own + 3 * (beside + over) + corner) / 16


def twice(x: Tensor) -> Tensor:
    """A map at twice its sides, bilinearly."""
    return smoothed(F.pad(doubled(x), (0, 0, 1, 1), mode="replicate"))
