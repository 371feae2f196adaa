"""The published networks layer by layer are the published networks, wherever their maps lie."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from oldrestore.config import PaperConfig
from oldrestore.fill import paint_white
from oldrestore.mapping import VARIANTS, PaperMappingConfig
from oldrestore.mask import PaperDetectorConfig
from oldrestore.ops import instance_norm_act
from oldrestore.pipeline import Restorer
from oldrestore.tiling import layers, plan
from oldrestore.tiling.scratch import Store, StoredMap
from oldrestore.tiling.windows import ArrayWindows
from oldrestore.vae import PaperVAEConfig

Bands = Callable[..., AbstractContextManager[None]]
Photos = Callable[..., np.ndarray]
TOLERANCE = 2e-5  # of [0, 1]


def published(variant: str) -> Restorer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = PaperConfig(
            vae=PaperVAEConfig(8, 2),
            mapping=PaperMappingConfig(variant, 8, 32, 3),
            mask=PaperDetectorConfig(8, 2),
        )
        return Restorer(config, device="cpu")


def holes(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[20:40, 10:50] = mask[50:52] = 255
    return mask


def exact(restorer: Restorer, photo: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """In float64, the whole photo at once; sides are multiples of 4."""
    for network in restorer.networks().values():
        network.double()
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].double() * 2 - 1
    damage = torch.zeros_like(image[:, :1])
    if mask is not None:
        damage[0, 0] = torch.from_numpy((mask > 0).astype(np.float64))
    with torch.inference_mode():
        restored = restorer._through_networks(paint_white(image, damage), damage)
    return ((restored.clamp(-1, 1) + 1) / 2)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("allowance", [0, 2**40])
def test_layer_by_layer_is_as_exact_as_the_whole(
    variant: str,
    allowance: int,
    in_bands: Bands,
    photo_of: Photos,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo, restorer = photo_of(140, 100, np.float32), published(variant)
    mask = None if variant == "quality" else holes(140, 100)
    whole = restorer.restore(photo, mask=mask).image
    monkeypatch.setattr(layers, "BAND_BYTES", 2**12)
    with in_bands(), monkeypatch.context() as patched:
        patched.setattr("oldrestore.tiling.restoring.Store", lambda _, f: Store(allowance, f))
        found = restorer.restore(photo, mask=mask).image
    truth = exact(restorer, photo, mask)
    # an attention with random weights multiplies rounding a thousandfold, here as in the whole
    assert np.abs(found - truth).max() <= 2 * np.abs(whole - truth).max() + TOLERANCE
    assert np.abs(found - photo).mean() > 0.01
    if variant != "scratch":
        assert np.abs(found - whole).max() <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_bands_change_no_bit(
    variant: str, in_bands: Bands, photo_of: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, restorer = photo_of(70, 61, np.float32), published(variant)
    mask = None if variant == "quality" else holes(70, 61)
    found = []
    for band_bytes in (2**10, 2**14, 2**30):
        monkeypatch.setattr(layers, "BAND_BYTES", band_bytes)
        with in_bands():
            found.append(restorer.restore(photo, mask=mask).image)
    for other in found[1:]:
        assert np.abs(other - found[0]).max() <= TOLERANCE


def test_an_empty_mask_leaves_the_attention_out(in_bands: Bands, photo_of: Photos) -> None:
    photo, restorer = photo_of(64, 60, np.float32), published("scratch")
    mask = np.zeros((64, 60), np.uint8)
    whole = restorer.restore(photo, mask=mask).image
    with in_bands():
        assert np.abs(restorer.restore(photo, mask=mask).image - whole).max() <= TOLERANCE


def test_windows_go_through_the_published_networks(
    in_bands: Bands, photo_of: Photos, tmp_path: Path
) -> None:
    photo, restorer = photo_of(90, 70), published("hr")
    result = np.zeros_like(photo)
    mask = holes(90, 70)
    with in_bands():
        restorer.restore_windows(
            ArrayWindows(photo),
            ArrayWindows(result),
            mask=ArrayWindows(mask),
            max_memory="800MiB",
            scratch=tmp_path,
        )
        assert np.array_equal(result, restorer.restore(photo, mask=mask).image)
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_rows_are_those_of_the_map() -> None:
    whole = torch.randn(1, 5, 33, 21, generator=torch.Generator().manual_seed(0)) * 3 + 100
    norms = []
    for band in (1, 7, 33):
        statistics = layers._Statistics(5)
        for top in range(0, 33, band):
            statistics.add(whole[:, :, top : top + band])
        norms.append(statistics.norm(0.2, torch.device("cpu")))
    expected = instance_norm_act(whole.double(), slope=0.2, backend="reference")
    assert (norms[0](whole) - expected).abs().max() < 2e-5
    for norm in norms[1:]:
        assert torch.equal(norm.mean, norms[0].mean)
        assert torch.equal(norm.scale, norms[0].scale)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_stored_map_gives_back_what_was_put(in_memory: bool, tmp_path: Path) -> None:
    whole = torch.rand(1, 3, 20, 7)
    stored = StoredMap(3, 20, 7, in_memory=in_memory, folder=str(tmp_path))
    for top in range(0, 20, 6):
        stored.put(top, whole[:, :, top : top + 6])
    assert torch.equal(stored.get(0, 20), whole)
    rows = stored.get(5, 9)
    assert torch.equal(rows, whole[:, :, 5:9])
    assert rows.is_contiguous()
    stored.free()
    assert list(tmp_path.iterdir()) == []


def test_a_stored_map_takes_every_float() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stored = StoredMap(2, 4, 5, in_memory=False, folder=None, dtype=np.float16)
        rows = torch.arange(40).view(1, 2, 4, 5).to(dtype)
        stored.put(0, rows)
        assert stored.get(0, 4).dtype == torch.float16
        assert torch.equal(stored.get(0, 4).to(dtype), rows)
        stored.free()


def test_maps_beyond_the_allowance_go_to_files() -> None:
    store = Store(3 * 4 * 100, None)
    first, second = store.new(3, 10, 10), store.new(1, 1, 1)
    assert (first.is_in_memory, second.is_in_memory) == (True, False)
    store.free(first)
    third = store.new(3, 10, 10)
    assert third.is_in_memory
    store.free(second)
    store.free(third)


def test_what_transformed_weights_take_is_counted() -> None:
    restorer = published("scratch")
    plain = sum(
        layer.weight.nbytes
        for network in restorer.networks().values()
        for layer in network.modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3)
    )
    assert plan.packed_bytes(restorer) == 4 * plain
