"""A batch on a Ray cluster of two nodes on this machine."""

import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from photo_folders import RunBatch, below, pixels, write_photo
from torch import Tensor

from oldrestore.batch import cluster
from oldrestore.batch.cluster import Cluster, RestoringActor
from oldrestore.batch.engines import Runtime
from oldrestore.batch.job import Job
from oldrestore.batch.runner import Summary, run_batch
from oldrestore.batch.storage import sha256_of
from oldrestore.batch.work import Outcome
from oldrestore.cli import run_command
from oldrestore.face import stage
from oldrestore.face.align import TEMPLATE
from oldrestore.face.detect import Face

PHOTOS = 24
NODES = 2
POISON_SIZE = (33, 17)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, connected to two nodes of one core each."""
    ray = pytest.importorskip("ray", reason='Ray is not installed (pip install "oldrestore[ray]")')
    from ray.cluster_utils import Cluster as Nodes

    environment = pytest.MonkeyPatch()
    # workers find the package as this process does, and get their share of a busy machine
    environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    environment.setenv("RAY_worker_niceness", "0")
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(NODES - 1):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    nodes.shutdown()
    environment.undo()


@pytest.fixture
def many(scans: Path) -> Path:
    for index in range(PHOTOS - 3):
        write_photo(scans / "many" / f"{index:03}.png", index, (120, 80))
    return scans


def on_ray(scans: Path | str, out: Path | str, weights: Path, **options: Any) -> Summary:
    job = Job(str(scans), str(out), str(weights), threshold=1)
    return run_batch(job, Cluster(Runtime("cpu")), **options)


def same_as_local(run: RunBatch, out: Path, tmp_path: Path, **options: Any) -> None:
    local = tmp_path / "local"
    run(output=str(local), **options)
    assert below(out) == below(local)
    for name in below(local):
        if not name.endswith((".json", ".xmp")):
            assert np.array_equal(pixels(out / name), pixels(local / name)), name


def actors() -> list[psutil.Process]:
    """Processes of the actors that restore."""
    found = (p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"])
    return [p for p in found if "RestoringActor" in p.info["cmdline"][0]]


def test_the_results_are_those_of_one_process(
    ray: Any, many: Path, run: RunBatch, out: Path, weights: Path, tmp_path: Path
) -> None:
    (many / "bad.png").write_bytes(b"not a picture")
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == NODES
    summary = on_ray(many, out, weights)
    assert summary.done == PHOTOS
    assert list(summary.failed) == ["bad.png"]
    same_as_local(run, out, tmp_path)
    assert on_ray(many, out, weights) == Summary(unchanged=PHOTOS, failed=summary.failed)
    assert run() == Summary(unchanged=PHOTOS, failed=summary.failed)  # one manifest for both


def test_killed_workers_lose_nothing(
    ray: Any, many: Path, run: RunBatch, out: Path, weights: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    has_ended = threading.Event()

    def kill() -> None:
        """One worker as soon as it works, and another later."""
        while len(killed) < NODES and not has_ended.is_set():
            if len(below(out) if out.exists() else []) > 6 * len(killed):
                for process in actors()[:1]:
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes: list[Outcome] = []
    try:
        summary = on_ray(many, out, weights, on_outcome=outcomes.append)
    finally:
        has_ended.set()
        killer.join()
    assert killed
    assert summary == Summary(done=PHOTOS)
    assert set(Counter(outcome.name for outcome in outcomes).values()) == {1}
    same_as_local(run, out, tmp_path)


class Poisoned(RestoringActor):
    """An actor whose process ends at one photo."""

    def __call__(self, batch: Any) -> Any:
        if any('"poison.png"' in str(task) for task in batch["task"]):
            os._exit(1)
        return super().__call__(batch)


def test_a_photo_that_workers_die_of_takes_no_other_with_it(
    ray: Any, scans: Path, out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(scans / "poison.png")
    ray.cloudpickle.register_pickle_by_value(sys.modules[Poisoned.__module__])
    monkeypatch.setattr(cluster, "RestoringActor", Poisoned)
    summary = on_ray(scans, out, weights)
    assert summary.done == 3
    assert "the worker died each time" in summary.failed["poison.png"]


class OneFace:
    """Takes the middle of every photo for a face."""

    def detect(self, image: Tensor) -> list[Face]:
        middle = np.array([image.shape[-1], image.shape[-2]]) / 2  # x, y
        half = middle.min() / 2
        points = middle + (TEMPLATE - 0.5) * 2 * half
        box = (*(middle - half), *(middle + half))
        return [Face(tuple(map(float, box)), tuple(map(tuple, points.tolist())), 0.75)]


def see_one_face() -> None:
    stage.why_no_detector = lambda: None
    stage.make_face_detector = OneFace


class Beholder(RestoringActor):
    """An actor whose process finds a face in every photo."""

    def __init__(self, *given: Any) -> None:
        see_one_face()
        super().__init__(*given)


def test_face_weights_reach_the_workers(
    ray: Any,
    many: Path,
    run: RunBatch,
    out: Path,
    weights: Path,
    face_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("why_no_detector", "make_face_detector"):
        monkeypatch.setattr(stage, name, None)  # put back in the end
    see_one_face()
    ray.cloudpickle.register_pickle_by_value(sys.modules[Beholder.__module__])
    monkeypatch.setattr(cluster, "RestoringActor", Beholder)
    job = Job(str(many), str(out), str(weights), threshold=1, face_weights=str(face_weights))
    assert run_batch(job, Cluster(Runtime("cpu"))) == Summary(done=PHOTOS)
    about = json.loads((out / "many" / "000.png.json").read_text())
    assert about["options"]["faces"] == sha256_of(face_weights)
    (face,) = about["faces"]
    assert (face["score"], face["kept"]) == (0.75, True)
    without = tmp_path / "without"
    run(output=str(without))
    assert not np.array_equal(pixels(out / "many/000.png"), pixels(without / "many/000.png"))
    same_as_local(run, out, tmp_path, face_weights=str(face_weights))


def test_a_batch_asked_to_stop_goes_on_later(
    ray: Any, many: Path, out: Path, weights: Path
) -> None:
    done: list[Outcome] = []
    first = on_ray(many, out, weights, should_stop=lambda: bool(done), on_outcome=done.append)
    assert first.interrupted
    assert first.done == len(done) < PHOTOS
    second = on_ray(many, out, weights)
    assert (second.done, second.unchanged) == (PHOTOS - first.done, first.done)


def test_workers_read_and_write_through_fsspec(
    ray: Any, many: Path, out: Path, weights: Path
) -> None:
    """fsspec's ``local://`` goes every step of an object store, and all workers see it."""
    summary = on_ray(f"local://{many}", f"local://{out}", weights)
    assert summary == Summary(done=PHOTOS)
    assert (out / "many" / "000.png.xmp").exists()
    assert on_ray(f"local://{many}", f"local://{out}", weights) == Summary(unchanged=PHOTOS)
    assert not (out / ".oldrestore" / "lock.json").exists()


def test_the_command_takes_a_cluster(
    ray: Any, scans: Path, out: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(scans), str(out), "--weights", str(weights), "--device", "cpu"]
    assert run_command([*command, "--engine", "ray", "--workers", "1"]) == 0
    assert "3 restored" in capsys.readouterr().err
    shutil.rmtree(out)


def test_a_cluster_that_is_not_there_is_named(
    scans: Path,
    out: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason='Ray is not installed (pip install "oldrestore[ray]")')
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    command = ["batch", str(scans), str(out), "--weights", str(weights), "--engine", "ray"]
    assert run_command([*command, "--address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
