"""Large photos in bounded memory: seconds, and the most memory of the process.

python benchmarks/bench_tiles.py                            # the table: 24 MP, whole and in bands
python benchmarks/bench_tiles.py compact 24 1GiB 2          # NETWORK SIZE MEMORY THREADS
python benchmarks/bench_tiles.py compact 24 whole 2         # all at once; needs 10 GB
python benchmarks/bench_tiles.py tiff 30000x30000 2.75GiB 2 # a TIFF of 16 bits into another
python benchmarks/bench_tiles.py paper 4 1GiB 2             # the published scratch network

A size is megapixels, or height x width. Every way runs in a process of its own. "planned" is what
`tiling.plan` says beforehand that restoring takes; the peak is the whole process's, Python, torch
and weights included. Processor seconds count other programs' work less than seconds do; set
OMP_WAIT_POLICY=PASSIVE, as the table does, so that they do not count threads that wait.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import paper_network
import torch
from process_memory import peak_megabytes

from oldrestore import pipeline
from oldrestore.files import restore_pages
from oldrestore.photo_file import ArrayPage, Metadata, PhotoWriter
from oldrestore.photo_file.page import Layout
from oldrestore.photo_file.tags import NOT_COMPRESSED
from oldrestore.pipeline import Restorer
from oldrestore.tiling import plan
from oldrestore.tiling.restoring import Bands

WIDE = 1.5  # a photo's width over its height
TABLE = (("compact", "24", "whole"), ("compact", "24", "1GiB"), ("compact", "24", "2GiB"))
WHOLE = "whole"
HOLE_SHARE = 0.02
STRIP_ROWS = 250  # of the TIFF, made at a time


def photo(height: int, width: int, kind: type, seed: int = 0) -> np.ndarray:
    """A repeated tile of soft shapes, grain and scratches, which no detector can miss."""
    side = 1000
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] * (2 * np.pi / side)
    shades = [0.5 + 0.25 * np.sin(3 * x + i) * np.cos(2 * y) for i in range(3)]
    tile = np.stack(shades, axis=2) + rng.normal(0, 0.03, (side, side, 3))
    for _ in range(12):
        column = int(rng.integers(side))
        tile[:, column : column + 3] = rng.choice([0.03, 0.97])
    tile = (tile.clip(0, 1) * np.iinfo(kind).max).astype(kind)
    repeats = (-(-height // side), -(-width // side), 1)
    return np.ascontiguousarray(np.tile(tile, repeats)[:height, :width])


def sides(size: str) -> tuple[int, int]:
    """Height and width of a photo by its megapixels, or as given."""
    if "x" in size:
        height, width = map(int, size.split("x"))
        return height, width
    pixels = float(size) * 1e6
    height = round((pixels / WIDE) ** 0.5)
    return height, round(pixels / height)


def compact(size: str, memory: str) -> dict[str, Any]:
    """An array of 8 bits through the default network."""
    restorer, pixels = Restorer.load(device="cpu", faces="off"), photo(*sides(size), np.uint8)
    if memory == WHOLE:
        pipeline.is_best_whole = lambda *_: True
    result = restorer.restore(pixels, max_memory="1TiB" if memory == WHOLE else memory)
    return {
        "seconds": result.seconds,
        "damaged": result.damaged,
        "sha256": hashlib.sha256(result.image).hexdigest()[:16],
    }


def tiff(size: str, memory: str) -> dict[str, Any]:
    """A TIFF of 16 bits, in strips, into another, as the command line does it."""
    restorer, (height, width) = Restorer.load(device="cpu", faces="off"), sides(size)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.tif", Path(folder) / "out.tif"
        page = ArrayPage("page", np.broadcast_to(np.uint16(0), (height, width, 3)), Metadata())
        page.layout = Layout(compression=NOT_COMPRESSED, predictor=1)
        with PhotoWriter(source) as written, written.add_page(page) as windows:
            for top in range(0, height, STRIP_ROWS):
                rows = min(STRIP_ROWS, height - top)
                windows.write(top, 0, photo(STRIP_ROWS, width, np.uint16, top // STRIP_ROWS)[:rows])
        start, processor_start = time.perf_counter(), time.process_time()
        ((_, found),) = restore_pages(restorer, source, target, max_memory=memory)
        seconds, processor_seconds = (
            time.perf_counter() - start,
            time.process_time() - processor_start,
        )
        sizes = {"in_mb": source.stat().st_size / 1e6, "out_mb": target.stat().st_size / 1e6}
    seconds_of = {"seconds": seconds, "processor_seconds": processor_seconds}
    return {**seconds_of, "damaged": found.damaged, **sizes}


def paper(size: str, memory: str) -> dict[str, Any]:
    """The published scratch network with random weights, a mask of small holes."""
    restorer = paper_network.restorer()
    height, width = (side // 8 * 8 for side in sides(size))
    pixels = photo(height, width, np.uint8)
    cells = np.random.default_rng(1).random((height // 8, width // 8)) < HOLE_SHARE
    mask = cells.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    result = restorer.restore(pixels, mask=mask, max_memory=memory)
    return {"seconds": result.seconds, "damaged": result.damaged}


def measure(network: str, size: str, memory: str, threads: int) -> dict[str, Any]:
    """In this process."""
    torch.set_num_threads(threads)
    planned: list[int] = []
    needed_bytes = plan.needed_bytes

    def noted(bands: Bands) -> int:
        planned.append(needed_bytes(bands))
        return planned[-1]

    plan.needed_bytes = noted
    before = peak_megabytes()
    start = time.process_time()
    found = {"compact": compact, "tiff": tiff, "paper": paper}[network](size, memory)
    processor_seconds = found.pop("processor_seconds", time.process_time() - start)
    megapixels = math.prod(sides(size)) / 1e6
    return {
        "network": network,
        "megapixels": megapixels,
        "memory": memory,
        "threads": threads,
        **found,
        "processor_seconds": processor_seconds,
        "seconds_per_megapixel": found["seconds"] / megapixels,
        "processor_seconds_per_megapixel": processor_seconds / megapixels,
        "peak_mb": peak_megabytes(),
        "peak_mb_before": before,
        "planned_mb": planned[-1] / 1e6 if planned else None,
    }


def alone(*arguments: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(threads: int) -> None:
    """Print the ratio to the untiled way, and the peaks."""
    rows = [alone(name, size, memory, str(threads)) for name, size, memory in TABLE]
    whole = rows[0]
    columns = ("seconds", "processor s", "of untiled", "peak MB", "planned MB")
    sys.stdout.write(f"\n| 24 MP, {threads} threads | {' | '.join(columns)} |\n")
    sys.stdout.write("|---|" + "---:|" * len(columns) + "\n")
    for row in rows:
        if row["sha256"] != whole["sha256"]:
            raise AssertionError(f"{row['memory']}: other pixels than {WHOLE}")
        planned = "-" if row["memory"] == WHOLE else f"{row['planned_mb']:.0f}"
        cells = (
            f"{row['seconds']:.1f}",
            f"{row['processor_seconds']:.1f}",
            f"{row['processor_seconds'] / whole['processor_seconds']:.2f}",
            f"{row['peak_mb']:.0f}",
            planned,
        )
        sys.stdout.write(f"| `{row['memory']}` | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [("compact" | "tiff" | "paper") as network, size, memory, threads]:
            result = measure(network, size, memory, int(threads))
            sys.stdout.write(json.dumps(result) + "\n")
        case []:
            table(min(2, os.cpu_count() or 1))
        case _:
            sys.exit("usage: python bench_tiles.py [compact|tiff|paper SIZE MEMORY THREADS]")
