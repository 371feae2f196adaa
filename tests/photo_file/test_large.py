"""Large files go through by windows in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

# makes a TIFF of 16-bit RGB window by window, copies it, and compares; prints the peak in MB
COPY = """
import resource, sys
import numpy as np
from oldrestore.photo_file import Page, PhotoWriter, create_photo, open_photo
from oldrestore.photo_file.metadata import Metadata
from oldrestore.photo_file.page import Layout

height, width, layout = int(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])

class Gradient(Page):
    name, size, channels, dtype = "gradient", (height, width), 3, np.dtype(np.uint16)
    metadata = Metadata()

    def read(self, top, left, height, width):
        rows = np.arange(top, top + height, dtype=np.uint16)[:, None, None] * np.uint16(7)
        columns = np.arange(left, left + width, dtype=np.uint16)[None, :, None]
        return rows + columns + np.array([0, 9, 99], np.uint16)

def windows(size, rows=1024, columns=1500):
    for top in range(0, size[0], rows):
        for left in range(0, size[1], columns):
            yield top, left, min(rows, size[0] - top), min(columns, size[1] - left)

made = Gradient()
made.layout = Layout(**layout)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with PhotoWriter("in.tif", 1, made.nbytes) as photo, photo.add_page(made) as target:
    for window in windows(made.size):
        target.write(*window[:2], made.read(*window))
with open_photo("in.tif") as source, create_photo("out.tif", source) as photo:
    for page in source.pages():
        with photo.add_page(page) as target:
            for window in windows(page.size):
                target.write(*window[:2], page.read(*window))
with open_photo("out.tif") as copied:
    page = copied.page(0)
    for window in windows(page.size):
        assert np.array_equal(page.read(*window), made.read(*window)), window
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
# the cache of decoded tiles, a row of windows and one of tiles that wait, and what a window takes
ALLOWED_MB = 128 + (1024 + 512) * 15_000 * 6 / 1e6 + 100


def copied(folder: Path, height: int, width: int, layout: dict[str, object]) -> float:
    command = [sys.executable, "-c", COPY, str(height), str(width), repr(layout)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_gradient_comes_through_by_windows(tmp_path: Path) -> None:
    assert copied(tmp_path, 1500, 2100, {"tile": (256, 256)}) < 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (512, 512), "compression": 5},
        {"rows": 16},
        {"compression": 1, "rows": 14_000, "is_big": True},
    ],
    ids=str,
)
def test_210_megapixels_of_16_bits_in_little_memory(
    layout: dict[str, object], tmp_path: Path
) -> None:
    peak_mb = copied(tmp_path, 14_000, 15_000, layout)
    assert peak_mb < ALLOWED_MB
