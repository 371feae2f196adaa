"""The published face generator's state dict, with weights from a formula; narrow."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.face.generator import FaceGenerator, PaperFaceConfig
from oldrestore.face.published import published_shapes

SEED = 7
POWER_ITERATIONS = 5


def _random(name: str) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) ^ SEED) & 0xFFFFFFFF)


def _state(config: PaperFaceConfig) -> dict[str, Tensor]:
    """What the golden output was made with; float64, then float32."""
    with torch.device("meta"):
        shapes = dict(published_shapes(FaceGenerator(config).state_dict()))
    state: dict[str, np.ndarray] = {}
    for key, shape in shapes.items():
        if key.endswith(("_u", "_v")):
            continue
        if key.endswith("num_batches_tracked"):
            state[key] = np.zeros(())
        elif len(shape) == 4:
            scale = np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
            state[key] = _random(key).randn(*shape) * scale
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * _random(key).rand(*shape)
        elif key.endswith("running_mean"):
            state[key] = 0.1 * _random(key).randn(*shape)
        else:
            state[key] = 0.05 * _random(key).randn(*shape)
        if key.endswith("weight_orig"):
            prefix, matrix = key.removesuffix("orig"), state[key].reshape(shape[0], -1)
            u = _random(f"{prefix}u").randn(shape[0])
            u /= np.linalg.norm(u)
            for _ in range(POWER_ITERATIONS):
                v = matrix.T @ u
                v /= np.linalg.norm(v)
                u = matrix @ v
                u /= np.linalg.norm(u)
            state[f"{prefix}u"], state[f"{prefix}v"] = u, v
    return {key: torch.from_numpy(np.asarray(v, np.float32)) for key, v in state.items()}


@pytest.fixture(scope="session")
def published_face() -> Callable[[PaperFaceConfig], dict[str, Tensor]]:
    """config -> state dict under the published names."""
    return _state
