"""Maps of what was done to a page, made as its rows go by; and the small strip for the report."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oldrestore.files import LatePage, picture_file
from oldrestore.image import image_of
from oldrestore.tiling.windows import WindowReader, WindowWriter

Pixels: TypeAlias = "np.ndarray[Any, Any]"

KINDS = ("change", "mask", "probability")
PREVIEW_PX = 384  # longer side of each picture in the strip
PREVIEW_QUALITY = 80
PREVIEW_GAIN = 4  # of the change in the strip: most of it is a few levels
OVERSAMPLED = 4  # pixels a side from which each of the strip is averaged, at least
FAST_PNG = 1  # maps are smooth: a higher level takes several times as long for a tenth less
PNG_PX = 1 << 27  # of a map, at most: a PNG is held whole; larger ones are TIFF
ROWS = 256  # of a photo that are floats at a time
FULL = 255


class MapsOfPage:
    """What is done to one page, told by the windows that go through its writers.

    Windows have the page's whole width, and come from the top down.

    Args:
        page: as it was.
        writers: of the result ("photo"), and of those of `KINDS` that are wanted.
    """

    def __init__(self, page: WindowReader, writers: Mapping[str, WindowWriter]) -> None:
        self._page, self._writers = page, writers
        size = page.size
        small = preview_size(size)
        self._copies = [_Copy(size, small) for _ in ("before", "after")]
        self._maps = {kind: np.zeros(small, np.uint8) for kind in KINDS}
        self._pixels, self._changed, self._total = size[0] * size[1], 0, 0.0

    @property
    def changed(self) -> float:
        """Share of the pixels that changed."""
        return self._changed / self._pixels

    @property
    def mean_change(self) -> float:
        """Exact mean of the change, of the range."""
        return self._total / self._pixels

    def writer(self, kind: str) -> WindowWriter:
        """Takes the windows of a kind: "photo", "mask" or "probability"."""
        return _Taker(self._take_photo if kind == "photo" else self._taker_of(kind))

    def strip(self) -> Image.Image:
        """Equal pictures side by side: before, after, change, mask, probability.

        A map that there is none of is black; the change is shown four times as strong.
        ``PREVIEW_PX`` bounds the longer side of each.
        """
        pictures = [copy.picture() for copy in self._copies]
        for kind, values in self._maps.items():
            gain = PREVIEW_GAIN if kind == "change" else 1
            shown = np.minimum(values.astype(np.uint16) * gain, FULL).astype(np.uint8)
            pictures.append(np.broadcast_to(shown[:, :, None], (*shown.shape, 3)))
        return Image.fromarray(np.concatenate(pictures, axis=1))

    def _take_photo(self, top: int, pixels: Pixels) -> None:
        for first in range(0, len(pixels), ROWS):
            self._compare(top + first, pixels[first : first + ROWS])
        self._writers["photo"].write(top, 0, pixels)

    def _compare(self, top: int, after: Pixels) -> None:
        """The largest change of a channel, of its range; rounded up, so 0 is no change at all."""
        before = self._page.read(top, 0, *after.shape[:2])
        for copy, pixels in zip(self._copies, (before, after), strict=True):
            copy.add(top, pixels)
        largest = (_image(after) - _image(before)).abs_().amax(dim=1)[0] / 2
        self._total += float(largest.double().sum())
        # what rounding in float leaves over a whole level is no change
        change = (largest * FULL - 1e-3).ceil().to(torch.uint8).numpy()
        self._changed += int(np.count_nonzero(change))
        self._taker_of("change")(top, change[:, :, None])

    def _taker_of(self, kind: str) -> Callable[[int, Pixels], None]:
        def take(top: int, values: Pixels) -> None:
            _keep_largest(self._maps[kind], self._page.size, top, values[:, :, 0])
            if kind in self._writers:
                self._writers[kind].write(top, 0, values)

        return take


class MapFile:
    """A map that is written as PNG when its ``with`` block is left.

    Args:
        path: where to.
        size: height and width.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._path = path
        self._values = np.zeros(size, np.uint8)
        self.held_bytes = self._values.nbytes

    def __enter__(self) -> "MapFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            Image.fromarray(self._values).save(self._path, "PNG", compress_level=FAST_PNG)

    def write(self, top: int, _left: int, values: Pixels) -> None:
        """A window (h, W, 1)."""
        self._values[top : top + len(values)] = values[:, :, 0]


def suffix_of(size: tuple[int, int]) -> str:
    """Of the file of a map."""
    return ".png" if size[0] * size[1] <= PNG_PX else ".tif"


def map_writer(opened: ExitStack, path: Path, size: tuple[int, int]) -> MapFile | LatePage:
    """A writer of a map, in a file with the suffix that ``suffix_of`` gives."""
    if path.suffix == ".png":
        return opened.enter_context(MapFile(path, size))
    return picture_file(opened, path, (*size, 1))


def is_map(kind: str) -> bool:
    """Whether a file of this kind, of any page ("mask-2"), is a map."""
    return base_of(kind) in KINDS


def base_of(kind: str) -> str:
    """The kind without its page."""
    return kind.partition("-")[0]


def write_preview(strip: Image.Image, path: Path) -> None:
    """The strip as a small JPEG."""
    strip.save(path, "JPEG", quality=PREVIEW_QUALITY)


def preview_size(size: tuple[int, int]) -> tuple[int, int]:
    """Of each picture in the strip of a page."""
    scale = min(1.0, PREVIEW_PX / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class _Taker:
    """A writer that calls a function."""

    def __init__(self, take: Callable[[int, Pixels], None]) -> None:
        self._take = take

    def write(self, top: int, _left: int, pixels: Pixels) -> None:
        self._take(top, pixels)


class _Copy:
    """A small copy of a photo that comes in rows: the mean of pixels that lie a step apart."""

    def __init__(self, size: tuple[int, int], small: tuple[int, int]) -> None:
        self._small = small
        self._step = max(1, min(size) // min(small) // OVERSAMPLED)
        shape = -(-size[0] // self._step), -(-size[1] // self._step), 3
        self._levels = np.zeros(shape, np.uint8)

    def add(self, top: int, pixels: Pixels) -> None:
        some = pixels[-top % self._step :: self._step, :: self._step]
        first = -(-top // self._step)
        if some.dtype != np.uint8 or some.shape[2] != 3:
            levels = ((_image(some)[0] + 1) * (FULL / 2)).round_().to(torch.uint8)
            some = levels.permute(1, 2, 0).numpy()
        self._levels[first : first + len(some)] = some

    def picture(self) -> Pixels:
        """(h, w, 3) uint8."""
        picture = Image.fromarray(self._levels)
        return np.asarray(picture.resize(self._small[::-1], Image.Resampling.BOX))


def _keep_largest(small: Pixels, size: tuple[int, int], top: int, values: Pixels) -> None:
    """Put rows of a map into its small copy: a single marked pixel stays seen."""
    rows, columns = (np.arange(n) * side // n for n, side in zip(small.shape, size, strict=True))
    narrow = np.maximum.reduceat(values, columns, axis=1)
    places = np.searchsorted(rows, np.arange(top, top + len(values)), side="right") - 1
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    found = np.maximum.reduceat(narrow, starts, axis=0)
    small[places[starts]] = np.maximum(small[places[starts]], found)


def _image(pixels: Pixels) -> Tensor:
    """Pixels (h, w, C) as an image (1, 3, h, w) in [-1, 1]."""
    return image_of(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None])
