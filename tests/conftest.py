"""What all tests share: one thread, so that they run the same everywhere, and tiny networks."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oldrestore.checkpoint import write_checkpoint
from oldrestore.config import CompactConfig
from oldrestore.denoise import DenoiseConfig
from oldrestore.face.enhancer import FaceConfig, FaceEnhancer
from oldrestore.mapping import MappingConfig
from oldrestore.mask import DetectorConfig
from oldrestore.pipeline import Restorer
from oldrestore.tone import ToneConfig
from oldrestore.vae import VAEConfig

TINY = CompactConfig(
    vae=VAEConfig(latent_channels=8, half_channels=4, quarter_channels=8),
    mapping=MappingConfig(
        latent_channels=8,
        channels=8,
        blocks=1,
        core_channels=8,
        core_blocks=1,
        attention_channels=4,
        attention_block=2,
        attention_halo=2,
    ),
    mask=DetectorConfig(channels=(4, 8), blocks=(1, 1)),
    tone=ToneConfig(channels=(4, 8, 8, 8)),
    denoise=DenoiseConfig(channels=(4, 8), hidden=8),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def restorer() -> Restorer:
    """Small untrained networks, each of which changes the photo."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = Restorer(TINY, device="cpu")
        # these layers start at zero
        torch.nn.init.normal_(tiny.mapping.tail.weight, std=0.1)
        torch.nn.init.normal_(tiny.tone_head.to_curve.weight, std=0.1)
        torch.nn.init.normal_(tiny.denoise_head.to_share.weight, std=3.0)
    tiny.tone_head.to_curve.bias[-1] = 5.0  # every photo is taken for faded
    return tiny


@pytest.fixture
def weights(restorer: Restorer, tmp_path: Path) -> Path:
    """The weights file of ``restorer``."""
    path = tmp_path / "tiny.safetensors"
    restorer.save(path, {"data": "none"})
    return path


@pytest.fixture
def face_weights(tmp_path: Path) -> Path:
    """The weights file of a small face network that changes what it is shown."""
    layout = FaceConfig(channels=(4, 8), blocks=(0, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceEnhancer(layout)
        torch.nn.init.normal_(network.tail.weight, std=0.1)
    tensors = {f"face.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / "faces.safetensors"
    write_checkpoint(path, tensors, {"preset": "compact", "face": dataclasses.asdict(layout)}, {})
    return path


@pytest.fixture
def heights_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Heights of the windows that are read of the pages of TIFF files from now on."""
    from oldrestore.photo_file.tiff_read import TiffPage  # needs tifffile

    heights: list[int] = []
    read = TiffPage.read

    def noted(self: TiffPage, top: int, left: int, height: int, width: int) -> Any:
        heights.append(height)
        return read(self, top, left, height, width)

    monkeypatch.setattr(TiffPage, "read", noted)
    return heights


@pytest.fixture(scope="session")
def mobilenet() -> dict[str, Tensor]:
    """MobileNetV2 with random weights, as torchvision names them."""
    return _mobilenet_weights()


@pytest.fixture(scope="session")
def mobilenet_file(mobilenet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(mobilenet, path)
    return path


def _mobilenet_weights() -> dict[str, Tensor]:
    """Random weights in the key layout of torchvision's MobileNetV2, written out from its table."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv_norm(conv: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        width = shape[0]
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"{norm}.weight"] = torch.rand(width, generator=generator) + 0.5
        state[f"{norm}.bias"] = torch.randn(width, generator=generator) * 0.3
        state[f"{norm}.running_mean"] = torch.randn(width, generator=generator) * 0.1
        state[f"{norm}.running_var"] = torch.rand(width, generator=generator) + 0.5

    conv_norm("features.0.0", "features.0.1", (32, 3, 3, 3))
    conv_norm("features.1.conv.0.0", "features.1.conv.0.1", (32, 1, 3, 3))
    conv_norm("features.1.conv.1", "features.1.conv.2", (16, 32, 1, 1))
    outputs = [16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    for index, (width_in, width_out) in enumerate(itertools.pairwise(outputs), start=2):
        block, wide = f"features.{index}.conv", 6 * width_in
        conv_norm(f"{block}.0.0", f"{block}.0.1", (wide, width_in, 1, 1))
        conv_norm(f"{block}.1.0", f"{block}.1.1", (wide, 1, 3, 3))
        conv_norm(f"{block}.2", f"{block}.3", (width_out, wide, 1, 1))
    return state
