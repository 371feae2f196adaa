"""Bring old photographs back: ``oldrestore.restore(photo)``."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

from oldrestore.image import PhotoLike
from oldrestore.pipeline import MaskLike, Restorer
from oldrestore.restoration import Restoration
from oldrestore.restraint import OutsideMask

__version__ = "0.1.0"
__all__ = ["Restoration", "Restorer", "__version__", "detect_scratches", "restore"]


def restore(
    photo: PhotoLike | Sequence[PhotoLike],
    *,
    mask: MaskLike | Sequence[MaskLike] = "auto",
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    denoise: float | None = None,
    outside_mask: OutsideMask = "restore",
    strength: float = 1.0,
    tone: float | None = None,
    max_memory: str | int | None = None,
) -> Any:
    """Restore a photo: the same kind out as in, at the same size.

    Args:
        photo: a path, the bytes of a file, PIL image, array (H, W[, C]) or tensor ([B,] C, H, W);
            or a list of them.
        mask: "auto" finds scratches and spots; None takes nothing for damaged; or your own mask,
            1 or 255 = damaged.
        weights: a weights file; None: the one shipped.
        device, dtype: see ``Restorer``.
        denoise: how much of what the networks change outside holes is taken, 0 (the photo's own
            grain and noise) to 1 (their whole result); None: as much as the photo needs.
        outside_mask: "keep" changes nothing but the holes, and gives them the grain around them.
        strength: 0 (unchanged) to 1.
        tone: how much of a fading found is undone, 0 to 1; None: as the weights file says.
        max_memory: what restoring may take, such as "2GiB"; None: three quarters of what is free.
            Large photos are worked on in bands, with the same result.

    Returns:
        The restored photo: a PIL image for a file, else what came in. A list for a list.

    Raises:
        ValueError, TypeError: a photo, mask or number that cannot be used; the message says why.
    """
    restorer = _restorer(_text(weights), device, dtype)
    result = restorer.restore(
        photo,
        mask=mask,
        denoise=denoise,
        outside_mask=outside_mask,
        strength=strength,
        tone=tone,
        max_memory=max_memory,
    )
    return [one.image for one in result] if isinstance(result, list) else result.image


def detect_scratches(
    photo: PhotoLike,
    *,
    threshold: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Find scratches, spots and tears: a mask of the photo's kind and size, 1 or 255 = damaged."""
    return _restorer(_text(weights), device, None).detect(photo, threshold=threshold)


def _text(weights: str | os.PathLike[str] | None) -> str | None:
    return None if weights is None else os.fspath(weights)


@functools.lru_cache(maxsize=2)
def _restorer(
    weights: str | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> Restorer:
    """The last restorers loaded, so that a loop over photos reads the weights once."""
    return Restorer.load(weights, device, dtype)
