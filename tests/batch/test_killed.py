"""kill -9 in the middle of a batch: it goes on, and nothing is lost, half-written or made twice."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from photo_folders import below, pixels, write_photo

from oldrestore.batch.manifest import Manifest
from oldrestore.batch.runner import MANIFEST_NAME
from oldrestore.pipeline import Restorer

PHOTOS = 100
KILLS = 20
IN_FLIGHT = 4  # two in the networks, as many read or written
SUFFIXES = (".png", ".jpg", ".tif")
OPTIONS = ("--threshold", "1", "--workers", "2", "--threads", "2", "--device", "cpu")
TIMEOUT_S = 300


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    for index in range(count):
        suffix = SUFFIXES[index % len(SUFFIXES)]
        write_photo(folder / f"{index % 7}" / f"{index:03}{suffix}", index, size)


def start(scans: Path, out: Path, weights: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "oldrestore", "batch", str(scans), str(out)]
    return subprocess.Popen([*command, "--weights", str(weights), *OPTIONS])


def done(out: Path) -> dict[str, str]:
    """Hashes of the photos that the manifest holds for done, by name."""
    if not (out / MANIFEST_NAME).exists():
        return {}
    manifest = Manifest(out / MANIFEST_NAME, is_read_only=True)
    rows = {row.name: row for row in manifest.rows() if row.state == "done"}
    manifest.close()
    return {name: row.outputs["photo"]["sha256"] for name, row in rows.items()}


def wait_for(out: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    """Until so many photos are done, or the process has ended."""
    end = time.monotonic() + TIMEOUT_S
    while process.poll() is None and len(done(out)) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def check_whole(scans: Path, out: Path, weights: Path) -> None:
    restorer = Restorer.load(weights, "cpu")
    names = below(scans)
    assert [name for name in below(out) if not name.endswith((".json", ".xmp"))] == names
    for name in names:
        if not name.endswith(".jpg"):
            expected = restorer.restore(scans / name, threshold=1.0).image
            assert np.array_equal(pixels(out / name), np.asarray(expected)), name
        sha256 = hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert done(out)[name] == sha256
    assert not (out / ".oldrestore" / "partial").exists()


def run_with_kills(scans: Path, out: Path, weights: Path, kills: int, seed: int) -> Counter[str]:
    """Kill the batch at random moments, then let it end; how often each photo was written anew."""
    rng = random.Random(seed)
    count = len(below(scans))
    written: Counter[str] = Counter()
    for number in range(kills):
        known = done(out)
        lost = begun(out) - set(known)
        times = {name: (out / name).stat().st_mtime_ns for name in known}
        process = start(scans, out, weights)
        # from before the first photo until some more are done, however busy the machine is
        aim = len(known) + rng.randrange(max(1, (count - len(known)) // (kills - number)) + 1)
        wait_for(out, aim, process)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
        for name, before in times.items():  # what was done stays as it is
            assert (out / name).stat().st_mtime_ns == before
        written += Counter(set(done(out)) - set(known))
        assert len(begun(out) - set(done(out)) - lost) <= IN_FLIGHT  # all that is made again
    known = done(out)
    last = start(scans, out, weights)
    assert last.wait(TIMEOUT_S) == 0
    assert len(done(out)) == count
    written += Counter(set(done(out)) - set(known))
    return written


def begun(out: Path) -> set[str]:
    """Photos whose result has its name: done, or in work at the last moment."""
    return {name for name in below(out) if not name.endswith((".json", ".xmp"))}


def test_a_killed_batch_goes_on(weights: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    make_photos(scans, 12, (96, 64))
    process = start(scans, out, weights)
    wait_for(out, 3, process)
    process.kill()
    process.wait(TIMEOUT_S)
    known = done(out)
    assert len(begun(out) - set(known)) <= IN_FLIGHT
    assert run_with_kills(scans, out, weights, 1, seed=0) == Counter(set(below(scans)) - set(known))
    check_whole(scans, out, weights)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(weights: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    make_photos(scans, PHOTOS, (96, 64))
    written = run_with_kills(scans, out, weights, KILLS, seed=1)
    assert written == Counter(below(scans))
    check_whole(scans, out, weights)
