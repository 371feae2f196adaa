"""The published networks layer by layer: each over the whole photo before the next begins.

Instance norm needs the statistics of a whole map before any of it can go on. So the plain result of
every convolution is kept whole, in scratch files where memory does not do, while its statistics are
summed row by row in float64; what follows reads it normalised. The attention reads its keys so too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.attention import (
    PAPER_LEAST_MASS,
    GlobalNonlocal,
    PatchAttention,
    damaged_cells,
    project,
    touched_cells,
)
from oldrestore.layers import Conv3x3, ConvNormAct, NarrowConv, PixelShuffle, ResidualBlock
from oldrestore.mapping import PaperMappingNetwork
from oldrestore.networks import Networks
from oldrestore.ops import forget_packed_weights
from oldrestore.ops.patch_attention import (
    chunk_patches,
    closest_patches,
    extract_patches,
    judge_patches,
    key_chunks,
    to_grid,
)
from oldrestore.ops.residual_block import INSTANCE_NORM_EPS
from oldrestore.ops.streamed_attention import StreamedAttention
from oldrestore.tiling.rows import LEAST_ROWS, Ledger, Rows, cell_by_cell, neighbourhood
from oldrestore.tiling.scratch import Store, StoredMap
from oldrestore.tiling.through import convolved

# of a band of the widest map: a layer holds several of them
BAND_BYTES = 2**24
QUERIES = 4096  # that look at the keys at a time, and keys that they look at


@dataclass(frozen=True)
class Norm:
    """What an instance norm found, (1, C, 1, 1) each, and the leaky ReLU after it (1: none)."""

    mean: Tensor
    scale: Tensor
    slope: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.leaky_relu(((x - self.mean) * self.scale).to(x), self.slope)


@dataclass(frozen=True)
class Feature:
    """A map that is kept whole; ``norm`` is what it goes through when it is read."""

    stored: StoredMap
    norm: Norm | None = None

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom)."""
        rows = self.stored.get(top, bottom)
        return rows if self.norm is None else self.norm(rows)


class _Statistics:
    """Mean and variance of each channel, row by row in float64: the same whatever the bands."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Rows (1, C, h, W), from the top down; Chan, Golub and LeVeque, 1983."""
        wide = rows[0].double()
        means = wide.mean(dim=2)  # (C, h)
        squares = (wide - means[:, :, None]).square_().sum(dim=2)
        for mean, square in zip(means.T.cpu(), squares.T.cpu(), strict=True):
            total = self._count + rows.shape[3]
            difference = mean - self._mean
            self._squares += square
            self._squares += difference.square() * (self._count * rows.shape[3] / total)
            self._mean += difference * (rows.shape[3] / total)
            self._count = total

    def norm(self, slope: float, device: torch.device) -> Norm:
        variance = self._squares / self._count
        scale = (variance + INSTANCE_NORM_EPS).rsqrt()
        mean, scale = (x.float().to(device)[None, :, None, None] for x in (self._mean, scale))
        return Norm(mean, scale, slope)


