"""Restraint: how much of a restoration is wanted, and taking no more than that.

Grain and paper texture are not always damage, and a photo that is whole wants no network over it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from oldrestore.config import DENOISE, RestorerConfig
from oldrestore.grain import Grain, draw_grain, measure_grain

OutsideMask: TypeAlias = Literal["restore", "keep"]


@dataclass(frozen=True)
class Wishes:
    """What ``Restorer.restore`` is asked for, each 0 to 1; see there.

    denoise: None: as the networks' head estimates it for the photo.
    """

    threshold: float
    denoise: float | None
    tone: float
    strength: float

    @property
    def face_strength(self) -> float:
        """How much of a face's change is taken: none where only holes and tone may change."""
        return 0.0 if self.denoise == 0 else self.strength


def read_wishes(
    config: RestorerConfig,
    *,
    threshold: float | None,
    denoise: float | None,
    outside_mask: OutsideMask,
    tone: float | None,
    strength: float,
) -> Wishes:
    """Defaults for what is None; "keep" as the numbers that it means.

    Raises:
        ValueError: a number out of its range, or above 0 where "keep" asks for none.
    """
    if outside_mask not in ("restore", "keep"):
        raise ValueError(f"outside_mask: expected 'restore' or 'keep', got {outside_mask!r}")
    if outside_mask == "keep":
        for name, value in (("denoise", denoise), ("tone", tone)):
            if value not in (None, 0):
                raise ValueError(f'{name}: expected 0 with outside_mask="keep", got {value}')
        denoise = tone = 0.0
    defaults = config.defaults
    if denoise is None and config.denoise is None:
        denoise = DENOISE[config.preset]
    return Wishes(
        threshold=fraction("threshold", defaults.threshold if threshold is None else threshold),
        denoise=None if denoise is None else fraction("denoise", denoise),
        tone=fraction("tone", defaults.tone_strength if tone is None else tone),
        strength=fraction("strength", strength),
    )


@torch.inference_mode()
def hold_back(
    image: Tensor,
    restored: Tensor,
    mask: Tensor,
    denoise: float,
    *,
    grain: Grain | None = None,
    start: tuple[int, int] = (0, 0),
) -> Tensor:
    """Take only part of a restoration where nothing was missing, and let the holes match.

        out = image + denoise * (restored - image)      where the mask is 0
        out = restored + (1 - denoise) * grain          where it is not

    with grain as ``grain.measure_grain`` finds it around the holes.

    Args:
        image, restored: (1, 3, H, W) in [-1, 1]: before and after the networks.
        mask: (1, 1, H, W) of 0 and 1; 1 = damaged.
        denoise: 0 to 1.
        grain: of the whole photo, of which these are a part from row and column ``start`` on;
            None: measured here.

    Returns:
        (1, 3, H, W) in [-1, 1].
    """
    if denoise == 1:
        return restored
    outside = image.lerp(restored, denoise)
    if not (mask > 0).any():
        return outside
    grain = measure_grain(image, mask) if grain is None else grain
    drawn = draw_grain(grain, restored, mask, start)
    inside = (restored + (1 - denoise) * drawn).clamp(-1, 1)
    return torch.where(mask > 0, inside, outside)


def fraction(name: str, value: float) -> float:
    """The number, if it is one from 0 to 1.

    Raises:
        ValueError: it is not; the message starts with ``name``.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0 to 1, got {value}")
    return float(value)
