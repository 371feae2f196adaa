"""Training as it runs: data, damage, networks, losses and optimiser of a whole stage.

python benchmarks/bench_train.py                    # all, as Markdown
python benchmarks/bench_train.py mapping ours 2     # one run, on two threads; JSON

For each stage: ours and plain PyTorch on all cores, and ours as one run a core, all at the same
time. "waiting" is the share of the time in which the networks had no batch. The photos are drawn;
there is little else in them that a step's time depends on.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import all_threads, processor
from PIL import Image
from process_memory import peak_megabytes

from oldrestore.ops import set_backend
from oldrestore.train import mapping, mask, vae
from oldrestore.train.config import LoopSettings, MappingSettings, MaskSettings, VAESettings
from oldrestore.train.data import batches
from oldrestore.train.loop import Stage, Trainer

STAGES = ("vae", "mapping", "mask")
WAYS = ("ours", "reference")
PHOTOS, PHOTO_PX = 24, 512
WARM_UP = 10  # steps before the clock starts: the queue of batches is then no longer full
STEPS = 60
ENDLESS = 10**6  # steps: the learning rate does not fall meanwhile


def make_photos(folder: Path) -> None:
    """Pictures with as much detail at every scale, as photos have."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(PHOTOS):
        picture = np.zeros((PHOTO_PX, PHOTO_PX, 3), dtype=np.float32)
        for side in (4, 8, 16, 32, 64, 128, 256, 512):
            cells = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            size = (PHOTO_PX, PHOTO_PX)
            picture += np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
        Image.fromarray((picture / 8).astype(np.uint8)).save(folder / f"{index:02}.jpg", quality=92)


def make_stage(name: str, folder: Path) -> tuple[Stage, LoopSettings]:
    """A stage at the settings of the default network's training."""
    photos = folder / "photos"
    if name == "vae":
        settings = VAESettings(domain="old", steps=ENDLESS)
        return vae.make_stage(settings, clean=[photos], old=[photos]), settings
    if name == "mask":
        detector = MaskSettings(batch=8, crop_px=192, steps=ENDLESS)
        return mask.make_stage(detector, clean=[photos]), detector
    runs = {domain: folder / domain for domain in ("old", "clean")}
    for domain, run in runs.items():
        short = VAESettings(domain=domain, steps=1)
        Trainer(
            vae.make_stage(short, clean=[photos], old=[photos]), short, run, torch.device("cpu")
        ).run()
    whole = MappingSettings(trains="all", steps=ENDLESS)
    stage = mapping.make_stage(whole, clean=[photos], vae_old=runs["old"], vae_clean=runs["clean"])
    return stage, whole


def measure(name: str, way: str, threads: int) -> dict[str, Any]:
    """One run in this process."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photos(folder / "photos")
        stage, settings = make_stage(name, folder)
        if way == "reference":
            for player in stage.players.values():
                set_backend(player.module, "reference")
        trainer = Trainer(stage, settings, folder / "run", torch.device("cpu"))
        source = batches(stage.samples, settings)
        waited = 0.0
        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                start, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            trainer.train_step(batch)
        seconds = time.perf_counter() - start
    return {
        "samples_per_second": STEPS * settings.batch / seconds,
        "waiting": waited / seconds,
        "peak_mb": peak_megabytes(),
    }


def at_once(name: str, way: str, threads: int, runs: int) -> dict[str, float]:
    """So many runs, each a process: samples of all a second, the longest waiting, memory of all."""
    command = [sys.executable, __file__, name, way, str(threads)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
    found = []
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        found.append(json.loads(said.splitlines()[-1]))
    return {
        "samples_per_second": sum(one["samples_per_second"] for one in found),
        "waiting": max(one["waiting"] for one in found),
        "peak_mb": sum(one["peak_mb"] for one in found),
    }


def main() -> None:
    """Print one run, or all of them."""
    if len(sys.argv) > 1:
        name, way, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
        if name not in STAGES or way not in WAYS:
            raise SystemExit(f"expected one of {STAGES} and one of {WAYS}, got {name} {way}")
        _say(json.dumps(measure(name, way, threads)))
        return
    cores = all_threads()
    _say(f"{processor()}, torch {torch.__version__}\n")
    _say(
        "| stage | | samples/s | to plain PyTorch | waiting | peak MB |\n|---|---|---|---|---|---|"
    )
    for name in STAGES:
        arrangements = {
            f"plain PyTorch, {cores} threads": ("reference", cores, 1),
            f"ours, {cores} threads": ("ours", cores, 1),
            f"ours, {cores} runs of one thread": ("ours", 1, cores),
        }
        plain = None
        for title, arrangement in arrangements.items():
            one = at_once(name, *arrangement)
            rate = one["samples_per_second"]
            plain = plain or rate
            _say(
                f"| {name} | {title} | {rate:.1f} | {rate / plain:.2f} | {one['waiting']:.1%} "
                f"| {one['peak_mb']:.0f} |"
            )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