class LayerByLayer:
    """Runs the published networks on maps that are kept whole.

    Args:
        store: makes the maps.
        device, dtype: of the networks.
    """

    def __init__(self, store: Store, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._device, self._dtype = device, dtype

    def translated(self, networks: Networks, filled: Rows, mask: Rows) -> Rows:
        """Encode, map, decode: image with its holes painted, mask -> restored image."""
        encoder, decoder = networks.vae_old_encoder, networks.vae_clean_decoder
        first, *others = encoder.children()
        latent = self._sequence(others, self._first(first, filled))
        mapped = self._mapped(networks.mapping, latent, mask)
        *body, last, tanh = decoder.children()
        assert isinstance(last, NarrowConv)
        feature = self._sequence(body, mapped)
        convolve = functools.partial(last, has_neighbours=True)
        image = neighbourhood(self.rows(feature), convolve, int(last.padding[0]), padding="reflect")
        return cell_by_cell([image], tanh)

    # ---- layers ---------------------------------------------------------------------------------

    def _first(self, layer: nn.Module, image: Rows) -> Feature:
        assert isinstance(layer, ConvNormAct)
        return self._kept(self._convolution(layer, image), layer.conv.out_channels, layer.slope)

    def _sequence(self, layers: Iterable[nn.Module], x: Feature) -> Feature:
        """One layer after the other; each frees what it was given."""
        for layer in layers:
            if isinstance(layer, ResidualBlock):
                x = self._block(layer, x)
            elif isinstance(layer, ConvNormAct):
                plain = self._convolution(layer, self.rows(x))
                found = self._kept(plain, layer.conv.out_channels, layer.slope)
                self._free(x)
                x = found
            else:
                assert isinstance(layer, Conv3x3), type(layer)
                found = self._kept(self._three(layer, self.rows(x), layer), layer.out_channels)
                self._free(x)
                x = found
        return x

    def _block(self, block: ResidualBlock, x: Feature, *, keeps: bool = False) -> Feature:
        """x + norm(conv(relu(norm(conv(x))))); ``x`` is freed unless it is kept."""
        channels = block.conv1.out_channels
        inner = self._kept(self._three(block, self.rows(x), block.conv1), channels, 0.0)
        outer = self._kept(self._three(block, self.rows(inner), block.conv2), channels, 1.0)
        self._free(inner)
        both = [self.rows(x), self.rows(outer)]
        out = self._kept(cell_by_cell(both, torch.add), channels)
        self._free(outer)
        if not keeps:
            self._free(x)
        return out

    def _three(self, layer: nn.Module, source: Rows, conv: nn.Conv2d) -> Rows:
        """A 3x3 convolution, by the backend of the layer that it belongs to."""
        padding = getattr(layer, "padding_mode", None) or getattr(layer, "padding", "zero")
        backend = getattr(layer, "backend", None)
        return convolved(conv, source, backend, padding=str(padding))

    def _convolution(self, layer: ConvNormAct, source: Rows) -> Rows:
        """The plain convolution of a layer of any size."""
        conv = layer.conv
        if isinstance(conv, Conv3x3):
            return self._three(conv, source, conv)
        if layer.is_doubling:
            weight, bias = layer.doubling_weights()
            plain = nn.Conv2d(weight.shape[1], len(weight), 3, bias=bias is not None)
            plain.weight, plain.bias = (
                nn.Parameter(weight),
                None if bias is None else nn.Parameter(bias),
            )
            plain.requires_grad_(False)
            return cell_by_cell([convolved(plain, source, layer.backend)], PixelShuffle(2), scale=2)
        return _strided(conv, source)

    # ---- the mapping and its attentions ---------------------------------------------------------

    def _mapped(self, mapping: nn.Module, latent: Feature, mask: Rows) -> Feature:
        assert isinstance(mapping, PaperMappingNetwork)
        size = (latent.stored.height, latent.stored.width)
        touched, damaged = _cells_of(mask, size)
        x = self._sequence(mapping.head.children(), latent)
        for layer in mapping.trunk:
            if isinstance(layer, GlobalNonlocal):
                x = self._attended(layer, x, damaged)
            elif isinstance(layer, PatchAttention):
                x = self._composed(layer, x, touched)
            else:
                x = self._sequence([layer], x)
        return self._sequence(mapping.tail.children(), x)

    def _attended(self, block: GlobalNonlocal, x: Feature, damaged: Tensor) -> Feature:
        """The scratch variant's block; ``damaged`` (1, 1, h, w) of 0 and 1."""
        if not damaged.any():
            return x
        width = x.stored.width
        lost = damaged[0, 0].flatten() > 0
        kept_keys = self._matrix(x, block.phi, ~lost)
        kept_values = self._matrix(x, block.mu, ~lost)
        lost_keys = self._matrix(x, block.phi, lost)
        attention = StreamedAttention(
            lambda: zip(_parts(kept_keys), _parts(kept_values), strict=True),
            lambda: _parts(lost_keys),
            PAPER_LEAST_MASS,
        )
        received = self._store.new(x.stored.channels, x.stored.height, width)
        step = max(1, QUERIES // width)
        for top in range(0, x.stored.height, step):
            cells = self._cells(x, top, min(x.stored.height, top + step))
            found = project(attention(project(cells, block.theta).float()), block.nu)
            received.put(top, found.T.reshape(1, -1, len(found) // width, width))
        for matrix in (kept_keys, kept_values, lost_keys):
            self._store.free(matrix)
        branch = self._sequence(block.blocks.children(), Feature(received))
        fused = cell_by_cell(
            [self.rows(x), self.rows(branch), self._rows_of(damaged)], lambda a, b, m: a.lerp(b, m)
        )
        out = self._kept(fused, x.stored.channels)
        self._free(branch)
        self._free(x)
        return out

    def _composed(self, block: PatchAttention, x: Feature, damaged: Tensor) -> Feature:
        """The HR variant's block; ``damaged`` (1, 1, h, w) of 0 and 1."""
        composed = self._block(block.block, x, keeps=True)
        self._copy_patches(composed, damaged, block.patch_size)
        parts = [self.rows(x), self.rows(composed), self._rows_of(damaged)]
        both = cell_by_cell(parts, lambda *some: torch.cat(some, dim=1))
        out = self._kept(self._three(block.combine, both, block.combine), x.stored.channels)
        self._free(composed)
        self._free(x)
        return out

    def _copy_patches(self, x: Feature, damaged: Tensor, size: int) -> None:
        """Replace damaged patches by the most similar intact ones, in place: none is both."""
        stored = x.stored
        is_query, is_key = (found[0] for found in judge_patches(damaged.cpu(), size))
        columns = is_key.shape[1]
        queries = is_query.flatten().nonzero()[:, 0]
        sources = torch.empty_like(queries)
        some = chunk_patches(torch.empty(1, stored.channels, 1, 1), size)
        for start in range(0, len(queries), some):
            chunk = queries[start : start + some]
            vectors = torch.cat(
                [
                    extract_patches(rows[0], chunk[its] - first * columns, columns, size)
                    for first, rows, its in self._rows_of_patches(x, chunk // columns, size)
                ]
            )
            found = closest_patches(vectors, self._keys(x, is_key, size))
            sources[start : start + some] = to_grid(found, stored.width // size, columns)
        for query, source in zip(queries.tolist(), sources.tolist(), strict=True):
            top, left = query // columns * size, query % columns * size
            rows = stored.get(top, min(top + size, stored.height))
            right, below = min(left + size, stored.width), rows.shape[2]
            row, column = source // columns * size, source % columns * size
            patch = stored.get(row, row + size)[..., column : column + size]
            rows[..., left:right] = patch[:, :, :below, : right - left]
            stored.put(top, rows)

    def _rows_of_patches(
        self, x: Feature, rows_of_queries: Tensor, size: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each row of the grid that is asked for: its number, its rows, who asked."""
        for row in sorted(set(rows_of_queries.tolist())):
            last = min((row + 1) * size, x.stored.height)
            yield row, x.read(row * size, last), (rows_of_queries == row).nonzero()[:, 0]

    def _keys(self, x: Feature, is_key: Tensor, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """``key_chunks`` of the map, read in bands of whole patches."""
        whole_columns, rows = x.stored.width // size, x.stored.height // size
        step = max(1, self._band(x.stored.channels, x.stored.width) // size)
        for row in range(0, rows, step):
            last = min(rows, row + step)
            band = x.read(row * size, last * size)[0]
            for first, keys, is_intact in key_chunks(band, is_key[row:last], size):
                yield row * whole_columns + first, keys, is_intact

    # ---- maps -----------------------------------------------------------------------------------

    def _matrix(self, x: Feature, layer: nn.Conv2d, chosen: Tensor) -> StoredMap:
        """What a 1x1 convolution makes of the chosen cells (h * w): (n, C) as rows of one pixel."""
        stored = self._store.new(layer.out_channels, int(chosen.sum()), 1)
        width, place = x.stored.width, 0
        step = max(1, QUERIES // width)
        for top in range(0, x.stored.height, step):
            bottom = min(x.stored.height, top + step)
            cells = self._cells(x, top, bottom)[chosen[top * width : bottom * width]]
            if len(cells):
                stored.put(place, project(cells, layer).float().T[None, :, :, None])
                place += len(cells)
        return stored

    def _cells(self, x: Feature, top: int, bottom: int) -> Tensor:
        """The cells of some rows, (n, C), on the device."""
        return x.read(top, bottom)[0].flatten(1).T.to(self._device, self._dtype)

    def _kept(self, rows: Rows, channels: int, slope: float | None = None) -> Feature:
        """Make all of a map; with a slope its instance norm and activation, for who reads it."""
        stored = self._store.new(channels, rows.height, rows.width)
        statistics = None if slope is None else _Statistics(channels)
        cursor, band = rows.cursor(), rows.band
        for top in range(0, rows.height, band):
            made = cursor.window(top, min(rows.height, top + band)).float()
            stored.put(top, made)
            if statistics is not None:
                statistics.add(made)
        forget_packed_weights()
        if statistics is None or slope is None:
            return Feature(stored)
        return Feature(stored, statistics.norm(slope, torch.device("cpu")))

    def rows(self, x: Feature) -> Rows:
        """A reader of the map, on the device."""
        stored = x.stored

        def make(top: int, bottom: int) -> Tensor:
            return x.read(top, bottom).to(self._device, self._dtype)

        band = self._band(stored.channels, stored.width)
        return Rows(stored.height, stored.width, make, band=band, ledger=Ledger())

    def _rows_of(self, cells: Tensor) -> Rows:
        """A small map that is in memory."""

        def make(top: int, bottom: int) -> Tensor:
            return cells[:, :, top:bottom].to(self._device, self._dtype)

        height, width = cells.shape[2:]
        return Rows(height, width, make, band=LEAST_ROWS, ledger=Ledger())

    def _band(self, channels: int, width: int) -> int:
        rows = BAND_BYTES // (channels * width * 4)
        return max(LEAST_ROWS, rows // LEAST_ROWS * LEAST_ROWS)

    def _free(self, x: Feature) -> None:
        self._store.free(x.stored)


def _parts(matrix: StoredMap) -> Iterator[Tensor]:
    """(n, C), some rows at a time."""
    for first in range(0, matrix.height, QUERIES):
        yield matrix.get(first, min(matrix.height, first + QUERIES))[0, :, :, 0].T


def _cells_of(mask: Rows, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The cells that damage touches, and those taken for damaged; (1, 1, h, w) of 0 and 1."""
    cursor, scale = mask.cursor(), mask.height // size[0]
    found: list[tuple[Tensor, Tensor]] = []
    for top in range(0, size[0], LEAST_ROWS):
        bottom = min(size[0], top + LEAST_ROWS)
        part = cursor.window(top * scale, bottom * scale).float().cpu()
        cells = part.new_empty(1, 1, bottom - top, size[1])
        found.append((touched_cells(part, cells), damaged_cells(part, cells)))
    touched, damaged = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
    return touched, damaged


def _strided(conv: nn.Conv2d | nn.ConvTranspose2d, source: Rows) -> Rows:
    """A convolution of any size whose stride divides the map's sides."""
    assert isinstance(conv, nn.Conv2d)
    size, stride, padding = (int(x[0]) for x in (conv.kernel_size, conv.stride, conv.padding))
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    height, width = (
        (side + 2 * padding - size) // stride + 1 for side in (source.height, source.width)
    )
    cursor = source.cursor()

    def make(top: int, bottom: int) -> Tensor:
        first, last = top * stride - padding, (bottom - 1) * stride - padding + size
        above, below = max(0, -first), max(0, last - source.height)
        keep_from = source.height if bottom == height else bottom * stride - padding
        window = cursor.window(first + above, last - below, keep_from)
        if above or below:
            window = F.pad(window, (0, 0, above, below), mode=mode)
        window = F.pad(window, (padding, padding, 0, 0), mode=mode)
        return F.conv2d(window, conv.weight, conv.bias, conv.stride)

    band = max(LEAST_ROWS, source.band // stride)
    return Rows(height, width, make, band=band, ledger=source.ledger)
