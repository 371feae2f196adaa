"""Collections: a batch against a loop, Ray against one process, and what many GPUs would cost.

python benchmarks/bench_batch.py                    # all of it: 200 photos, Ray if it is installed
python benchmarks/bench_batch.py batch 24 .jpg      # photos of 1 MP, their format; Markdown
python benchmarks/bench_batch.py ray 48             # two local Ray nodes, the same cores
python benchmarks/bench_batch.py cost               # computed, not measured
pytest benchmarks/bench_batch.py                    # the first two, small

Each way runs in a process of its own, on the same photos and cores, with the weights loaded and one
photo restored before the clock starts.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_restore import damaged_photo
from machine import all_threads, processor
from PIL import Image

import oldrestore
from oldrestore.batch.engines import Runtime, Threads
from oldrestore.batch.job import Job
from oldrestore.batch.runner import run_batch
from oldrestore.photo_file import save
from oldrestore.pipeline import Restorer

WAYS = ("loop", "batch", "ray")
JPEG_QUALITY = 92  # of the photos that are read
SHIFT_PX = 37  # by which one photo is another: no two have the same content


def make_photos(folder: Path, count: int, suffix: str) -> None:
    """Photos of 1 MP with drawn damage."""
    folder.mkdir(parents=True)
    pixels = damaged_photo().degraded
    options: dict[str, Any] = {}
    if suffix == ".jpg":
        options["quality"] = JPEG_QUALITY
    if suffix == ".tif":
        options["compression"] = "tiff_lzw"
    for index in range(count):
        shifted = np.roll(pixels, (SHIFT_PX * index, -SHIFT_PX * index), (0, 1))
        Image.fromarray(shifted).save(folder / f"{index:04}{suffix}", **options)


class BusyTime:
    """Processor seconds inside ``Restorer.restore_windows``, over all threads that call it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def watch(self, patch: Callable[[str, Callable[..., Any]], None]) -> None:
        """Count from now on; ``patch`` replaces a method of Restorer."""
        real = Restorer.restore_windows

        def restore(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return real(*arguments, **options)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - start

        patch("restore_windows", restore)


def run_loop(photos: Path, out: Path) -> dict[str, float]:
    """What a user writes without the batch."""
    out.mkdir()
    paths = sorted(photos.iterdir())
    oldrestore.restore(paths[0], device="cpu")
    clock = Clock()
    clock.start(None)
    for path in paths:
        save(oldrestore.restore(path, device="cpu"), out / path.name)
    return clock.read()


def run_batch_way(photos: Path, out: Path) -> dict[str, float]:
    """The batch as the command runs it: sidecars, previews, hashes and manifest included."""
    busy, clock = BusyTime(), Clock()
    job = Job(str(photos), str(out))
    engine = Threads(Runtime("cpu", threads=all_threads()))
    Restorer.load(device="cpu").restore(min(photos.iterdir()))
    busy.watch(lambda name, function: setattr(Restorer, name, function))
    summary = run_batch(job, engine, on_plan=clock.start)
    assert summary.done == len(list(photos.iterdir()))
    return {**clock.read(), "network_seconds": busy.seconds}


def run_ray(photos: Path, out: Path) -> dict[str, float]:
    """Nodes of one core each; the start of the workers, some seconds, is counted."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from oldrestore.batch.cluster import Cluster

    # Ray's own processes are not to wait for others that run beside
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is Ray's)
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(all_threads() - 1):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    clock = Clock()
    summary = run_batch(Job(str(photos), str(out)), Cluster(Runtime("cpu")), on_plan=clock.start)
    seconds = clock.read()["seconds"]
    ray.shutdown()
    nodes.shutdown()
    assert summary.done == len(list(photos.iterdir()))
    return {"seconds": seconds}


class Clock:
    """Seconds, and those of this process's threads, from the moment that the plan is made."""

    def __init__(self) -> None:
        self._start = self._processor_start = 0.0

    def start(self, _: object) -> None:
        self._start, self._processor_start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._start,
            "processor_seconds": time.process_time() - self._processor_start,
        }


def measure(way: str, photos: Path, out: Path) -> dict[str, float]:
    """One way in this process."""
    torch.set_num_threads(all_threads())
    return {"loop": run_loop, "batch": run_batch_way, "ray": run_ray}[way](photos, out)


