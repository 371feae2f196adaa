"""Maps from the top down: layers on bands are layers on the map, and nothing idle is kept."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.attention import PartialNonlocal
from oldrestore.fill import fill_holes
from oldrestore.layers import Conv3x3, Downsample, Upsample, residual_blocks
from oldrestore.mask import DetectorConfig, ScratchDetector
from oldrestore.tiling.filling import filled_rows
from oldrestore.tiling.rows import (
    Ledger,
    Rows,
    cell_by_cell,
    cropped,
    extended,
    neighbourhood,
)
from oldrestore.tiling.through import through
from oldrestore.vae import Decoder, Encoder, VAEConfig


def rows_of(whole: Tensor, band: int = 16, ledger: Ledger | None = None) -> Rows:
    def make(top: int, bottom: int) -> Tensor:
        return whole[:, :, top:bottom].clone()

    ledger = Ledger() if ledger is None else ledger
    return Rows(*whole.shape[2:], make, band=band, ledger=ledger)


def all_of(rows: Rows, band: int = 16) -> Tensor:
    cursor = rows.cursor()
    tops = range(0, rows.height, band)
    return torch.cat([cursor.window(t, min(rows.height, t + band)) for t in tops], dim=2)


@pytest.mark.parametrize("band", [4, 16, 64])
@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (Conv3x3(5, 7), 5),
        (residual_blocks(16, 2), 16),
        (Downsample(5, 6), 5),
        (Upsample(6, 4), 6),
        (nn.Sequential(nn.PixelUnshuffle(2), Conv3x3(12, 8), nn.PixelShuffle(2)), 3),
        (Encoder(VAEConfig(8, 4, 8)), 3),
        (Decoder(VAEConfig(8, 4, 8)), 8),
        (ScratchDetector(DetectorConfig((4, 8, 8), (1, 1, 2))), 3),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else str(x),
)
@torch.inference_mode()
def test_layers_by_rows_are_layers(layer: nn.Module, channels: int, band: int) -> None:
    whole = torch.randn(1, channels, 72, 40, generator=torch.Generator().manual_seed(0))
    found = all_of(through(layer, rows_of(whole, band)), band)
    torch.testing.assert_close(found, layer(whole), rtol=1e-5, atol=2e-5)


def test_a_layer_nobody_taught_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="GELU"):
        through(nn.GELU(), rows_of(torch.zeros(1, 1, 8, 8)))


@pytest.mark.parametrize("padding", ["constant", "reflect", "replicate"])
def test_neighbourhoods_see_beyond_the_border_what_padding_says(padding: str) -> None:
    whole = torch.rand(1, 2, 19, 5)

    def sums(window: Tensor) -> Tensor:
        return F.avg_pool2d(window, (5, 1), 1)

    found = all_of(neighbourhood(rows_of(whole, 4), sums, 2, padding=padding), 3)
    assert torch.allclose(found, sums(F.pad(whole, (0, 0, 2, 2), mode=padding)))


def test_extending_and_cropping_undo_each_other() -> None:
    whole = torch.rand(1, 2, 19, 5)
    wide = all_of(extended(rows_of(whole, 4), 8), 8)
    assert torch.equal(wide, F.pad(whole, (0, 3, 0, 5), mode="replicate"))
    assert torch.equal(all_of(cropped(extended(rows_of(whole, 4), 8), 19, 5), 7), whole)


def test_maps_are_kept_until_the_last_reader_has_passed() -> None:
    ledger, whole = Ledger(), torch.rand(1, 1, 64, 8)
    source = rows_of(whole, 8, ledger)
    first, second = source.cursor(), source.cursor()
    for top in range(0, 64, 8):
        first.window(top, top + 8)
    assert ledger.held == whole.nbytes
    for top in range(0, 64, 8):
        assert torch.equal(second.window(top, top + 8), whole[:, :, top : top + 8])
        assert ledger.held == whole[:, :, top + 8 :].nbytes
    assert ledger.peak >= whole.nbytes


def test_a_chain_of_layers_holds_little_more_than_its_bands() -> None:
    ledger = Ledger()
    whole = torch.rand(1, 4, 2048, 16)
    rows = rows_of(whole, 16, ledger)
    for _ in range(6):
        rows = neighbourhood(rows, lambda x: x[:, :, 1:-1] * 1, 1)
    with torch.inference_mode():
        all_of(rows)
    assert ledger.held <= whole[:, :, :16].nbytes
    assert ledger.peak < whole.nbytes / 10


def test_maps_of_one_size_are_joined() -> None:
    first, second = torch.rand(1, 2, 20, 4), torch.rand(1, 2, 20, 4)
    found = cell_by_cell([rows_of(first, 4), rows_of(second, 7)], torch.add)
    assert torch.equal(all_of(found, 6), first + second)


@pytest.mark.parametrize("height", [16, 20, 40])
def test_the_nonlocal_block_on_a_part_with_its_keys_is_the_whole(height: int) -> None:
    block = PartialNonlocal(8, 4, block=4, halo=6).requires_grad_(False)
    nn.init.normal_(block.nu.weight)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, height, 12, generator=generator)
    mask = (torch.rand(1, 1, height, 12, generator=generator) < 0.3).float()
    with torch.inference_mode():
        whole = block(features, mask)
        for top in range(0, height, 8):
            bottom = min(height, top + 8)
            above, below = min(6, top), min(6, height - bottom)
            part = [x[:, :, top - above : bottom + below] for x in (features, mask)]
            assert torch.allclose(
                block(*part, above, below), whole[:, :, top:bottom], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("size", [(70, 45), (203, 90), (700, 80)])
def test_the_fill_by_rows_is_the_fill_to_the_bit(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    mask = (torch.rand(1, 1, *size, generator=generator) < 0.2).to(torch.uint8)
    mask[:, :, size[0] // 4 : size[0] // 2, 5:] = 1
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = all_of(filled_rows(rows_of(image, 64), rows_of(mask, 64), lambda x: x), 64)
        assert torch.equal(found, fill_holes(image, mask.float()))
