"""``oldrestore batch``: a whole collection, from one folder into another."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.progress import Progress, TaskID

from oldrestore.batch.engines import Engine as BatchEngine
from oldrestore.batch.engines import Runtime, Threads
from oldrestore.batch.job import AUTO, Job
from oldrestore.batch.plan import LEFT_OUT, Plan
from oldrestore.batch.runner import Summary, count_reasons, dry_run, run_batch
from oldrestore.batch.work import Outcome
from oldrestore.cli.options import Engine, FaceWishes, Flag, Json, Wishes
from oldrestore.cli.terminal import DONE, FAILED, INTERRUPTED, STOPPED, progress_bar, say
from oldrestore.jobs import UsageError
from oldrestore.tiling.memory import read_memory

MOST_LISTED = 1000  # errors; the manifest and the report have all


def batch(
    source: Annotated[str, Parameter(name="IN")],
    output: Annotated[str, Parameter(name="OUT")],
    /,
    *,
    sidecar: bool = True,
    save_maps: str | None = None,
    retry_failed: Flag = False,
    dry_run_only: Annotated[bool, Parameter(name="--dry-run", negative="")] = False,
    as_json: Json = False,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    max_memory: str | None = None,
    wishes: Wishes = Wishes(),
    people: FaceWishes = FaceWishes(),
    runtime: Engine = Engine(),
) -> int:
    """Restore all photos below IN into the same tree below OUT.

    Started again, it goes on where it was: a photo is passed over if it, the weights and the
    options are what they were. Names stay as they are; what cannot be written in its own format
    becomes PNG. Hidden files are passed over.

    Args:
        source: Folder of photos, or a URL that fsspec reaches (s3://, gs://, ...).
        output: Folder for the results, likewise. In it, .oldrestore holds the manifest.
        sidecar: Write NAME.json and NAME.xmp beside each result: what was done to the photo.
        save_maps: Folder for maps of each photo: scratch probability, mask, change.
        retry_failed: Try photos again that failed before.
        dry_run_only: Say what would be done, and do nothing.
        as_json: Print one line of JSON for each photo.
        workers: Photos in the networks at a time; with Ray, processes. If not given, one for each
            thread of the CPU, or one for each GPU.
        engine: "local": threads of this process; "ray": the machines of a Ray cluster.
        address: Of the Ray cluster; if not given, the one this machine is in, or a new one on it.
        max_memory: What all photos in work may take, on each machine, such as "8GiB"; three
            quarters of what is free if not given.
        wishes: How a photo is restored; a mask is a folder here.
        people: What is done with faces.
        runtime: What runs the networks.
    """
    wishes.check()
    runtime.check()
    read_memory(max_memory, "--max-memory")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: expected 1 or more, got {workers}")
    if address is not None and engine != "ray":
        raise UsageError("--address: expected --engine ray with it")
    job = Job(
        source=source,
        output=output,
        weights=None if runtime.weights is None else str(runtime.weights),
        mask=None if wishes.no_mask else wishes.mask or AUTO,
        sidecar=sidecar,
        maps=save_maps,
        faces=people.faces,
        face_weights=None if people.face_weights is None else str(people.face_weights),
        **wishes.options(),
    )
    if dry_run_only:
        return _show(dry_run(job, retry_failed=retry_failed), as_json=as_json)
    device = None if runtime.device == "auto" else runtime.device
    resources = Runtime(device, runtime.backend, workers, runtime.threads, max_memory)
    chosen = _engine(engine, resources, address)
    return _run(job, chosen, retry_failed=retry_failed, as_json=as_json)


def _engine(name: str, runtime: Runtime, address: str | None) -> BatchEngine:
    if name == "local":
        return Threads(runtime)
    from oldrestore.batch.cluster import Cluster

    return Cluster(runtime, address)


def _run(job: Job, engine: BatchEngine, *, retry_failed: bool, as_json: bool) -> int:
    with progress_bar(shows_rate=True) as progress, _stop_asked(progress) as stop:
        bar = progress.add_task("looking for photos", total=None)
        summary = run_batch(
            job,
            engine,
            retry_failed=retry_failed,
            should_stop=stop.is_set,
            on_plan=lambda plan: progress.update(
                bar, total=len(plan.to_do()), description="restoring"
            ),
            on_outcome=_Teller(progress, bar, as_json=as_json),
        )
    return _tell(job, summary)


class _Teller:
    """Tells of each photo, on the bar and as JSON."""

    def __init__(self, progress: Progress, bar: TaskID, *, as_json: bool) -> None:
        self._progress = progress
        self._bar = bar
        self._as_json = as_json
        self._failed = 0

    def __call__(self, outcome: Outcome) -> None:
        self._failed += outcome.error is not None
        text = f"restoring ({self._failed} failed)" if self._failed else "restoring"
        self._progress.update(self._bar, advance=1, description=text)
        if self._as_json:
            record: dict[str, Any] = {"input": outcome.name, "state": outcome.state}
            if outcome.error is not None:
                record["error"] = outcome.error
            outputs = {kind: about["name"] for kind, about in outcome.outputs.items()}
            print(json.dumps({**record, **outcome.record, "outputs": outputs}), flush=True)


@contextmanager
def _stop_asked(progress: Progress) -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second ends the program where it is."""
    stop = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping; photos in work are finished first (again: stop now)", progress.console)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in signals] if _is_main_thread() else []
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=False):
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _tell(job: Job, summary: Summary) -> int:
    """The errors and the numbers at the end; returns the exit code."""
    for reason in list(summary.failed.values())[:MOST_LISTED]:
        say(reason)
    if len(summary.failed) > MOST_LISTED:
        say(f"and {len(summary.failed) - MOST_LISTED} more; oldrestore report lists all")
    counts = [f"{summary.done} restored", f"{summary.unchanged} unchanged"]
    counts.append(f"{len(summary.failed)} failed")
    if summary.left:
        counts.append(f"{summary.left} left")
    say(f"{job.output}: {', '.join(counts)}")
    if summary.stopped is not None:
        say(f"stopped: {summary.stopped}; the same command goes on from here")
        return STOPPED
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed else DONE


def _show(plan: Plan, *, as_json: bool) -> int:
    """What a batch would do."""
    for planned in plan.photos:
        line = {"input": planned.task.name, "output": planned.task.target, "why": planned.reason}
        if as_json:
            print(json.dumps(line))
        elif planned.reason not in LEFT_OUT:
            print(f"{_printable(planned.task.name)} -> {_printable(planned.task.target)}")
    for folder in plan.unreadable:
        say(f"{folder.path}: cannot be read: {folder.reason}")
    for reason, count in count_reasons(plan).items():
        say(f"{reason}: {count}")
    return FAILED if plan.unreadable else DONE


def _printable(name: str) -> str:
    """A name that a terminal can show, whatever bytes are in it."""
    return name.encode("utf-8", "backslashreplace").decode()
