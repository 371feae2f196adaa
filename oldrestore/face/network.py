"""The face network of a weights file: ours, or the published generator."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oldrestore.checkpoint import config_from_json, load_strictly, read_checkpoint
from oldrestore.face.enhancer import SIDE_PX, FaceConfig, FaceEnhancer
from oldrestore.face.generator import FaceGenerator, PaperFaceConfig

MOST_SIDE_PX = 2048  # of a crop; a file that asks for more is broken
DEFAULT_FACE_WEIGHTS = Path(__file__).parents[1] / "weights" / "faces.safetensors"


class FaceNetwork:
    """An aligned crop -> the enhanced one, on one device.

    side_px: of the crops. about: what the weights file says of itself.
    """

    def __init__(
        self, network: FaceEnhancer | FaceGenerator, about: dict[str, Any], side_px: int = SIDE_PX
    ) -> None:
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.side_px = side_px
        self.about = about
        self.device = torch.device("cpu")

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device) -> "FaceNetwork":
        """Read a weights file of faces, as `oldrestore convert` and `oldrestore train` write it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no whole weights file of a face network; the message says why.
        """
        checkpoint = read_checkpoint(path)
        layout, name = checkpoint.config.get("face"), f"{os.fspath(path)}: config.face"
        if layout is None:
            raise ValueError(
                f"{os.fspath(path)}: holds no face network; expected a file of `oldrestore convert "
                "--variant face` or of `oldrestore train release-face`"
            )
        network: FaceEnhancer | FaceGenerator
        try:
            if checkpoint.config.get("preset") == "paper":
                network = FaceGenerator(config_from_json(PaperFaceConfig, layout, name))
                side_px = network.config.side_px
            else:
                network = FaceEnhancer(config_from_json(FaceConfig, layout, name))
                side_px = _side_of(checkpoint.config, network, path)
        except RuntimeError as error:  # torch's, of sizes that no layer can have
            raise ValueError(f"{name}: no network can be built of it: {error}") from error
        for key in checkpoint.tensors:
            if not key.startswith("face."):
                raise ValueError(f"{os.fspath(path)}: unknown key {key}")
        load_strictly(network, checkpoint.tensors, "face", path)
        loaded = cls(network, checkpoint.about, side_px)
        loaded.network.to(device)
        loaded.device = device
        return loaded

    @torch.inference_mode()
    def enhance(self, crop: Tensor) -> Tensor:
        """(1, 3, S, S) in [-1, 1] -> the same on the CPU; S is ``side_px``."""
        enhanced: Tensor = self.network(crop.to(self.device)).clamp(-1, 1)
        return enhanced.cpu()


def _side_of(config: dict[str, Any], network: FaceEnhancer, path: str | os.PathLike[str]) -> int:
    """The side of the crops that a compact face network was trained on."""
    side = config.get("face_side_px", SIDE_PX)
    step = network.align_px
    if type(side) is not int or not step <= side <= MOST_SIDE_PX or side % step:
        raise ValueError(
            f"{os.fspath(path)}: config.face_side_px: expected a multiple of {step} up to "
            f"{MOST_SIDE_PX}, got {side!r}"
        )
    return side
