"""State dicts of the published layout with weights from a formula, and narrow networks."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore.config import PaperConfig
from oldrestore.mapping import PaperMappingConfig
from oldrestore.mask import PaperDetectorConfig
from oldrestore.published import published_names
from oldrestore.vae import PaperVAEConfig

SEED = 7
NARROW = PaperConfig(
    vae=PaperVAEConfig(latent_channels=8),
    mapping=PaperMappingConfig(latent_channels=8, channels=16),
    mask=PaperDetectorConfig(channels=4),
)


def _values(key: str, shape: tuple[int, ...], *, is_clean_vae: bool) -> Tensor:
    """The formula that the golden outputs were made with, by the published name of the tensor."""
    name = f"B/{key}" if is_clean_vae else key
    random = np.random.RandomState((zlib.crc32(name.encode()) ^ SEED) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if len(shape) == 4:
        values = random.randn(*shape) * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    elif is_clean_vae:
        values = 0.05 * random.randn(*shape)
    elif key.endswith("running_var"):
        values = 1 + 0.2 * random.rand(*shape)
    elif key.endswith("running_mean"):
        values = 0.1 * random.randn(*shape)
    elif key.endswith("weight"):
        values = 1 + 0.1 * random.randn(*shape)
    else:
        values = 0.05 * random.randn(*shape)
    return torch.from_numpy(np.asarray(values, np.float32))


def _published_state(network: nn.Module, *, is_clean_vae: bool = False) -> dict[str, Tensor]:
    ours = network.state_dict()
    return {
        key: _values(key, tuple(ours[own].shape), is_clean_vae=is_clean_vae)
        for key, own in published_names(network).items()
    }


@pytest.fixture(scope="session")
def published_state() -> Callable[..., dict[str, Tensor]]:
    """(network, *, is_clean_vae=False) -> state dict under the published names."""
    return _published_state


@pytest.fixture(scope="session")
def filled() -> Callable[..., nn.Module]:
    """(network, *, is_clean_vae=False) -> the network with the formula's weights, to evaluate."""

    def fill(network: nn.Module, *, is_clean_vae: bool = False) -> nn.Module:
        state = _published_state(network, is_clean_vae=is_clean_vae)
        names = published_names(network)
        network.load_state_dict({names[key]: value for key, value in state.items()})
        return network.eval().requires_grad_(False)

    return fill


@pytest.fixture(scope="session")
def narrow() -> PaperConfig:
    return NARROW
