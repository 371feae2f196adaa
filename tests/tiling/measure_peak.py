"""Restores a made-up photo by windows; prints the memory planned and taken, in bytes, as JSON.

python tests/tiling/measure_peak.py HEIGHT WIDTH MEMORY
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from oldrestore import pipeline
from oldrestore.pipeline import Restorer
from oldrestore.tiling import plan
from oldrestore.tiling.memory import resident_memory
from oldrestore.tiling.restoring import Bands


class Photo:
    """Noise of 16 bits with a scratch in every tenth column, made when it is read."""

    channels, dtype = 3, np.dtype(np.uint16)

    def __init__(self, height: int, width: int) -> None:
        self.size = height, width
        self._row = np.random.default_rng(0).integers(20_000, 40_000, (1, width, 3), np.uint16)
        self._row[:, ::10] = 65_535

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return np.repeat(self._row[:, left : left + width], height, axis=0)

    def write(self, top: int, left: int, pixels: np.ndarray) -> None:
        """Results are thrown away."""


def main(height: int, width: int, memory: str) -> dict[str, int]:
    torch.set_num_threads(1)
    restorer, photo, planned = Restorer.load(device="cpu"), Photo(height, width), []
    needed_bytes = plan.needed_bytes

    def noted(bands: Bands) -> int:
        planned.append(needed_bytes(bands))
        return planned[-1]

    plan.needed_bytes = noted
    pipeline.is_best_whole = lambda *_: False
    before = resident_memory()
    assert before is not None
    restorer.restore_windows(photo, photo, max_memory=memory)
    return {"planned": planned[-1], "taken": _peak_memory() - before}


def _peak_memory() -> int:
    """Bytes; Linux's VmHWM, as ``ru_maxrss`` also counts what the process's parent held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    height, width, memory = sys.argv[1:]
    sys.stdout.write(json.dumps(main(int(height), int(width), memory)) + "\n")
