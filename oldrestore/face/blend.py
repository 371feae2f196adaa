"""Blending: what the network changed of an aligned face -> back into the photo, without a seam.

Only the change travels: a face larger than the crop keeps the detail that the crop never had. The
change has no colour of its own, and fades out towards the border of the crop, in shares of it.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.face.align import Array, inverse, shifted, warp

# of the crop's side: what is broader than this is not the network's to change, so that a face keeps
# the colours and the light of its surroundings
COLOUR_SIGMA = 0.06
ROUNDNESS = 3.0  # exponent of the superellipse that the mask is: 2 is an ellipse, more is squarer
FEATHER = 0.3  # share of the way from the centre to the border on which the mask fades
GAUSSIAN_REACH = 3  # standard deviations that a blur looks far
STRIP_ROWS = 256  # of the photo that are blended at a time


@functools.cache
def face_mask(side_px: int) -> Tensor:
    """(1, 1, S, S) in [0, 1]: 1 on the face, falling smoothly to 0 at the border of the crop."""
    axis = (torch.arange(side_px, dtype=torch.float32) + 0.5) / side_px * 2 - 1
    radius = (axis.abs()[:, None] ** ROUNDNESS + axis.abs()[None] ** ROUNDNESS) ** (1 / ROUNDNESS)
    share = ((1 - radius) / FEATHER).clamp(0, 1)
    return (share * share * (3 - 2 * share))[None, None]


def change_of(crop: Tensor, enhanced: Tensor, *, is_grey: bool) -> Tensor:
    """What to add to the photo: without its broad part, in grey for a grey face, under the mask.

    Args:
        crop, enhanced: (1, 3, S, S) in [-1, 1].

    Returns:
        (1, 3, S, S), 0 at the border.
    """
    side = crop.shape[-1]
    mask = face_mask(side).to(crop)
    change = enhanced - crop
    # under the mask: what lies outside must not bleed in
    broad = _blurred(change * mask, COLOUR_SIGMA * side) / _blurred(mask, COLOUR_SIGMA * side)
    change = (change - broad) * mask
    return change.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1) if is_grey else change


def add_change(window: Tensor, change: Tensor, matrix: Array) -> Tensor:
    """Add a change to a part of the photo.

    Args:
        window: (1, 3, h, w) in [-1, 1].
        change: (1, 3, S, S), see ``change_of``.
        matrix: (2, 3), from pixels of ``window`` to those of the crop.

    Returns:
        (1, 3, h, w) in [-1, 1]; what the crop does not reach is as it was.
    """
    height, width = window.shape[2:]
    back = torch.cat([change, (face_mask(change.shape[-1]) > 0).to(change)], dim=1)
    back = F.pad(back, (1, 1, 1, 1))  # zeros, which then go on beyond the border
    placed = shifted(matrix, 0, 0)
    placed[:, 2] += 1
    strips = []
    for top in range(0, height, STRIP_ROWS):
        rows = min(STRIP_ROWS, height - top)
        to_strip = inverse(shifted(placed, 0, top))
        strips.append(warp(back, to_strip, (rows, width), mode="bilinear"))
    warped = torch.cat(strips, dim=2)
    reached = warped[:, 3:] > 0
    return torch.where(reached, (window + warped[:, :3]).clamp(-1, 1), window)


def _blurred(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur; beyond the border is nothing."""
    reach = max(1, round(GAUSSIAN_REACH * sigma_px))
    taps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=image.device)
    taps = (-0.5 * (taps / sigma_px) ** 2).exp()
    taps = (taps / taps.sum()).to(image.dtype)
    channels = image.shape[1]
    across = taps.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    blurred = F.conv2d(image, across, padding=(0, reach), groups=channels)
    return F.conv2d(blurred, across.transpose(2, 3), padding=(reach, 0), groups=channels)
