"""How a restored photo compares with its target: PSNR, SSIM, perceptual distance."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oldrestore.evaluate.samples import FULL_SCALE, Pixels
from oldrestore.perceptual import Backbone, feature_distance

IDENTICAL_DB = 100.0  # PSNR of identical pictures, so that means stay finite


@dataclass(frozen=True)
class Score:
    """How one restored photo compares with its target.

    photo, row, column: which.
    squared_error: summed over the compared values, of [0, 1]; compared: their number.
    psnr: in dB. ssim: on RGB. distance: perceptual. None where nothing was compared (a photo
        without holes) or it is not measured: ssim and distance inside holes, distance without a
        backbone.
    """

    photo: str
    row: str
    column: str
    squared_error: float
    compared: int
    psnr: float | None
    ssim: float | None = None
    distance: float | None = None


def psnr_of(squared_error: float, compared: int) -> float | None:
    """Peak signal-to-noise ratio in dB: 10 log10(1 / mean squared error), at most 100.

    Args:
        squared_error: summed over values in [0, 1].
        compared: their number; of none there is no PSNR.
    """
    if compared == 0:
        return None
    if squared_error == 0:
        return IDENTICAL_DB
    return min(IDENTICAL_DB, 10 * math.log10(compared / squared_error))


def psnr_between(restored: Pixels, target: Pixels) -> float:
    """PSNR in dB of two pictures (H, W, 3)."""
    found = psnr_of(float(_squared_error(restored, target).sum()), restored.size)
    assert found is not None
    return found


class Target:
    """What restored photos are compared with; a picture that comes again is not compared again.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed.
    """

    def __init__(self, pixels: Pixels, backbone: Backbone | None) -> None:
        self.pixels = pixels
        self._backbone = backbone
        self._features: list[Tensor] | None = None
        self._known: dict[bytes, tuple[float, float | None]] = {}
        try:
            from torchmetrics.functional.image import structural_similarity_index_measure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "torchmetrics is needed to evaluate: pip install 'oldrestore[train]'"
            ) from error
        self._ssim = structural_similarity_index_measure

    def score(self, photo: str, row: str, column: str, restored: Pixels) -> Score:
        """Compare whole pictures, (H, W, 3) both."""
        error = float(_squared_error(restored, self.pixels).sum())
        ssim, distance = self._look(restored)
        psnr = psnr_of(error, restored.size)
        return Score(photo, row, column, error, restored.size, psnr, ssim, distance)

    def score_holes(
        self, photo: str, row: str, column: str, restored: Pixels, mask: Pixels
    ) -> Score:
        """Compare the pixels where ``mask`` (H, W) is not 0."""
        error = float(_squared_error(restored, self.pixels)[mask > 0].sum())
        compared = int((mask > 0).sum()) * restored.shape[2]
        return Score(photo, row, column, error, compared, psnr_of(error, compared))

    @torch.inference_mode()
    def _look(self, restored: Pixels) -> tuple[float, float | None]:
        """SSIM and perceptual distance."""
        key = restored.tobytes()
        if key not in self._known:
            picture, target = _unit_range(restored), _unit_range(self.pixels)
            ssim = self._ssim(picture, target, data_range=1.0)
            assert isinstance(ssim, Tensor)
            distance = None
            if self._backbone is not None:
                if self._features is None:
                    self._features = self._backbone.features(target * 2 - 1)
                found = self._backbone.features(picture * 2 - 1)
                distance = float(feature_distance(found, self._features))
            self._known[key] = float(ssim), distance
        return self._known[key]


def _squared_error(restored: Pixels, target: Pixels) -> NDArray[np.float64]:
    """(H, W, 3), of values in [0, 1]."""
    return ((restored.astype(np.float64) - target) / FULL_SCALE) ** 2


def _unit_range(pixels: Pixels) -> Tensor:
    """(H, W, 3) of 8 bits -> (1, 3, H, W) in [0, 1]; channels last, which is twice as fast here."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / FULL_SCALE
