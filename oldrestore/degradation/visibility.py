"""Which structured damage shows: the part of it that a viewer, or a detector, can know of.

A speck as dark as the hair it lies on has changed the photo and is seen by nobody; so is a grey one
in grain. What shows is told by the rule of A. Rose (The sensitivity performance of the human eye,
J. Opt. Soc. Am. 38, 1948): a detail is seen with certainty if it differs from its ground by about
five times the ground's fluctuation over the area of the detail.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.degradation.blending import VISIBLE, Bools
from oldrestore.degradation.fields import Array

_CERTAINTY = 5.0
"""Rose's ratio of difference to fluctuation."""

_DETAIL_PX = 5
"""Side of the window within which a detail counts as one: details are thin, and grounds change."""

_GROUND_PX = 9
"""Side of the window whose fluctuation is the ground's."""

_LEAST_FLUCTUATION = 2 / 127.5
"""Of a plain ground: two levels of 8 bits, what rounding and compression leave."""


def visible(damaged: Array, sound: Array, mask: Bools) -> Bools:
    """The part of a mask that shows.

    It differs by more than 12 levels of 8 bits, and by Rose's rule in the window around it.

    Args:
        damaged: (3, H, W) in [-1, 1].
        sound: the same picture without the damage, with all its blur, noise and grain.
        mask: (H, W); where there is damage.
    """
    change = torch.from_numpy(np.abs(damaged - sound).max(axis=0))[None]  # (1, H, W)
    strong = (change > VISIBLE) & torch.from_numpy(mask)
    grey = torch.from_numpy(sound.mean(axis=0))[None]
    variance = _mean(grey * grey, _GROUND_PX) - _mean(grey, _GROUND_PX) ** 2
    fluctuation = variance.clamp(min=_LEAST_FLUCTUATION**2).sqrt()
    area = _mean(strong.float(), _DETAIL_PX) * _DETAIL_PX**2
    total = _mean(strong * change, _DETAIL_PX) * _DETAIL_PX**2
    # mean difference of the detail, times the root of its area, over the ground's fluctuation
    shows: Bools = (strong & (total >= _CERTAINTY * fluctuation * area.sqrt())).numpy()[0]
    return shows


def _mean(x: Tensor, side: int) -> Tensor:
    """Over square windows, (1, H, W); at the borders over what there is of them."""
    return F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
