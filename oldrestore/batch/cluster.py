"""Engine of many machines: Ray Data over a pool of actors, each of which loads the weights once.

The manifest stays with the process that started the batch; workers read photos and write results
by themselves and send back outcomes alone. A worker that dies is replaced by Ray and its photos are
restored anew; a photo that several workers died of is reported as failed.
"""

import dataclasses
import logging
import os
import socket
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from oldrestore.batch.engines import Runtime, try_wishes
from oldrestore.batch.job import Job, Terms
from oldrestore.batch.storage import sha256_of
from oldrestore.batch.work import FAILED, Outcome, Task, Worker
from oldrestore.face.stage import face_weights_of
from oldrestore.jobs import UsageError
from oldrestore.pipeline import Restorer

if TYPE_CHECKING:
    import ray

SMALLEST_BLOCK = 4  # photos that a worker takes at a time, and that are lost with it
LARGEST_BLOCK = 64
MOST_BLOCKS = 10_000  # of a batch: the scheduler's memory grows with them
RETRIES = 2  # of a block whose worker died, before its photos are tried one by one
ANSWER_SECONDS = 10  # for a cluster to take a connection
OVERLAP = 2  # photos in work in an actor: one in the networks, one read or written

Columns = dict[str, "np.ndarray[Any, Any]"]


class Cluster:
    """Engine on a Ray cluster.

    Args:
        runtime: of each actor; ``slots`` is the number of actors, ``threads`` those of one actor's
            networks on a CPU (1 if None).
        address: of the cluster, see ``ray.init``; None: that of this machine, or a new one on it.

    Raises:
        UsageError: Ray is not installed, or no such cluster answers.
    """

    takes_all = True

    def __init__(self, runtime: Runtime, address: str | None = None) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            message = '--engine ray: expected Ray; install it with pip install "oldrestore[ray]"'
            raise UsageError(message) from error
        self._runtime = runtime
        self._job: Job | None = None
        self._terms: Terms | None = None
        self._weights: ray.ObjectRef[bytes] | None = None
        if not ray.is_initialized():
            try:
                _check_answers(address)
                # a cluster of our own tells nobody that it is there
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray.init(
                    address=address,
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise UsageError(f"--address: no Ray cluster answers at {address}") from error

    def start(self, job: Job, terms: Terms) -> None:
        import ray

        restorer = Restorer.load(job.weights, "cpu", backend=self._runtime.backend, faces="off")
        try_wishes(restorer, job)
        self._job, self._terms = job, terms
        # machines of a cluster need not share a disk
        self._weights = ray.put(job.weights_path.read_bytes())
        faces = face_weights_of(job.faces, job.face_weights)
        self._face_weights = None if faces is None else ray.put(faces.read_bytes())

    def run(self, tasks: Iterable[Task], count: int) -> Iterator[Outcome]:
        """All tasks are taken at once; outcomes come in blocks."""
        waiting = {task.name: task for task in tasks}
        for size in (_block_size(count), 1):
            if not waiting:
                return
            for outcome in self._pass(list(waiting.values()), size):
                del waiting[outcome.name]
                yield outcome
        for name in waiting:
            text = f"{name}: the worker died each time it was at work on it; is memory short?"
            yield Outcome(name, FAILED, error=text)

    def _pass(self, tasks: list[Task], block: int) -> Iterator[Outcome]:
        """Those of blocks whose worker died each time are left out."""
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        threads = self._runtime.threads or 1
        gpus = self._gpus()
        count = min(self._actors(threads, gpus), len(tasks))
        items = [{"task": task.to_json()} for task in tasks]
        photos = ray.data.from_items(items, override_num_blocks=-(-len(items) // block))
        with warnings.catch_warnings():
            # nothing else bounds the retries of a block; the extra names the releases that have it
            warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
            outcomes = photos.map_batches(
                RestoringActor,
                fn_constructor_args=(
                    self._job,
                    self._terms,
                    (self._weights, self._face_weights),
                    self._runtime,
                    threads,
                    _neighbours(count, threads, gpus),
                ),
                batch_size=None,  # a block as it is
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
                num_cpus=0 if gpus else threads,
                num_gpus=gpus,
                ray_remote_args_fn=_remote_args,
            )
        for row in outcomes.iter_rows():
            yield Outcome.from_json(row["outcome"])

    def _gpus(self) -> float:
        """GPUs of an actor: 1 where the cluster has some and the CPU was not asked for."""
        device = self._runtime.device
        if device is not None:
            return 0 if device == "cpu" else 1
        return 1 if _resources().get("GPU", 0) >= 1 else 0

    def _actors(self, threads: int, gpus: float) -> int:
        if self._runtime.slots is not None:
            return self._runtime.slots
        resources = _resources()
        if gpus:
            return max(1, int(resources.get("GPU", 1)))
        return max(1, int(resources.get("CPU", 1)) // threads)


class RestoringActor:
    """What runs in an actor: the weights are loaded once, then blocks of tasks come.

    Args:
        neighbours: actors that share its machine, itself included; see ``Worker`` for the others.
    """

    def __init__(
        self,
        job: Job,
        terms: Terms,
        weights: "tuple[ray.ObjectRef[bytes], ray.ObjectRef[bytes] | None]",
        runtime: Runtime,
        threads: int,
        neighbours: int,
    ) -> None:
        import ray

        with TemporaryDirectory() as folder:
            path = Path(folder) / job.weights_path.name
            path.write_bytes(ray.get(weights[0]))
            assert sha256_of(path) == terms.weights_sha256
            faces = None
            if weights[1] is not None:
                faces = Path(folder) / "faces"
                faces.write_bytes(ray.get(weights[1]))
            restorer = Restorer.load(
                path,
                runtime.device,
                backend=runtime.backend,
                faces="off" if faces is None else "on",
                face_weights=faces,
            )
        share = runtime.share(restorer.device, 1, threads)
        share = dataclasses.replace(share, max_memory=share.max_memory // neighbours)
        self._worker = Worker(restorer, job, terms, share)
        self._pool = ThreadPoolExecutor(OVERLAP)

    def __call__(self, batch: Columns) -> Columns:
        tasks = [Task.from_json(str(text)) for text in batch["task"]]
        outcomes = [outcome.to_json() for outcome in self._pool.map(self._worker, tasks)]
        return {"outcome": np.array(outcomes, dtype=object)}


def _check_answers(address: str | None) -> None:
    """Raise OSError if nothing listens at ``host:port``: Ray itself would wait for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _resources() -> dict[str, float]:
    """What all machines of the cluster have together, by kind."""
    import ray

    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # Ray's


def _neighbours(actors: int, threads: int, gpus: float) -> int:
    """How many of the actors may be on one machine, at most."""
    import ray

    kind, each = ("GPU", gpus) if gpus else ("CPU", threads)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most = max((int(resources.get(kind, 0) // each) for resources in alive), default=1)
    return max(1, min(actors, most))


def _remote_args() -> dict[str, Any]:
    """A worker that died is started again; a block that it died of is not tried for ever."""
    return {"max_restarts": -1, "max_task_retries": RETRIES}


def _block_size(count: int) -> int:
    """Photos in a block: few, so that little is lost, but not too many blocks."""
    return min(max(SMALLEST_BLOCK, -(-count // MOST_BLOCKS)), LARGEST_BLOCK)
