"""ToneHead: a small copy of the whole photo -> one tone curve that undoes its fading.

Tone is apart from the restoring networks because it is ambiguous: inside a pixel loss its error
drowns that of everything else. It is estimated once from the whole photo and applied to every pixel
alike, so it can make no seams, invents nothing, and can be turned down or off.
"""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import LUMA

THUMBNAIL_PX = 64  # side of the square small copy
BLACK_RANGE = 0.45  # black and white point move at most this far; of the [0, 1] range
GAMMA_RANGE = 0.7  # |log gamma| at most
SATURATION_RANGE = 1.1  # |log saturation| at most
FIXED_POINT = 2.0**40  # steps of 1 in which rows of a small copy are summed
SMALLEST_VALUE = 1e-4  # keeps the gradient of a power finite at black
# a toned print is one curve through colour space: this much chroma may lie off it, of [0, 1]
TONED_RESIDUAL = 0.015


@dataclass(frozen=True)
class ToneConfig:
    """Layout of the tone head.

    channels: width at 32, 16, 8 and 4 px.
    quantiles: of each channel, and of the chroma, that are looked at beside the picture. Where
        black, white and the middle of a photo lie says most of how it faded.
    """

    channels: tuple[int, ...] = (24, 48, 96, 128)
    quantiles: tuple[float, ...] = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ToneCurve:
    """What was found in each photo, and undoes it: levels, gamma and saturation.

        v = ((image - black) / (white - black)) ** gamma         per channel, in [0, 1]
        out = luma(v) + saturation * (v - luma(v))

    black, white, gamma: (B, 3). saturation: (B, 1). faded: (B, 1), probability that there is
    fading to undo. (0, 1, 1, 1) is the identity.
    """

    black: Tensor
    white: Tensor
    gamma: Tensor
    saturation: Tensor
    faded: Tensor

    def common(self, toned: Tensor) -> "ToneCurve":
        """The curve with channels averaged where ``toned`` (B, 1): keeps grey grey, sepia sepia."""

        def merge(x: Tensor) -> Tensor:
            return torch.where(toned, x.mean(dim=1, keepdim=True).expand_as(x), x)

        return ToneCurve(
            merge(self.black),
            merge(self.white),
            merge(self.gamma),
            torch.where(toned, torch.ones_like(self.saturation), self.saturation),
            self.faded,
        )


@dataclass(frozen=True)
class AppliedTone:
    """The tone curve of one photo; see ``ToneCurve`` for the equation.

    strength: how much of it was applied; 0 if the photo is not taken for faded.
    faded: probability that the photo is faded.
    black, white, gamma: per channel. saturation: of the whole.
    """

    strength: float
    faded: float
    black: tuple[float, ...]
    white: tuple[float, ...]
    gamma: tuple[float, ...]
    saturation: float


