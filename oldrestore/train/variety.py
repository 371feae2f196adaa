"""More kinds of sound ground than there are photos: a detector that knows them by heart is none.

Photos turned, as negatives, in other tones, and laid over one another: none of that is damage, and
each gives edges, dots and hairlines that the photos themselves do not have.
"""

import torch
from numpy.random import Generator
from torch import Tensor

BLENDED_SHARE = 0.3
NEGATIVE_SHARE = 0.2
TONED_SHARE = 0.4
GAMMA = (0.5, 2.0)
OVERLAY = (0.25, 0.75)  # share of the second photo


def turned(ground: Tensor, rng: Generator) -> Tensor:
    """One of a square's eight turns and mirror images, (3, S, S)."""
    ground = ground.rot90(int(rng.integers(4)), (1, 2))
    return ground.flip(1) if rng.random() < 0.5 else ground


def varied(ground: Tensor, another: Tensor, rng: Generator) -> Tensor:
    """Some of: laid over another photo, as a negative, in another tone.

    Args:
        ground, another: (3, S, S) in [-1, 1].
        rng: the only source of chance.

    Returns:
        A new crop, like ``ground``.
    """
    if rng.random() < BLENDED_SHARE:
        ground = torch.lerp(ground, another, float(rng.uniform(*OVERLAY)))
    if rng.random() < NEGATIVE_SHARE:
        ground = -ground
    if rng.random() < TONED_SHARE:
        low, high = (float(x) for x in GAMMA)
        gamma = low * (high / low) ** float(rng.random())
        ground = ((ground + 1) / 2).clamp(0, 1) ** gamma * 2 - 1
        ground = ground[torch.from_numpy(rng.permutation(3))]
    return ground