def measure_alone(way: str, photos: Path, out: Path) -> dict[str, float]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(all_threads())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, __file__, "one", way, str(photos), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(ways: tuple[str, ...], count: int, suffix: str) -> list[dict[str, Any]]:
    """Each way on the same photos; the first is what the others are compared with."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        make_photos(photos, count, suffix)
        for way in ways:
            row: dict[str, Any] = {"way": way, "photos": count, "format": suffix}
            row |= measure_alone(way, photos, Path(folder) / way)
            row["photos_per_s"] = count / row["seconds"]
            row["times"] = row["photos_per_s"] / (rows or [row])[0]["photos_per_s"]
            rows.append(row)
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table; on a busy machine the processor's seconds say more than the clock's."""
    cores = all_threads()
    show(f"\n{processor()}, {cores} cores, torch {torch.__version__}\n")
    show(
        "| way | photos of 1 MP | seconds | photos/min | times | processor s/photo | in networks |"
    )
    show("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        own, inside = row.get("processor_seconds"), row.get("network_seconds")
        cells = [
            row["way"],
            f"{row['photos']} {row['format']}",
            f"{row['seconds']:.1f}",
            f"{60 * row['photos_per_s']:.1f}",
            f"{row['times']:.2f}",
            f"{own / row['photos']:.2f}" if own else "-",
            f"{100 * inside / own:.1f} %" if own and inside else "-",
        ]
        show(f"| {' | '.join(cells)} |")


def show(line: str) -> None:
    sys.stdout.write(line + "\n")


@pytest.mark.parametrize("ways", [("loop", "batch"), ("batch", "ray")], ids="-".join)
def bench_batch(ways: tuple[str, ...]) -> None:
    if "ray" in ways:
        pytest.importorskip("ray")
    print_rows(compare(ways, 6, ".jpg"))


@dataclass(frozen=True)
class Gpu:
    """half_tflops: dense half precision, as its data sheet says. price: USD an hour, assumed."""

    name: str
    half_tflops: float
    price: float


# NVIDIA's data sheets (dense, without sparsity); prices are round numbers for rented machines
CARDS = (Gpu("A100", 312, 1.5), Gpu("H100 SXM", 989, 3.0), Gpu("H200", 989, 3.5))
DERATING = 0.15  # of the peak: the compact network's narrow maps do not fill matrix units
CORE_SECONDS_PER_MP = 0.06  # hash, decode, encode JPEG and previews; `batch` prints what is left
CORES_PER_GPU = 16
OVERHEAD = 0.05  # of the scheduler, and of the last photos that not all workers have
FLEETS = (1, 8, 64)


def flops_per_megapixel() -> float:
    """Of one photo of 1 MP on its way through detector and networks, counted by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    restorer = Restorer.load(device="cpu", backend="reference")
    side = 512  # of whole blocks; the count is proportional to the pixels
    image = torch.zeros(1, 3, side, side)
    mask = torch.zeros(1, 1, side, side)
    with FlopCounterMode(display=False) as counter:
        restorer.damage_probability(image)
        restorer.translate(image, mask)
    return counter.get_total_flops() * 1e6 / side**2


def print_cost() -> None:
    """A model, not a measurement: every assumption is a constant above."""
    gflop = flops_per_megapixel() / 1e9
    show(
        f"\nComputed, not measured: {gflop:.0f} GFLOP a photo of 1 MP (counted), "
        f"{100 * DERATING:.0f} % of the half-precision peak, {CORES_PER_GPU} cores a GPU at "
        f"{CORE_SECONDS_PER_MP} core seconds a photo, {100 * OVERHEAD:.0f} % overhead.\n"
    )
    show("| GPU (assumed USD/h) | photos/h on 1 | on 8 | on 64 | USD a million | bound by |")
    show("| --- | --- | --- | --- | --- | --- |")
    for card in CARDS:
        network = gflop / (card.half_tflops * 1e3 * DERATING)
        files = CORE_SECONDS_PER_MP / CORES_PER_GPU
        rate = 3600 / max(network, files) * (1 - OVERHEAD)
        fleets = " | ".join(f"{rate * count:,.0f}" for count in FLEETS)
        bound = "network" if network > files else "files"
        million = 1e6 / rate * card.price
        show(f"| {card.name} ({card.price:.2f}) | {fleets} | {million:.2f} | {bound} |")


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            main(["batch", "200", ".jpg"])
            if importlib.util.find_spec("ray") is None:
                show('\nRay is not installed (pip install "oldrestore[ray]").')
            else:
                main(["ray", "48"])
            main(["cost"])
        case ["one", way, photos, out] if way in WAYS:
            show(json.dumps(measure(way, Path(photos), Path(out))))
        case ["batch", count, suffix]:
            print_rows(compare(("loop", "batch"), int(count), suffix))
        case ["ray", count]:
            print_rows(compare(("batch", "ray"), int(count), ".jpg"))
        case ["cost"]:
            print_cost()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
