"""Refiner: a scratch detector's logits, corrected by one who knows what things look like.

Damage that is drawn teaches what damage is, but hardly what else there is: twigs, hair, lettering
and lace look like scratches to who has seen few of them. The classifiers of ImageNet have seen a
million photos. The refiner looks at a photo through the first layers of one, MobileNetV2 (Sandler
et al., CVPR 2018), which stay as they are, and learns a correction of the logits from what they see
and from the logits themselves.
"""

from collections.abc import Sequence

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
CELLS_AT_ONCE = 1024  # whose sums are in memory together: a few MB
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
        half, quarter, *deeper = self.trunk(image)
        deep = twice(self.take[3](deeper[1])) + self.take[2](deeper[0])
        return self.corrected(deep, quarter, half, logits, of_mirrored, both)

    def judged(self, x: Tensor) -> Tensor:
        """Sum of what was taken and seen of cells -> corrections of their `CELL` pixels."""
        change: Tensor = self.tail(F.relu(self.hidden(F.relu(x))))
        return change

    def corrected(
        self,
        deep: Tensor,
        quarter: Tensor,
        half: Tensor,
        logits: Tensor,
        of_mirrored: Tensor,
        both: Tensor,
        *,
        above: int = 0,
        below: int = 0,
    ) -> Tensor:
        """The logits of both views with the correction, where there is suspicion.

        Of some rows of a photo, where ``deep`` and ``quarter`` have a row ``above`` and ``below``
        more (0 or 1), if they do not end there.

        Args:
            deep: (B, width, H / 8, W / 8), what was taken of the two coarsest features.
            quarter, half: (B, C, H / 4, W / 4) and (B, C', H / 2, W / 2), the finest features.
            logits, of_mirrored, both: as for `forward`.
        """
        shown = unshuffled(self.shown(logits, of_mirrored), 2)
        cells = unshuffled(both, 2)
        suspect = (cells > SUSPICION).any(dim=1)
        refined = torch.empty_like(cells)
        for index, of_sample in enumerate(cells):
            maps = (deep[index], quarter[index], half[index], shown[index])
            refined[index] = self._corrected(of_sample, suspect[index], *maps, above, below)
        return shuffled(refined, 2)

    def _corrected(
        self,
        cells: Tensor,
        suspect: Tensor,
        deep: Tensor,
        quarter: Tensor,
        half: Tensor,
        shown: Tensor,
        above: int,
        below: int,
    ) -> Tensor:
        """The cells (4, h, w) of one sample, corrected where they are ``suspect``, (h, w)."""
        places = _places(suspect)
        # what a cell sees of the quarter: its own there, and those next to it
        around = F.max_pool2d(suspect[None].float(), 2)
        around = F.max_pool2d(F.pad(around, (0, 0, above, below)), 3, stride=1, padding=1)
        seen_at = _places(around > 0)
        number = torch.zeros(around.numel(), dtype=torch.long, device=around.device)
        number[seen_at] = torch.arange(len(seen_at), device=around.device)
        of_quarter = cells.new_empty(len(self.hidden.weight), len(seen_at))
        for start in range(0, len(seen_at), CELLS_AT_ONCE):
            some_at = seen_at[start : start + CELLS_AT_ONCE]
            rows, columns = some_at // quarter.shape[2] + above, some_at % quarter.shape[2]
            wide = _twice_at(rows, columns, deep.flatten(1), deep.shape[1:])
            taken = self.take[1](_picked(quarter.flatten(1), some_at))
            of_quarter[:, start : start + CELLS_AT_ONCE] = (wide + taken)[0, :, 0]
        out = cells.flatten(1).clone()
        for start in range(0, len(places), CELLS_AT_ONCE):
            some_at = places[start : start + CELLS_AT_ONCE]
            rows, columns = some_at // half.shape[2] + 2 * above, some_at % half.shape[2]
            x = _twice_at(rows, columns, of_quarter, quarter.shape[1:], number)
            x = x + self.take[0](_picked(half.flatten(1), some_at))
            x = x + self.see(_picked(shown.flatten(1), some_at))
            mine = out[:, some_at]
            change = self.judged(x)[0, :, 0].to(mine)
            out[:, some_at] = torch.where(mine > SUSPICION, mine + change, mine)
        return out.view_as(cells)


def _places(chosen: Tensor) -> Tensor:
    """The numbers of the cells that are chosen; of all where control flow has to be static."""
    flat = chosen.flatten()
    if is_static():
        return torch.arange(len(flat), device=flat.device)
    return flat.nonzero()[:, 0]


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Some columns (1, C, 1, n) of (C, k)."""
    return x.index_select(1, places)[None, :, None]


def _twice_at(
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    size: Sequence[int],
    number: Tensor | None = None,
) -> Tensor:
    """What `twice` gives at some cells, (1, C, 1, n).

    Args:
        rows, columns: (n,), where they lie in the doubled map.
        values: (C, k), columns of the map, one for each of its cells or for some.
        size: height and width of the map.
        number: (height * width,), which column a cell has; None: cells are numbered row by row.
    """
    height, width = size
    row, column = rows // 2, columns // 2
    other_row = (row - 1 + 2 * (rows % 2)).clamp(0, height - 1)
    other_column = (column - 1 + 2 * (columns % 2)).clamp(0, width - 1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        places = row * width + column
        return _picked(values, places if number is None else number[places])

    beside, over = at(row, other_column), at(other_row, column)
    return (9 * at(row, column) + 3 * (beside + over) + at(other_row, other_column)) / 16


def twice(x: Tensor) -> Tensor:
    """A map at twice its sides, bilinearly."""
    return smoothed(F.pad(doubled(x), (0, 0, 1, 1), mode="replicate"))
