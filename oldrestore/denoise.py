"""DenoiseHead: patches of a photo -> how much of the networks' change it needs.

The networks give every photo back a little other than it was: fine detail passes through their
latents and is not quite the same after it. A noisy photo gains far more than that, a sound one only
loses. Which it is shows in its own pixels, so patches of these are looked at, not a small copy. One
number comes of it for the whole photo: it can make no seams, and the user can give another.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_PX = 64  # side of a patch, of the photo's own pixels
PATCHES = 4  # in a column and in a row, spread evenly
START = 0.75  # the share of an untrained head
STEPS = 100  # shares are rounded to hundredths: sums in another order then end at the same bits
FINE = 8.0  # what is left of a patch without its local mean is enlarged by this: noise is small


@dataclass(frozen=True)
class DenoiseConfig:
    """Layout of the head.

    channels: width at 64, 32, 16 and 8 px.
    hidden: width of what is concluded from all patches together.
    """

    channels: tuple[int, ...] = (12, 24, 48, 64)
    hidden: int = 64


class DenoiseHead(nn.Module):
    """patches (B, N, 3, 64, 64) in [-1, 1] -> share (B,) in (0, 1). Starts as 0.75 for all."""

    def __init__(self, config: DenoiseConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width_in = 6
        for width in config.channels:
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
            width_in = width
        self.trunk = nn.Sequential(*layers)
        self.weight = nn.Linear(width_in, 1)  # noise is told best where the photo is plain
        self.hidden = nn.Sequential(
            nn.Linear(2 * width_in, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
        )
        self.to_share = nn.Linear(config.hidden, 1)
        nn.init.zeros_(self.to_share.weight)
        nn.init.constant_(self.to_share.bias, float(torch.tensor(START).logit()))

    def forward(self, patches: Tensor) -> Tensor:
        one_by_one = patches.flatten(0, 1)
        mean = F.avg_pool2d(one_by_one, 3, stride=1, padding=1, count_include_pad=False)
        seen = torch.cat([one_by_one, FINE * (one_by_one - mean)], dim=1)
        features = self.trunk(seen).mean(dim=(2, 3)).unflatten(0, patches.shape[:2])
        weights = self.weight(features).softmax(dim=1)
        pooled = torch.cat([features.mean(dim=1), (weights * features).sum(dim=1)], dim=1)
        share: Tensor = self.to_share(self.hidden(pooled))[:, 0].sigmoid()
        return share


class Patches:
    """Patches of one photo that comes in bands of rows, whatever their heights.

    Args:
        height, width: of the photo; where a side is shorter than a patch, its end is repeated.
    """

    def __init__(self, height: int, width: int) -> None:
        self._tops, self._lefts = _places(height), _places(width)
        self._height = height
        side = min(PATCH_PX, height), min(PATCH_PX, width)
        self._found = torch.zeros(PATCHES, PATCHES, 3, *side)

    def add(self, top: int, rows: Tensor) -> None:
        """Add rows (1, 3, h, W) in [-1, 1], from ``top`` on; each once."""
        bottom = top + rows.shape[2]
        tall, wide = self._found.shape[3:]
        for row, start in enumerate(self._tops):
            first, last = max(top, start), min(bottom, start + tall)
            if first >= last:
                continue
            for column, left in enumerate(self._lefts):
                part = rows[0, :, first - top : last - top, left : left + wide]
                self._found[row, column, :, first - start : last - start] = part

    def patches(self) -> Tensor:
        """(1, 16, 3, 64, 64) float32, after all rows were added."""
        tall, wide = self._found.shape[3:]
        found = self._found.flatten(0, 1)
        return F.pad(found, (0, PATCH_PX - wide, 0, PATCH_PX - tall), mode="replicate")[None]


def _places(side: int) -> list[int]:
    """Where patches begin along a side."""
    room = max(0, side - PATCH_PX)
    return [room * i // (PATCHES - 1) for i in range(PATCHES)]


@torch.inference_mode()
def estimate_denoise(head: DenoiseHead, patches: Tensor) -> float:
    """The share for one photo from its ``Patches.patches()``, 0 to 1 in hundredths."""
    share = copy.deepcopy(head).double()(patches.double().to(next(head.parameters()).device))
    return round(float(share) * STEPS) / STEPS
