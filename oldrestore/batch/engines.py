"""Engines: what runs the tasks of a batch. This one: threads of this process.

The hot parts (networks, decoders, encoders, hashes) let other threads run, so threads keep all
cores busy with one copy of the weights; and when the process is killed, all of it is gone at once
and nothing goes on writing.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from oldrestore.batch.job import AUTO, Job, Terms
from oldrestore.batch.pages import Share
from oldrestore.batch.work import Outcome, Task, Worker
from oldrestore.pipeline import Restorer
from oldrestore.tiling.plan import allowed_memory

MOST_EXTRA = 4  # photos that are read or written beside those in the networks, at most
SMALLEST_PX = 16  # side of the grey picture that tries the job's wishes


class Engine(Protocol):
    """Runs tasks in any order; each gives one outcome.

    takes_all: whether all tasks are taken before the first is begun; else one only when it is.
    """

    takes_all: bool

    def start(self, job: Job, terms: Terms) -> None:
        """Make ready.

        Raises:
            ValueError, OSError: the job cannot be done with its weights, or on this device.
        """

    def run(self, tasks: Iterable[Task], count: int) -> Iterator[Outcome]:
        """Yields outcomes as they come; ``count``: of the tasks, at most."""


@dataclass(frozen=True)
class Runtime:
    """What runs the networks in one process; see ``Restorer``.

    slots: photos that are in the networks at a time; None: one for each thread on a CPU, one on a
        GPU.
    threads: of all slots together, on a CPU; None: as many as PyTorch chooses.
    max_memory: of all slots together, such as "2GiB"; None: three quarters of what is free.
    """

    device: str | None = None
    backend: str | None = None
    slots: int | None = None
    threads: int | None = None
    max_memory: str | None = None

    def load(self, job: Job) -> Restorer:
        return Restorer.load(
            job.weights,
            self.device,
            backend=self.backend,
            faces=job.faces,
            face_weights=job.face_weights,
        )

    def slots_on(self, device: torch.device) -> int:
        if self.slots is not None:
            return self.slots
        return self.all_threads() if device.type == "cpu" else 1

    def share(self, device: torch.device, slots: int, threads: int) -> Share:
        """Of each of so many slots on one machine."""
        memory = allowed_memory(self.max_memory, device) // slots
        return Share(threading.BoundedSemaphore(slots), threads, memory)

    def all_threads(self) -> int:
        return self.threads or torch.get_num_threads()


class Threads:
    """Engine of one process.

    Args:
        runtime: device, slots and threads.
    """

    takes_all = False

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._started: tuple[Restorer, Job, Terms] | None = None

    def start(self, job: Job, terms: Terms) -> None:
        restorer = self._runtime.load(job)
        try_wishes(restorer, job)
        self._started = restorer, job, terms

    def run(self, tasks: Iterable[Task], count: int) -> Iterator[Outcome]:
        assert self._started is not None
        restorer, job, terms = self._started
        # few photos get more threads each
        slots = max(1, min(self._runtime.slots_on(restorer.device), count))
        threads = max(1, self._runtime.all_threads() // slots)
        worker = Worker(restorer, job, terms, self._runtime.share(restorer.device, slots, threads))
        return run_in_threads(worker, tasks, slots + min(slots, MOST_EXTRA))


def run_in_threads(worker: Worker, tasks: Iterable[Task], count: int) -> Iterator[Outcome]:
    """Call ``worker`` from ``count`` threads; at most as many tasks are in work.

    Raises:
        Exception: what a worker raised, which only a bug can make it do.
    """
    waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    finished: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def serve() -> None:
        while (task := waiting.get()) is not None:
            try:
                finished.put(worker(task))
            except BaseException as error:  # raised again in the caller's thread
                finished.put(error)

    # daemons: a second Ctrl-C does not wait for a large photo
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    remaining = iter(tasks)
    in_work = 0
    try:
        while True:
            while in_work < count and (task := next(remaining, None)) is not None:
                waiting.put(task)
                in_work += 1
            if in_work == 0:
                return
            outcome = finished.get()
            in_work -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        for _ in threads:
            waiting.put(None)


def try_wishes(restorer: Restorer, job: Job) -> None:
    """Restore a tiny grey picture, so that what these weights cannot do is told before all photos.

    Raises:
        ValueError: they have no detector, fill no holes, or undo no fading, but are asked to.
    """
    grey = np.full((SMALLEST_PX, SMALLEST_PX), 128, np.uint8)
    mask = job.mask if job.mask in (AUTO, None) else np.zeros_like(grey)
    if job.maps is not None and job.mask == AUTO and restorer.detector is None:
        raise ValueError("mask: these weights have no scratch detector; give masks, or --no-mask")
    restorer.restore(grey, mask=mask, **job.wishes())
