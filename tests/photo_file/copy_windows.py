"""Copy a large TIFF of 16-bit RGB by windows, compare, and say what it took.

    python tests/photo_file/copy_windows.py 30000 30000

makes the file in the working folder (twice its size is needed), copies it, reads the copy, and
prints the peak memory beside the interpreter's in MB, and the seconds of the copy.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oldrestore.photo_file import Array, Page, PhotoWriter, create_photo, open_photo
from oldrestore.photo_file.metadata import Metadata
from oldrestore.photo_file.page import Layout

ROWS_PX, COLUMNS_PX = 1024, 1500  # of a window


class Gradient(Page):
    """A page whose pixels follow from their places."""

    def __init__(self, size: tuple[int, int], layout: Layout) -> None:
        self.name, self.size, self.layout = "gradient", size, layout
        self.channels, self.dtype, self.metadata = 3, np.dtype(np.uint16), Metadata()

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        rows = np.arange(top, top + height, dtype=np.uint16)[:, None, None] * np.uint16(7)
        columns = np.arange(left, left + width, dtype=np.uint16)[None, :, None]
        return rows + columns + np.array([0, 9, 99], np.uint16)


def windows(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, size[0], ROWS_PX):
        for left in range(0, size[1], COLUMNS_PX):
            yield top, left, min(ROWS_PX, size[0] - top), min(COLUMNS_PX, size[1] - left)


def copy(size: tuple[int, int], layout: Layout) -> tuple[float, float]:
    """Peak memory in MB and seconds."""
    source, target, made = Path("gradient.tif"), Path("copy.tif"), Gradient(size, layout)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with PhotoWriter(source, 1, made.nbytes) as photo, photo.add_page(made) as page:
            for window in windows(size):
                page.write(*window[:2], made.read(*window))
        start = time.perf_counter()
        with open_photo(source) as read, create_photo(target, read) as photo:
            original = read.page(0)
            with photo.add_page(original) as page:
                for window in windows(size):
                    page.write(*window[:2], original.read(*window))
        seconds = time.perf_counter() - start
        with open_photo(target) as read:
            copied = read.page(0)
            for window in windows(size):
                assert np.array_equal(copied.read(*window), made.read(*window)), window
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return peak / 1024, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--layout", type=json.loads, default={"compression": 1, "rows": 1})
    asked = parser.parse_args()
    tile = asked.layout.pop("tile", None)
    layout = Layout(tile=tuple(tile) if tile else None, **asked.layout)
    peak_mb, seconds = copy((asked.height, asked.width), layout)
    print(json.dumps({"peak_mb": round(peak_mb), "seconds": round(seconds, 1)}))  # noqa: T201


if __name__ == "__main__":
    main()
