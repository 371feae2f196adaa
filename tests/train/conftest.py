"""Small folders of photos to train on, drawn by the tests themselves."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from oldrestore.backbones import VGG19_WIDTHS
from oldrestore.checkpoint import write_checkpoint
from oldrestore.config import PaperConfig
from oldrestore.mapping import PaperMappingConfig, make_mapping
from oldrestore.mask import PaperDetectorConfig, make_detector
from oldrestore.vae import VAE, PaperVAEConfig


def draw_photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with smooth shades, edges and texture, (H, W) RGB."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        a, b, c, d = rng.uniform(-3, 3, 4)
        shade = 0.5 + 0.3 * np.sin(a * x + b * y + c) + 0.1 * np.sin(9 * d * x * y)
        channels.append(shade)
    picture = np.stack(channels, axis=-1)
    for _ in range(6):
        top, left = rng.integers(height * 3 // 4), rng.integers(width * 3 // 4)
        tall, wide = rng.integers(8, height // 3), rng.integers(8, width // 3)
        picture[top : top + tall, left : left + wide] = rng.uniform(0, 1, 3)
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def _write_photos(folder: Path, count: int, *, seed: int, grey: bool = False) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        photo = draw_photo(rng, 144, 160)
        (photo.convert("L") if grey else photo).save(folder / f"photo_{chr(97 + i)}x.png")
    return folder


@pytest.fixture
def write_photos() -> Callable[..., Path]:
    """(folder, count, *, seed, grey=False): draw photos into a new folder."""
    return _write_photos


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_photos(tmp_path_factory.mktemp("data") / "clean", 12, seed=0)


@pytest.fixture(scope="session")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_photos(tmp_path_factory.mktemp("data") / "old", 8, seed=1, grey=True)


def narrow_paper(variant: str = "scratch") -> PaperConfig:
    """The published layout as the preset `paper-tiny` has it."""
    return PaperConfig(
        vae=PaperVAEConfig(latent_channels=8),
        mapping=PaperMappingConfig(variant=variant, latent_channels=8, channels=32, blocks=3),
        mask=PaperDetectorConfig(channels=4),
    )


def _write_paper(path: Path, variant: str = "scratch") -> Path:
    config = narrow_paper(variant)
    assert config.mask is not None
    torch.manual_seed(3)
    networks: dict[str, nn.Module] = {
        "vae_old": VAE(config.vae),
        "vae_clean": VAE(config.vae),
        "mapping": make_mapping(config.mapping),
        "mask": make_detector(config.mask),
    }
    tensors = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    write_checkpoint(path, tensors, asdict(config), {"data": "none"}, half=False)
    return path


@pytest.fixture
def write_paper() -> Callable[..., Path]:
    """(file, variant="scratch"): write random published networks, narrow, as a weights file."""
    return _write_paper


@pytest.fixture(scope="session")
def paper_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a file of the scratch variant, with a detector, as `oldrestore convert` writes it."""
    return _write_paper(tmp_path_factory.mktemp("weights") / "paper.safetensors")


@pytest.fixture(scope="session")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-19 with random weights, in torchvision's key layout."""
    torch.manual_seed(4)
    tensors, slot, width_in = {}, 0, 3
    for width in VGG19_WIDTHS:
        if not isinstance(width, int):  # a maximum
            slot += 1
            continue
        # He et al. (2015): the signal keeps its strength through all layers
        deviation = (2 / (9 * width_in)) ** 0.5
        tensors[f"features.{slot}.weight"] = torch.randn(width, width_in, 3, 3) * deviation
        tensors[f"features.{slot}.bias"] = torch.zeros(width)
        slot, width_in = slot + 2, width
    path = tmp_path_factory.mktemp("weights") / "vgg19.safetensors"
    save_file(tensors, path)
    return path
