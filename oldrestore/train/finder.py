"""Finder: masks as restoring finds them, for networks that are to be trained on such."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.checkpoint import config_from_json
from oldrestore.config import Defaults
from oldrestore.mask import DetectorConfig, ScratchDetector
from oldrestore.train.state import read_source


class Finder(nn.Module):
    """A trained detector as restoring uses it: image -> mask.

    Raises:
        ValueError: ``path`` is no weights file of `compact` with a detector.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        source = read_source(path)
        if source.kind != "compact" or "defaults" not in source.config:
            raise ValueError(
                f"detector: {path}: expected a weights file of compact, which holds a detector and "
                "the threshold that restoring uses"
            )
        layout = config_from_json(DetectorConfig, source.config["mask"], f"{path}: config.mask")
        self.detector = ScratchDetector(layout)
        source.fill(self.detector, source.name_of("mask"), layout)
        defaults = config_from_json(Defaults, source.config["defaults"], f"{path}: config.defaults")
        self.threshold, self.dilation_px = defaults.threshold, defaults.dilation_px
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W) of 0 and 1: what it finds, widened."""
        height, width = image.shape[2:]
        right, below = (-side % self.detector.config.align_px for side in (width, height))
        padded = F.pad(image, (0, right, 0, below), mode="reflect")
        probability = self.detector.probability(padded)[..., :height, :width]
        found = (probability > self.threshold).float()
        return F.max_pool2d(found, 2 * self.dilation_px + 1, 1, self.dilation_px)
