"""The whole way, a megapixel on two threads: pytest benchmarks/bench_restore.py

python benchmarks/bench_restore.py ours          # seconds and peak memory, in a process alone
python benchmarks/bench_restore.py reference     # the same networks in plain PyTorch
python benchmarks/bench_restore.py telea-nlm     # OpenCV's Telea + non-local means
"""

import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from process_memory import peak_megabytes
from pytest_benchmark.fixture import BenchmarkFixture

from oldrestore.config import CompactConfig
from oldrestore.evaluate.methods import make_methods
from oldrestore.evaluate.samples import Pixels, Sample, draw_sample
from oldrestore.networks import DEFAULT_WEIGHTS
from oldrestore.pipeline import Restorer

METHODS = ("ours", "reference", "telea-nlm")
SIDE_PX = 1000
THREADS = 2
ROUNDS = 5
MOST_LEVELS = 1  # by which two backends may differ in a picture of 8 bits: rounding


@functools.cache
def damaged_photo() -> Sample:
    """Soft shapes with grain, and the first drawn damage that has holes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
    clean = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    samples = (draw_sample(clean, "not-faded", seed=0, index=index) for index in range(100))
    return next(sample for sample in samples if sample.mask.any())


def load(backend: str | None) -> Restorer:
    """The shipped weights; without them untrained networks of the same layout and speed."""
    if DEFAULT_WEIGHTS.exists():
        return Restorer.load(device="cpu", backend=backend, faces="off")
    torch.manual_seed(0)
    return Restorer(CompactConfig(), device="cpu", backend=backend)


def restore(method: str, restorer: Restorer | None, sample: Sample) -> Pixels:
    """As a user calls it: detector, filling, networks and tone; 8 bits in and out."""
    if restorer is not None:
        pixels: Pixels = restorer.restore(sample.degraded).image
        return pixels
    # a fresh method each time: it keeps its last picture
    return make_methods([method], None)[method](sample).kept


def restorer_of(method: str) -> Restorer | None:
    backends = {"ours": None, "reference": "reference"}
    return load(backends[method]) if method in backends else None


@functools.cache
def assert_backends_agree() -> None:
    """The fastest backends give the reference's picture."""
    pictures = [
        load(backend).restore(damaged_photo().degraded).image.astype(int)
        for backend in (None, "reference")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= MOST_LEVELS


@pytest.mark.parametrize("method", METHODS)
def bench_restore(benchmark: BenchmarkFixture, method: str) -> None:
    torch.set_num_threads(THREADS)
    assert_backends_agree()
    benchmark.group = f"restore {SIDE_PX} x {SIDE_PX}, {THREADS} threads"
    arguments = method, restorer_of(method), damaged_photo()
    benchmark.pedantic(restore, arguments, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(
        device=platform.processor() or platform.machine(),
        torch=torch.__version__,
        weights="shipped" if DEFAULT_WEIGHTS.exists() else "untrained",
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        command = [sys.executable, str(Path(__file__)), method]
        alone = subprocess.run(command, check=True, capture_output=True, text=True)
        benchmark.extra_info.update(json.loads(alone.stdout))


def measure(method: str) -> dict[str, float | None]:
    """Seconds, a median, and peak memory of a process that does nothing else.

    On a busy machine the processor's seconds say more than the clock's: half of them, at best.
    """
    torch.set_num_threads(THREADS)
    restorer, sample = restorer_of(method), damaged_photo()
    before = peak_megabytes()
    seconds, processor_seconds = [], []
    for _ in range(1 + ROUNDS):  # the first warms up
        start, processor_start = time.perf_counter(), time.process_time()
        restore(method, restorer, sample)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    return {
        "seconds": statistics.median(seconds[1:]),
        "processor_seconds": statistics.median(processor_seconds[1:]),
        "peak_mb": peak_megabytes(),
        "peak_mb_before_restoring": before,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in METHODS:
        sys.exit(f"usage: {Path(__file__).name} {'|'.join(METHODS)}")
    sys.stdout.write(json.dumps(measure(sys.argv[1])) + "\n")
