"""The networks as maps made from the top down: every layer by what ``rows`` offers.

``through`` follows the modules as they are; no network knows of it. Each result has the bits that
the network gives for the whole photo.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.attention import PartialNonlocal
from oldrestore.layers import (
    Conv1x1,
    Conv3x3,
    Downsample,
    ResidualBlock,
    doubled,
    shuffled,
    smoothed,
    unshuffled,
)
from oldrestore.mapping import CELL_PX, STRIDE_PX, MappingNetwork
from oldrestore.mask import ScratchDetector
from oldrestore.networks import Networks
from oldrestore.ops import BAND_ROWS, conv_rows, fastest
from oldrestore.refiner import TAPS, Bottleneck, Refiner
from oldrestore.tiling.rows import LEAST_ROWS, Rows, cell_by_cell, neighbourhood, next_from
from oldrestore.vae import Decoder, Encoder

_ROW_PADDING = {"zero": "constant", "zeros": "constant", "reflect": "reflect"}


@functools.singledispatch
def through(network: nn.Module, source: Rows) -> Rows:
    """What a network or layer makes of a map."""
    raise NotImplementedError(f"no way to run {type(network).__name__} by rows")


@through.register
def _(network: nn.Sequential, source: Rows) -> Rows:
    for layer in network:
        source = through(layer, source)
    return source


@through.register
def _(layer: nn.PixelUnshuffle, source: Rows) -> Rows:
    return cell_by_cell([source], layer, scale=1 / layer.downscale_factor)


@through.register
def _(layer: nn.PixelShuffle, source: Rows) -> Rows:
    return cell_by_cell([source], layer, scale=layer.upscale_factor)


@through.register
def _(layer: Conv1x1, source: Rows) -> Rows:
    return cell_by_cell([source], layer)


@through.register
def _(layer: Downsample, source: Rows) -> Rows:
    return cell_by_cell([source], layer, scale=0.5)


@through.register
def _(layer: Conv3x3, source: Rows) -> Rows:
    return convolved(layer, source, layer.backend, padding=layer.padding_mode)


@through.register
def _(block: ResidualBlock, source: Rows) -> Rows:
    inner = convolved(block.conv1, source, block.backend, padding=block.padding, slope=0.0)
    return convolved(block.conv2, inner, block.backend, padding=block.padding, residual=source)


@through.register
def _(encoder: Encoder, source: Rows) -> Rows:
    features = through(encoder.trunk, source)
    pixels = cell_by_cell([source], lambda image: unshuffled(image, STRIDE_PX), scale=1 / STRIDE_PX)

    def mean(found: Tensor, unshuffled: Tensor) -> Tensor:
        latent: Tensor = encoder.to_mean(found) + encoder.skip(unshuffled)
        return latent

    return cell_by_cell([features, pixels], mean)


@through.register
def _(decoder: Decoder, source: Rows) -> Rows:
    skip = cell_by_cell(
        [source],
        lambda latent: shuffled(decoder.skip(latent), STRIDE_PX),
        scale=STRIDE_PX,
    )
    return added(through(decoder.trunk, source), skip)


@through.register
def _(detector: ScratchDetector, source: Rows) -> Rows:
    return logits_of(detector, source, source)


def logits_of(detector: ScratchDetector, ahead: Rows, image: Rows) -> Rows:
    """What the detector makes of a map that is given twice.

    Its finest features are made from either: some hundred rows of them, until the coarser ones
    have come, would be the most of all that is kept.

    Args:
        detector: the network.
        ahead: the map for the coarser features, so far ahead of ``image``.
        image: the same map.
    """
    features, finest = (
        through(detector.encode[0], through(detector.head, source)) for source in (ahead, image)
    )
    skips = [finest]
    for down, encode in zip(detector.down, detector.encode[1:], strict=True):
        features = through(encode, through(down, features))
        skips.append(features)
    for up, decode, skip in zip(
        reversed(detector.up), reversed(detector.decode), reversed(skips[:-1]), strict=True
    ):
        features = through(decode, added(through(up, features), skip))
    return through(detector.tail, features)


@through.register
def _(block: Bottleneck, source: Rows) -> Rows:
    stride = block.stride
    height, width = source.height // stride, source.width // stride
    cursor = source.cursor()

    def make(top: int, bottom: int) -> Tensor:
        above, below = int(top > 0), int(stride == 1 and bottom < height)
        keep_from = next_from(bottom * stride, 1, source.height)
        window = cursor.window(top * stride - above, bottom * stride + below, keep_from)
        out: Tensor = block(window, above, below)
        source.ledger.work(window.nbytes + out.nbytes)
        return out

    band = max(LEAST_ROWS, source.band // stride)
    return Rows(height, width, make, band=band, ledger=source.ledger)


def refined(refiner: Refiner, image: Rows, logits: Rows, of_mirrored: Rows, both: Rows) -> Rows:
    """Logits of both views, as the refiner corrects them; see its ``forward``."""
    trunk = refiner.trunk
    stem = through(trunk.stem, cell_by_cell([image], trunk.normalised))
    x, found = cell_by_cell([stem], F.relu6), list[Rows]()
    for index, block in enumerate(trunk.blocks):
        x = through(block, x)
        if index in TAPS:
            found.append(x)
    half, quarter, *deeper = found
    coarsest = twice(through(refiner.take[3], deeper[1]))
    deep = added(coarsest, through(refiner.take[2], deeper[0]))
    return _corrected(refiner, deep, quarter, half, logits, of_mirrored, both)


def _corrected(refiner: Refiner, *maps: Rows) -> Rows:
    """What the refiner makes of its maps; see its ``corrected``."""
    both = maps[-1]
    cursors = [source.cursor() for source in maps]

    def make(top: int, bottom: int) -> Tensor:
        above, below = int(top > 0), int(bottom < both.height)
        windows = []
        for source, cursor in zip(maps, cursors, strict=True):
            px = both.height // source.height
            first, last = top // px, bottom // px
            if px > 2:  # of which the neighbours are seen too
                keep_from = next_from(last, 1, source.height)
                windows.append(cursor.window(first - above, last + below, keep_from))
            else:
                windows.append(cursor.window(first, last))
        out = refiner.corrected(*windows, above=above, below=below)
        # the sums at the quarter, where everything is suspect
        at_work = windows[1][0, 0].nbytes * refiner.hidden.in_channels
        both.ledger.work(sum(window.nbytes for window in windows) + 2 * out.nbytes + at_work)
        return out

    step = both.height // maps[0].height
    return Rows(both.height, both.width, make, band=both.band, ledger=both.ledger, step=step)


def twice(source: Rows) -> Rows:
    """A map at twice its sides, bilinearly."""
    wide = cell_by_cell([source], doubled, scale=2)
    return neighbourhood(wide, smoothed, 1, padding="replicate")


def translated(networks: Networks, filled: Rows, mask: Rows) -> Rows:
    """Encode, map, decode: image with its holes filled, mask -> restored image, not clamped."""
    latent = through(networks.vae_old_encoder, filled)
    assert isinstance(networks.mapping, MappingNetwork)
    return through(networks.vae_clean_decoder, mapped(networks.mapping, latent, mask))


def mapped(mapping: MappingNetwork, latent: Rows, mask: Rows) -> Rows:
    """The mapping network: latent and mask, the latter in pixels -> latent."""
    cells = cell_by_cell([mask], lambda x: unshuffled(x, STRIDE_PX), scale=1 / STRIDE_PX)
    both = cell_by_cell([latent, cells], lambda *parts: torch.cat(parts, dim=1))
    local = through(mapping.before, through(mapping.head, both))
    core = through(mapping.core_before, through(mapping.down, local))
    coarse = cell_by_cell([mask], lambda x: F.max_pool2d(x, CELL_PX), scale=1 / CELL_PX)
    core = through(mapping.core_after, _fused(mapping.nonlocal_block, core, coarse))
    local = added(through(mapping.up, core), local)
    tail = mapping.tail
    return convolved(tail, through(mapping.after, local), tail.backend, residual=latent)


def _fused(block: PartialNonlocal, features: Rows, mask: Rows) -> Rows:
    """The nonlocal block: whole blocks of queries, with the keys around them."""
    halo = block.halo
    cursors = features.cursor(), mask.cursor()

    def make(top: int, bottom: int) -> Tensor:
        above, below = min(halo, top), min(halo, features.height - bottom)
        keep_from = next_from(bottom, halo, features.height)
        window = (top - above, bottom + below, keep_from)
        windows = [cursor.window(*window) for cursor in cursors]
        out: Tensor = block(*windows, above, below)
        features.ledger.work(windows[0].nbytes + 2 * out.nbytes)
        return out

    return Rows(
        features.height,
        features.width,
        make,
        band=features.band,
        ledger=features.ledger,
        step=block.block,
    )


def added(later: Rows, sooner: Rows) -> Rows:
    """The sum of two maps, of which one is made by way of the other."""
    return cell_by_cell([later, sooner], torch.add)


def convolved(
    conv: nn.Conv2d,
    source: Rows,
    backend: str | None,
    *,
    padding: str = "zero",
    slope: float | None = None,
    residual: Rows | None = None,
) -> Rows:
    """A 3x3 convolution with ReLU or a residual, as ``ops.conv_rows`` defines it."""
    # chosen for the whole map, or a small band could be convolved in another way than the rest
    whole = conv.weight.new_empty(()).expand(1, conv.in_channels, source.height, source.width)
    operands = (whole, conv.weight, conv.bias)
    named = backend if backend in (None, "cpp", "reference") else "reference"
    way = fastest("conv_rows", whole.device, *operands, backend=named, norm=None)
    run: Callable[..., Tensor] = functools.partial(
        conv_rows,
        weight=conv.weight,
        bias=conv.bias,
        padding="reflect" if padding == "reflect" else "zero",
        slope=slope,
        backend=way,
    )
    if residual is None:
        return neighbourhood(source, run, 1, padding=_ROW_PADDING[padding], step=BAND_ROWS)

    def add(window: Tensor, other: Tensor) -> Tensor:
        return run(window, residual=other)

    return neighbourhood(
        source, add, 1, padding=_ROW_PADDING[padding], step=BAND_ROWS, residual=residual
    )
