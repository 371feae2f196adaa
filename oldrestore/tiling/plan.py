"""How many rows of a photo are worked on at a time, so that the memory allowed is enough.

What a number of rows needs is measured by a rehearsal: both passes run over some columns, and their
ledger says the most that there was at a time, which grows with the columns. What the ledger cannot
see was measured too (benchmarks/bench_tiles.py compares the sum with the process's peak).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from oldrestore.config import PaperConfig
from oldrestore.grain import BLOCK_PX, CELL_PX, GrainSurvey
from oldrestore.networks import Networks
from oldrestore.tiling.memory import FREE_SHARE, Guard, read_memory, text_of, trimmed_memory
from oldrestore.tiling.restoring import FILL_IN_MEMORY_BYTES, FINISH_PX, Bands
from oldrestore.tiling.rows import Ledger
from oldrestore.tiling.sources import Source

# Rows, most first: whole cells of the grain, of the coarsest fill and of the attention. More are
# slower on 3000 columns: their maps leave the caches; 64 take a tenth less memory than 128.
BANDS = (2 * CELL_PX, CELL_PX)
REHEARSED_COLUMNS = 64
# As many as the detector, at half the side, looks ahead, by whole Winograd tiles, and the fill; and
# as the networks do.
REHEARSED_ROWS = {"survey": 4096, "render": 1536}
ROWS_STEP = 256
# of a photo that is worked on whole, for each pixel; more than so many pixels never are on a CPU
WHOLE_BYTES = 700
WHOLE_PX = 2**21
# The published networks: a layer's transformed weights, its bands, the attention's logits; what
# wide photos add; and each pixel of a photo that is worked on whole.
PAPER_BYTES = 300 * 2**20
PAPER_COLUMN_BYTES = 40_000
PAPER_WHOLE_BYTES = 2000
# Kept by the core between layers, and by the allocator in pieces that fit nothing: measured.
KEPT_BYTES = 144 * 2**20
# left free beside more than the fewest rows: with several threads the allocator keeps more
ROOM_BYTES = 192 * 2**20
SPARE_SHARE = 0.125
# of the second pass's last steps, for each of their pixels; of mask and grain, of the photo's
FINISH_BYTES = 250
PHOTO_BYTES = 1 / 8 + 64 / BLOCK_PX**2
GRAIN_BYTES = 40 * 2**20


class TooLittleMemoryError(ValueError):
    """Even the fewest rows at a time need more than is allowed."""


def allowed_memory(max_memory: str | int | None, device: torch.device) -> int:
    """The bytes that restoring may take on ``device``; see ``read_memory``."""
    if max_memory is None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(FREE_SHARE * free)
    return read_memory(max_memory)


def is_best_whole(networks: Networks, size: tuple[int, int], budget: int) -> bool:
    """Whether a photo is worked on whole: small ones, and on a GPU all that fit."""
    pixels = size[0] * size[1]
    if isinstance(networks.config, PaperConfig):
        return packed_bytes(networks) + PAPER_BYTES + PAPER_WHOLE_BYTES * pixels <= budget
    if not WHOLE_BYTES * pixels <= budget:
        return False
    return networks.device.type != "cpu" or pixels <= WHOLE_PX


def packed_bytes(networks: Networks) -> int:
    """What the transformed weights of all 3x3 convolutions take: 36 numbers for 9."""
    layers = (layer for network in networks.networks().values() for layer in network.modules())
    weights = (layer.weight for layer in layers if isinstance(layer, nn.Conv2d))
    return sum(4 * weight.nbytes for weight in weights if weight.shape[2:] == (3, 3))


def choose_band(bands: Bands, budget: int, held: int, there: int = 0) -> Bands:
    """The most rows at a time, of those worth having, that the budget allows.

    Args:
        bands: of the photo; its ``band`` does not matter.
        budget: bytes that restoring may hold.
        held: bytes of it that are taken: by the photo, the result.
        there: of these, what the process holds already.

    Raises:
        TooLittleMemoryError: says how much is needed.
    """
    before = trimmed_memory()  # before the rehearsal, of which the core keeps some
    for band in BANDS:
        needed = held + needed_bytes(dataclasses.replace(bands, band=band, ledger=Ledger()))
        if needed + (ROOM_BYTES if band > BANDS[-1] else 0) <= budget:
            break
    if needed > budget:
        size = f"{bands.source.height} x {bands.source.width} px"
        raise TooLittleMemoryError(
            f"max_memory: a photo of {size} needs {text_of(needed)} at least, got {text_of(budget)}"
        )
    ledger = Ledger()
    if bands.networks.device.type == "cpu" and before is not None:
        # what is spare is for the peaks between two looks
        spare = SPARE_SHARE * maps_bytes(dataclasses.replace(bands, band=band, ledger=Ledger()))
        ledger = Ledger(Guard(int(before + needed - there - spare)).look)
    return dataclasses.replace(bands, band=band, ledger=ledger, spare=budget - needed)


def needed_bytes(bands: Bands) -> int:
    """What both passes take, apart from photo and result."""
    source = bands.source
    kept = source.height * source.width * PHOTO_BYTES + FILL_IN_MEMORY_BYTES + GRAIN_BYTES
    if not isinstance(bands.networks.config, PaperConfig):
        kept += packed_bytes(bands.networks)
    finish = math.prod(FINISH_PX) * FINISH_BYTES
    return int((1 + SPARE_SHARE) * maps_bytes(bands) + finish + kept + KEPT_BYTES)


def maps_bytes(bands: Bands) -> int:
    """What the maps take at a time."""
    if isinstance(bands.networks.config, PaperConfig):
        return PAPER_BYTES + PAPER_COLUMN_BYTES * bands.source.width
    return rehearse(bands)


def rehearse(bands: Bands) -> int:
    """The most bytes that the maps take at a time."""
    source = bands.source
    kind = "own" if isinstance(bands.mask, Source) else bands.mask
    dtype = source.read(0, 1).dtype
    # a little more than needed, so that photos of about the same height share a rehearsal
    height = min(-(-source.height // ROWS_STEP) * ROWS_STEP, max(REHEARSED_ROWS.values()))
    key = (bands.band, height, source.channels, dtype, kind)
    known = bands.networks.rehearsed
    if key not in known:
        known[key] = max(_rehearse(bands, name, height, dtype) for name in REHEARSED_ROWS)
    return known[key] * -(-source.width // REHEARSED_COLUMNS)


@torch.inference_mode()
def _rehearse(bands: Bands, which: str, height: int, dtype: torch.dtype) -> int:
    """The bytes of `REHEARSED_COLUMNS` columns in one of the passes over so many rows."""
    rows = min(height, REHEARSED_ROWS[which])

    def blank(channels: int, dtype: torch.dtype) -> Source:
        def read(top: int, bottom: int) -> Tensor:
            return torch.zeros(1, channels, bottom - top, REHEARSED_COLUMNS, dtype=dtype)

        return Source(rows, REHEARSED_COLUMNS, channels, read)

    photo, mask = blank(bands.source.channels, dtype), blank(1, torch.uint8)
    own = mask if isinstance(bands.mask, Source) else bands.mask
    trial = dataclasses.replace(bands, source=photo, mask=own, ledger=Ledger())
    pixel_rows = trial.rows(photo)
    if which == "survey":
        mask_rows, end = trial.surveyed(pixel_rows)
    else:
        mask_rows = trial.rows(mask)
        end = trial.rendered(trial.filled_again(None, pixel_rows, mask_rows), mask_rows)
    halo = GrainSurvey.halo_px if which == "survey" else 0
    read = [(x.cursor(), y) for x, y in ((end, 0), (mask_rows, halo), (pixel_rows, 0)) if x]
    for top in range(0, rows, bands.band):
        bottom = min(rows, top + bands.band)
        for cursor, around in read:
            cursor.window(max(0, top - around), min(rows, bottom + around), bottom - around)
    return trial.ledger.peak
