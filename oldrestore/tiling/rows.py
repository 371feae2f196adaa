"""Maps that are made from the top down, some rows at a time: nothing is computed twice.

A photo goes through the networks as a band of rows. Each layer makes the rows that its followers
ask for, asks its own source for those it needs, and keeps what the next band will need again, so
that a tile's halo is never computed anew and the whole photo's maps never exist. Bands start at
multiples of what a layer makes at once (a row of Winograd tiles, of attention blocks), where each
cell is computed from the same numbers in the same order as in the whole map: the bits are the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.ops import map_of_rows

LEAST_ROWS = 8  # of a band, where a layer of stride 2 halves it
Make = Callable[[int, int], Tensor]  # of rows [top, bottom) of a map


class Ledger:
    """Counts the bytes that maps hold, and the most there have been with a layer at work.

    Args:
        look: called after each layer's work.
    """

    def __init__(self, look: Callable[[], None] | None = None) -> None:
        self.held = 0
        self.peak = 0
        self._look = look

    def add(self, size: int) -> None:
        """Count what is kept; negative: no longer."""
        self.held += size
        self.peak = max(self.peak, self.held)

    def work(self, size: int) -> None:
        """Count what one layer needs beside what is kept."""
        self.peak = max(self.peak, self.held + size)
        if self._look is not None:
            self._look()


class Rows:
    """A map (1, C, height, width) of which only the rows that somebody still needs exist.

    Args:
        height, width: of the whole map.
        make: gives rows [top, bottom), each once and from the top down.
        band: how many are made at a time; a multiple of ``step``.
        step: bands start at multiples of this.
        ledger: counts what is kept.
    """

    def __init__(
        self, height: int, width: int, make: Make, *, band: int, ledger: Ledger, step: int = 1
    ) -> None:
        self.height, self.width = height, width
        self.step = step
        self.band = max(step, band // step * step)
        self.ledger = ledger
        self._make = make
        self._made = 0
        self._pieces: deque[tuple[int, Tensor]] = deque()  # first row, rows
        self._cursors: list[Cursor] = []

    def cursor(self) -> Cursor:
        """A reader, to be taken before the first row is made."""
        self._cursors.append(Cursor(self))
        return self._cursors[-1]

    def gather(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom), made if they are not yet."""
        while self._made < bottom:
            stop = -(-min(bottom, self._made + self.band) // self.step) * self.step
            stop = min(stop, self.height)
            self.ledger.work(0)
            piece = self._make(self._made, stop)
            self._pieces.append((self._made, piece))
            self.ledger.add(piece.nbytes)
            self._made = stop
        parts = []
        for start, piece in self._pieces:
            first, last = max(top, start), min(bottom, start + piece.shape[2])
            if first < last:
                parts.append(piece.narrow(2, first - start, last - first))
        if len(parts) == 1:
            return parts[0].contiguous()
        rows = sum(part.shape[2] for part in parts)
        whole = torch.cat(parts, dim=2, out=map_of_rows(parts[0], rows))
        self.ledger.work(whole.nbytes)
        return whole

    def forget(self) -> None:
        """Let go of the rows that no cursor needs any more."""
        first = min(cursor.kept_from for cursor in self._cursors)
        while self._pieces:
            start, piece = self._pieces[0]
            stop = start + piece.shape[2]
            if stop <= first:
                self._pieces.popleft()
                self.ledger.add(-piece.nbytes)
            elif 2 * (stop - first) <= piece.shape[2]:
                # a copy of the few rows left, or they would keep the memory of all
                rest = piece.narrow(2, first - start, stop - first).clone()
                self._pieces[0] = (first, rest)
                self.ledger.add(rest.nbytes - piece.nbytes)
                return
            else:
                return


class Cursor:
    """One who reads a map from the top down, in windows that may overlap."""

    def __init__(self, rows: Rows) -> None:
        self.kept_from = 0
        self._rows = rows

    def window(self, top: int, bottom: int, keep_from: int | None = None) -> Tensor:
        """Rows [top, bottom), within the map; those before ``keep_from`` are not asked for again.

        None: none of these rows are.
        """
        found = self._rows.gather(top, bottom)
        self.kept_from = bottom if keep_from is None else max(0, keep_from)
        self._rows.forget()
        return found


def cell_by_cell(
    sources: Sequence[Rows],
    layer: Callable[..., Tensor],
    *,
    scale: float = 1.0,
    width: int | None = None,
    step: int = 1,
) -> Rows:
    """What a layer without neighbourhood makes of maps of one size.

    Args:
        sources: the one that takes longest to make first: the others wait meanwhile.
        layer: of one window of each.
        scale: rows of the result for a row of the sources, such as 0.5.
        width: of the result, if it is not the scaled one.
        step: of the result.
    """
    first = sources[0]
    cursors = [source.cursor() for source in sources]
    down, up = (round(1 / scale), 1) if scale < 1 else (1, round(scale))

    def make(top: int, bottom: int) -> Tensor:
        windows = [cursor.window(top * down // up, bottom * down // up) for cursor in cursors]
        out = layer(*windows)
        first.ledger.work(sum(window.nbytes for window in windows) + out.nbytes)
        return out

    return Rows(
        first.height * up // down,
        first.width * up // down if width is None else width,
        make,
        band=max(1, first.band * up // down),
        ledger=first.ledger,
        step=math.lcm(step, up),
    )


def neighbourhood(
    source: Rows,
    layer: Callable[..., Tensor],
    halo: int,
    *,
    padding: str = "constant",
    step: int = 1,
    residual: Rows | None = None,
) -> Rows:
    """What a layer makes of a map that looks ``halo`` rows up and down.

    Args:
        source: the map.
        layer: of rows [top - halo, bottom + halo), and those of ``residual`` [top, bottom) if there
            is one; gives rows [top, bottom).
        halo: rows.
        padding: what lies above and below the map, as ``torch.nn.functional.pad`` names it.
        step: of the result.
        residual: a map of the result's size.
    """
    cursor = source.cursor()
    residuals = [residual.cursor()] if residual is not None else []

    def make(top: int, bottom: int) -> Tensor:
        last = min(source.height, bottom + halo)
        window = cursor.window(max(0, top - halo), last, next_from(bottom, halo, source.height))
        above, below = max(0, halo - top), max(0, bottom + halo - source.height)
        if above or below:
            window = F.pad(window, (0, 0, above, below), mode=padding)
        others = [other.window(top, bottom) for other in residuals]
        out = layer(window, *others)
        source.ledger.work(window.nbytes + out.nbytes + sum(other.nbytes for other in others))
        return out

    return Rows(
        source.height, source.width, make, band=source.band, ledger=source.ledger, step=step
    )


def next_from(bottom: int, halo: int, height: int) -> int:
    """The first row that the band after ``bottom`` looks at; ``height`` if there is none."""
    return bottom - halo if bottom < height else height


def extended(source: Rows, multiple: int, *, padding: str = "replicate") -> Rows:
    """A map with both sides padded to multiples, below and on the right."""
    height, width = (-(-side // multiple) * multiple for side in (source.height, source.width))
    cursor = source.cursor()

    def make(top: int, bottom: int) -> Tensor:
        window = cursor.window(top, min(bottom, source.height))
        below, right = max(0, bottom - source.height), width - source.width
        if not below and not right:
            return window
        return F.pad(window, (0, right, 0, below), mode=padding)

    return Rows(height, width, make, band=source.band, ledger=source.ledger, step=multiple)


def cropped(source: Rows, height: int, width: int) -> Rows:
    """The upper left part of a map."""
    cursor = source.cursor()

    def make(top: int, bottom: int) -> Tensor:
        return cursor.window(top, bottom)[..., :width]

    return Rows(height, width, make, band=source.band, ledger=source.ledger)


def watched(source: Rows, take: Callable[[int, Tensor], None]) -> Rows:
    """The same map; ``take`` gets every row of it on the host, once: first row, rows."""
    cursor = source.cursor()

    def make(top: int, bottom: int) -> Tensor:
        rows = cursor.window(top, bottom)
        take(top, rows.cpu())
        return rows

    return Rows(source.height, source.width, make, band=source.band, ledger=source.ledger)
