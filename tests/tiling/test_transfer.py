"""Bands on their way to the device and back: all arrive, in order, as they were."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.pipeline import Restorer
from oldrestore.tiling.transfer import Transfers


def there_and_back(device: torch.device) -> None:
    transfers, came = Transfers(device), []
    bands = [torch.rand(1, 3, 8, 5) for _ in range(4)]

    def take(rows: Tensor) -> None:
        came.append(rows.clone())

    for band in bands:
        moved = transfers.up(band)
        assert moved.device.type == device.type
        transfers.down(moved * 2, take)
    transfers.finish()
    assert all(torch.equal(found, band * 2) for found, band in zip(came, bands, strict=True))


def test_bands_come_back_in_order() -> None:
    there_and_back(torch.device("cpu"))


@pytest.mark.gpu
def test_bands_come_back_in_order_from_a_gpu() -> None:
    there_and_back(torch.device("cuda"))


@pytest.mark.gpu
def test_bands_on_a_gpu_equal_the_whole(
    in_bands: Callable[..., AbstractContextManager[None]], photo_of: Callable[..., np.ndarray]
) -> None:
    restorer, photo = Restorer.load(device="cuda"), photo_of(400, 300, np.float32)
    mask = np.zeros((400, 300), np.uint8)
    mask[100:120] = 255
    whole = restorer.restore(photo, mask=mask).image
    with in_bands():
        assert np.abs(restorer.restore(photo, mask=mask).image - whole).max() <= 2e-5