class ToneHead(nn.Module):
    """thumbnail (B, 3, 64, 64) in [-1, 1] -> ToneCurve. Starts as the identity."""

    def __init__(self, config: ToneConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width_in = 3
        for width in config.channels:
            layers += [
                nn.Conv2d(width_in, width, 3, padding=1),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            width_in = width
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Linear(2 * width_in + 4 * len(config.quantiles), 2 * width_in),
            nn.ReLU(),
            nn.Linear(2 * width_in, width_in),
            nn.ReLU(),
        )
        self.to_curve = nn.Linear(width_in, 11)
        nn.init.zeros_(self.to_curve.weight)
        nn.init.zeros_(self.to_curve.bias)

    def forward(self, thumbnail: Tensor) -> ToneCurve:
        features = self.trunk(thumbnail)
        values = torch.cat([thumbnail, _chroma(thumbnail)], dim=1).flatten(2)  # (B, 4, 64 * 64)
        levels = values.new_tensor(self.config.quantiles)
        pooled = [
            features.mean(dim=(2, 3)),
            features.amax(dim=(2, 3)),
            values.quantile(levels, dim=2).permute(1, 0, 2).flatten(1),
        ]
        curve = self.to_curve(self.hidden(torch.cat(pooled, dim=1)))
        black, white, gamma, saturation, faded = curve.split((3, 3, 3, 1, 1), dim=1)
        return ToneCurve(
            black=BLACK_RANGE * black.tanh(),
            white=1 - BLACK_RANGE * white.tanh(),
            gamma=(GAMMA_RANGE * gamma.tanh()).exp(),
            saturation=(SATURATION_RANGE * saturation.tanh()).exp(),
            faded=faded.sigmoid(),
        )


def undo_fading(
    head: ToneHead, image: Tensor, filled: Tensor, strength: float, *, faded_probability: float
) -> tuple[Tensor, AppliedTone]:
    """Estimate the tone curve of one photo from ``filled`` and apply it to ``image``.

    Args:
        head: of the model.
        image, filled: (1, 3, H, W) in [-1, 1].
        strength: 0 to 1; nothing is applied to a photo that is not taken for faded.
        faded_probability: from which on a photo is.
    """
    whole = ThumbnailSum(filled.shape[2])
    whole.add(0, filled.float())
    small = whole.thumbnail().to(filled.device)
    curve, applied = estimate_tone(head, small, strength, faded_probability=faded_probability)
    return (apply_tone(image, curve, applied.strength) if applied.strength else image), applied


def estimate_tone(
    head: ToneHead, small: Tensor, strength: float, *, faded_probability: float
) -> tuple[ToneCurve, AppliedTone]:
    """The tone curve of one photo from its small copy (1, 3, 64, 64), and how much to apply.

    The other arguments are those of ``undo_fading``.
    """
    curve = _rounded(copy.deepcopy(head).double()(small.double())).common(is_toned(small))
    faded = float(curve.faded)
    strength = strength if faded > faded_probability else 0.0
    applied = AppliedTone(
        strength=strength,
        faded=faded,
        black=tuple(curve.black[0].tolist()),
        white=tuple(curve.white[0].tolist()),
        gamma=tuple(curve.gamma[0].tolist()),
        saturation=float(curve.saturation),
    )
    return curve, applied


def _rounded(curve: ToneCurve) -> ToneCurve:
    """To float32: sums in another order, as with more threads, then end at the same bits."""
    return ToneCurve(*(getattr(curve, field.name).float() for field in dataclasses.fields(curve)))


class ThumbnailSum:
    """``thumbnail`` of one photo that comes in bands of rows, whatever their heights.

    Rows are summed in fixed point, where the order does not matter.

    Args:
        height: of the photo.
    """

    def __init__(self, height: int) -> None:
        self._height = height
        self._total = torch.zeros(1, 3, THUMBNAIL_PX, THUMBNAIL_PX, dtype=torch.int64)

    def add(self, top: int, rows: Tensor) -> None:
        """Add rows (1, 3, h, W) in [-1, 1], from ``top`` on; each once."""
        pooled = F.adaptive_avg_pool2d(rows, (rows.shape[2], THUMBNAIL_PX))
        fixed = (pooled.double() * FIXED_POINT).round().long().cpu()
        bottom = top + rows.shape[2]
        for place, (first, last) in enumerate(self._bins()):
            if first < bottom and last > top:
                part = fixed[:, :, max(first, top) - top : min(last, bottom) - top]
                self._total[:, :, place] += part.sum(dim=2)

    def thumbnail(self) -> Tensor:
        """(1, 3, 64, 64) float32, after all rows were added."""
        counts = torch.tensor([last - first for first, last in self._bins()])
        mean = self._total.double() / (counts[:, None] * FIXED_POINT)
        return mean.float()

    def _bins(self) -> list[tuple[int, int]]:
        """The rows of each row of the small copy, as ``adaptive_avg_pool2d`` chooses them."""
        height, side = self._height, THUMBNAIL_PX
        return [(i * height // side, -(-(i + 1) * height // side)) for i in range(side)]


def _chroma(image: Tensor) -> Tensor:
    """How far each pixel is from grey, (B, 1, H, W)."""
    return image.amax(dim=1, keepdim=True) - image.amin(dim=1, keepdim=True)


def thumbnail(image: Tensor) -> Tensor:
    """The small copy (B, 3, 64, 64) of whole photos (B, 3, H, W), by area averaging."""
    return F.adaptive_avg_pool2d(image, THUMBNAIL_PX)


def apply_tone(image: Tensor, curve: ToneCurve, strength: Tensor | float = 1.0) -> Tensor:
    """Undo fading.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        curve: one curve a photo.
        strength: 0 (the image as it is) to 1 (the whole curve), a number or (B, 1).

    Returns:
        (B, 3, H, W) in [-1, 1].
    """

    def per_channel(x: Tensor) -> Tensor:
        return x[:, :, None, None].to(image.dtype)

    black = per_channel(curve.black * strength)
    white = per_channel(1 + (curve.white - 1) * strength)
    gamma = per_channel(curve.gamma**strength)
    saturation = per_channel(curve.saturation**strength)
    levels = ((image + 1) / 2 - black) / (white - black).clamp(min=0.1)
    value = _power(levels.clamp(SMALLEST_VALUE, 1), gamma)
    # term by term: torch's sum has other bits at the ends of rows
    red, green, blue = (part * value[:, i, None] for i, part in enumerate(LUMA))
    luma = red + green + blue
    return (luma + saturation * (value - luma)).clamp(0, 1) * 2 - 1


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """base ** exponent; on a CPU by NumPy.

    torch's power has other bits where its threads' shares end than within them.
    """
    if base.device.type != "cpu" or base.dtype != torch.float32 or torch.is_grad_enabled():
        return base**exponent
    return torch.from_numpy(np.power(base.numpy(), exponent.numpy()))


def is_toned(image: Tensor) -> Tensor:
    """Whether photos are grey or of one tone (sepia, cyanotype), (B, 1).

    In such a photo colour is a function of brightness: what a parabola through it leaves
    unexplained is small.

    Args:
        image: (B, 3, H, W) in [-1, 1]; the thumbnail is enough.
    """
    value = ((image + 1) / 2).flatten(2).double()
    luma = (value * value.new_tensor(LUMA)[None, :, None]).sum(dim=1)
    design = torch.stack([torch.ones_like(luma), luma, luma * luma], dim=2)
    chroma = (value - luma[:, None]).transpose(1, 2)
    # a flat photo gives a singular system: a little ridge makes it solvable
    gram = design.transpose(1, 2) @ design + 1e-6 * torch.eye(3, dtype=value.dtype).to(value.device)
    fitted = design @ torch.linalg.solve(gram, design.transpose(1, 2) @ chroma)
    residual = (chroma - fitted).square().mean(dim=(1, 2)).sqrt()
    toned: Tensor = (residual < TONED_RESIDUAL)[:, None]
    return toned
