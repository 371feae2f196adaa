"""Pre-fill of holes, before the encoder sees them.

A network that is shown raw holes spends itself on finding out what they hide. A smooth fill from
the surroundings (push-pull pyramid of Gortler et al., The Lumigraph, 1996, with a few sweeps of
diffusion at each level) costs little and starts the encoder near the answer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 6  # the coarsest cells are 64 px
COARSE_SWEEPS = 4  # at the coarsest level, each reaches one cell further
SWEEPS = 3  # of diffusion at each finer level
# how far a pixel can influence the fill: coarse sweeps, then interpolation and sweeps at each level
FILL_CONTEXT_PX = 2**LEVELS * (COARSE_SWEEPS + 1) + (SWEEPS + 2) * 2**LEVELS


def fill_holes(image: Tensor, mask: Tensor) -> Tensor:
    """Replace what the mask covers by a smooth continuation of what it does not.

    Args:
        image: (B, 3, H, W) floating point.
        mask: (B, 1, H, W) in [0, 1]; 1 = damaged. In between, fill and image are mixed.

    Returns:
        (B, 3, H, W). Where the mask is 0 the image is untouched to the bit. A hole farther than
        ``FILL_CONTEXT_PX`` from anything undamaged becomes mid-grey.

    Raises:
        ValueError: the shapes do not match.
    """
    if mask.shape != (image.shape[0], 1, *image.shape[2:]):
        expected = (image.shape[0], 1, *image.shape[2:])
        raise ValueError(f"mask: expected {expected} to match image, got {tuple(mask.shape)}")
    if not (mask > 0).any():
        return image
    height, width = image.shape[-2:]
    cell = 2**LEVELS
    padding = (0, -width % cell, 0, -height % cell)
    colour = F.pad(image, padding)
    weight = F.pad((mask <= 0).to(image.dtype), padding)
    pyramid = [(colour, weight)]
    for _ in range(LEVELS):
        pyramid.append(pull(*pyramid[-1]))
    filled = spread(*pyramid.pop())
    while pyramid:
        filled = diffuse(double(filled), *pyramid.pop())
    filled = filled[..., :height, :width]
    return mix(image, filled, mask)


def mix(image: Tensor, filled: Tensor, mask: Tensor) -> Tensor:
    """The fill where the mask is, the image to the bit where it is not."""
    return torch.where(mask > 0, image * (1 - mask) + filled * mask, image)


def paint_white(image: Tensor, mask: Tensor) -> Tensor:
    """Paint what the mask covers white, as the published networks were trained to see it.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) in [0, 1]; 1 = damaged. In between, white and image are mixed.
    """
    return image * (1 - mask) + mask


def pull(colour: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Halve: weighted mean of four cells, and how much of them is known."""
    known = F.avg_pool2d(weight, 2)
    mean = F.avg_pool2d(colour * weight, 2) / known.clamp(min=torch.finfo(colour.dtype).tiny)
    return torch.where(known > 0, mean, torch.zeros_like(mean)), known


def spread(colour: Tensor, weight: Tensor) -> Tensor:
    """At the coarsest level, from the rim in: unknown cells take the mean of known neighbours."""
    known = (weight > 0).to(colour.dtype)
    for _ in range(COARSE_SWEEPS):
        count = F.avg_pool2d(known, 3, 1, 1, divisor_override=1)
        total = F.avg_pool2d(colour * known, 3, 1, 1, divisor_override=1)
        colour = torch.where(known > 0, colour, total / count.clamp(min=1))
        known = (count > 0).to(colour.dtype)
    return colour


def double(coarse: Tensor) -> Tensor:
    """A coarse fill at the next finer level, between the middles of its cells.

    torch's bilinear interpolation has other bits with one thread than with two.
    """
    return _double_along(_double_along(coarse, 2), 3)


def _double_along(x: Tensor, dim: int) -> Tensor:
    """Three parts of the nearer cell and one of the other, which at the ends is the cell itself."""
    size = x.shape[dim]
    nearer, other = 0.75 * x, 0.25 * x
    before = torch.cat([other.narrow(dim, 0, 1), other.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([other.narrow(dim, 1, size - 1), other.narrow(dim, size - 1, 1)], dim)
    pair = [before.add_(nearer), after.add_(nearer)]
    return torch.stack(pair, dim + 1).flatten(dim, dim + 1)


def diffuse(smooth: Tensor, colour: Tensor, weight: Tensor) -> Tensor:
    """Keep what is known at this level, diffuse the smooth fill of the rest."""
    known = weight > 0
    filled = torch.where(known, colour, smooth)
    for _ in range(SWEEPS):
        around = _mean_of_nine(F.pad(filled, (1, 1, 1, 1), mode="replicate"))
        filled = torch.where(known, filled, around)
    return filled


def _mean_of_nine(x: Tensor) -> Tensor:
    """(B, C, H + 2, W + 2) -> (B, C, H, W): avg_pool2d takes several times as long."""
    of_rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
    total = (of_rows[..., :-2] + of_rows[..., 1:-1]).add_(of_rows[..., 2:])
    return total.mul_(1 / 9)
