"""What the tests of batches share: a folder of small photos, and a batch over it."""

from pathlib import Path
from typing import Any

import pytest
from photo_folders import RunBatch, write_photo

from oldrestore.batch.engines import Runtime, Threads
from oldrestore.batch.job import Job
from oldrestore.batch.runner import Summary, run_batch


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with three photos, two of them in a folder of their own, and something else."""
    folder = tmp_path / "scans"
    for seed, name in enumerate(("a.png", "1931/b.jpg", "1931/c.tif")):
        write_photo(folder / name, seed)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(scans: Path, out: Path, weights: Path) -> RunBatch:
    """Run a batch from ``scans`` to ``out``; fields of the job by name, and ``run_batch``'s."""

    def call(**options: Any) -> Summary:
        ways = ("retry_failed", "should_stop", "on_plan", "on_outcome")
        given = {name: options.pop(name) for name in ways if name in options}
        # the untrained detector takes all for damaged, and all damage gives one picture
        usual = {"source": str(scans), "output": str(out), "weights": str(weights), "threshold": 1}
        if "face_weights" not in options:
            usual["faces"] = "off"  # whether or not a detector of faces is installed
        memory = options.pop("max_memory", None)
        job = Job(**{**usual, **options})
        runtime = Runtime("cpu", slots=2, threads=2, max_memory=memory)
        return run_batch(job, Threads(runtime), **given)

    return call
