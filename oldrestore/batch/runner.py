"""The batch, top to bottom: lock, manifest, plan, engine, and what is told at the end."""

import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from oldrestore.batch.engines import Engine
from oldrestore.batch.job import Job, Terms, excluded_folders, terms_of
from oldrestore.batch.lock import LocalLock, RemoteLock
from oldrestore.batch.manifest import Manifest, Row, now
from oldrestore.batch.plan import FAILED_BEFORE, UNCHANGED, Plan, Planned, make_plan
from oldrestore.batch.storage import OWN, Folder, LocalFolder, RemoteFolder, open_folder
from oldrestore.batch.work import DONE, FAILED, STOP, Outcome, Task, versions
from oldrestore.batch.work import UNCHANGED as STILL_HOLDS
from oldrestore.jobs import UsageError

MANIFEST_NAME = f"{OWN}/manifest.sqlite"
SNAPSHOT_SECONDS = 30  # between copies of the manifest beside an object store


@dataclass
class Summary:
    """What came of a batch.

    done: photos restored. unchanged: those whose results still hold.
    failed: reasons by photo or folder, of this batch and of earlier ones that were not tried again.
    left: photos that were not begun.
    stopped: why it ended early; None if it did not, or was asked to.
    interrupted: whether it was asked to.
    """

    done: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    stopped: str | None = None
    interrupted: bool = False


def dry_run(job: Job, *, retry_failed: bool = False) -> Plan:
    """What ``run_batch`` would do; writes nothing."""
    _check_source(job)
    terms = terms_of(job)
    with ExitStack() as stack:
        folder = open_folder(job.output)
        manifest = None
        if folder.stamp(MANIFEST_NAME) is not None:
            path = stack.enter_context(folder.to_read(MANIFEST_NAME))
            manifest = Manifest(path, is_read_only=True)
            stack.callback(manifest.close)
        return make_plan(job, terms.key, manifest, retry_failed=retry_failed)


def run_batch(
    job: Job,
    engine: Engine,
    *,
    retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_plan: Callable[[Plan], object] = lambda _: None,
    on_outcome: Callable[[Outcome], object] = lambda _: None,
) -> Summary:
    """Restore all photos of a folder that are not restored yet.

    Args:
        job: what is asked for.
        engine: what runs it.
        retry_failed: see ``make_plan``.
        should_stop: asked before each photo; what is in work then is finished.
        on_plan, on_outcome: told what is to be done, and of each photo.

    Raises:
        UsageError: another batch is at work on the same results, or they are of other photos.
        ValueError: no such weights, a number out of range, or a manifest that cannot be used.
        OSError: the folder of results cannot be written.
    """
    _check_source(job)
    terms = terms_of(job)
    with _opened(job) as (manifest, keep_safe):
        engine.start(job, terms)
        _note_job(manifest, job, terms)
        plan = make_plan(job, terms.key, manifest, retry_failed=retry_failed)
        on_plan(plan)
        run = _Run(
            manifest, open_folder(job.source), terms.key, plan, should_stop, on_outcome, keep_safe
        )
        return run.through(engine)


class _Run:
    """One pass over a plan, with the manifest kept true at every moment."""

    def __init__(
        self,
        manifest: Manifest,
        source: Folder,
        key: str,
        plan: Plan,
        should_stop: Callable[[], bool],
        on_outcome: Callable[[Outcome], object],
        keep_safe: Callable[[], object],
    ) -> None:
        self._manifest = manifest
        self._source = source
        self._key = key
        self._plan = plan
        self._should_stop = should_stop
        self._on_outcome = on_outcome
        self._keep_safe = keep_safe
        self._noted = 0
        self.summary = Summary()

    def through(self, engine: Engine) -> Summary:
        summary, to_do = self.summary, self._plan.to_do()
        self._note_left_out()
        try:
            for outcome in engine.run(self._begin(to_do, engine.takes_all), len(to_do)):
                self._note(outcome)
                self._on_outcome(outcome)
                self._keep_safe()
                if engine.takes_all and self._should_end():
                    break
        except sqlite3.OperationalError as error:  # its disk is full, or gone
            summary.stopped = f"{self._manifest.path}: cannot be written: {error}"
        summary.left = len(to_do) - self._noted
        summary.interrupted = summary.stopped is None and summary.left > 0
        return summary

    def _note_left_out(self) -> None:
        manifest, summary = self._manifest, self.summary
        summary.unchanged = sum(one.reason == UNCHANGED for one in self._plan.photos)
        for planned in self._plan.photos:
            if planned.reason == FAILED_BEFORE:
                summary.failed[planned.task.name] = _old_error(planned)
        manifest.forget_unreadable()
        rows = []
        for folder in self._plan.unreadable:
            error = f"{folder.path}: cannot be read: {folder.reason}"
            summary.failed[folder.path] = error
            rows.append(Row(folder.path, "unreadable", error=error))
        manifest.write_all(rows)

    def _should_end(self) -> bool:
        return self.summary.stopped is not None or self._should_stop()

    def _begin(self, to_do: list[Planned], takes_all: bool) -> Iterator[Task]:
        for planned in to_do:
            if self._should_end():
                return
            if not takes_all:
                self._manifest.start(planned.task.name)
            yield planned.task

    def _note(self, outcome: Outcome) -> None:
        summary = self.summary
        is_source_gone = outcome.state == FAILED and not self._source.exists()
        if outcome.state == STOP or is_source_gone:
            self._manifest.let_go(outcome.name)
            summary.stopped = f"{self._source.url}: is gone" if is_source_gone else outcome.error
            return
        self._noted += 1
        state = DONE if outcome.state == STILL_HOLDS else outcome.state
        record = outcome.record
        if outcome.state == STILL_HOLDS:
            known = self._manifest.row(outcome.name)
            record = {} if known is None else known.record
            summary.unchanged += 1
        elif outcome.state == DONE:
            summary.done += 1
        else:
            summary.failed[outcome.name] = str(outcome.error)
        self._manifest.write(
            Row(
                outcome.name,
                state,
                self._key,
                outcome.inputs,
                outcome.outputs,
                record,
                outcome.error,
            )
        )


def _old_error(planned: Planned) -> str:
    assert planned.row is not None
    if planned.row.state == FAILED:
        return str(planned.row.error)
    return (
        f"{planned.task.name}: {planned.deaths} times the program ended while at work on it; it "
        "may need more memory than there is"
    )


def _check_source(job: Job) -> None:
    folder = open_folder(job.source)
    if not folder.exists():
        raise UsageError(f"{job.source}: expected a folder of photos, there is none")
    if folder.url == open_folder(job.output).url:
        raise UsageError(f"{job.output}: expected another folder than that of the photos")
    if job.mask not in ("auto", None) and not open_folder(str(job.mask)).exists():
        raise UsageError(f"--mask: expected a folder of masks, {job.mask} is none")


def _note_job(manifest: Manifest, job: Job, terms: Terms) -> None:
    """Write down what is asked for; results of other photos are not replaced.

    Raises:
        UsageError: the folder holds results of another folder of photos that is still there.
    """
    source = open_folder(job.source)
    url = str(source.path.resolve()) if isinstance(source, LocalFolder) else source.url
    earlier = manifest.fact("source")
    if earlier not in (None, url) and open_folder(earlier).exists():
        raise UsageError(
            f"{job.output}: holds results of {earlier}; choose another folder for those of {url}"
        )
    maps = None if job.maps is None else open_folder(job.maps)
    manifest.keep_fact("source", url)
    manifest.keep_fact(
        "job",
        {
            "key": terms.key,
            "weights": {"name": job.weights_path.name, "sha256": terms.weights_sha256},
            "options": terms.options,
            "maps": str(maps.path.resolve()) if isinstance(maps, LocalFolder) else job.maps,
            "versions": versions(),
            "begun": now(),
        },
    )


@contextmanager
def _opened(job: Job) -> Iterator[tuple[Manifest, Callable[[], object]]]:
    """The manifest, locked, and what is to be called now and then so that it is kept safe."""
    output = open_folder(job.output)
    with ExitStack() as stack:
        if isinstance(output, LocalFolder):
            (output.path / OWN).mkdir(parents=True, exist_ok=True)
            stack.callback(LocalLock(output.path / OWN).release)
            for folder in _written(job):
                folder.clear_partial()
                stack.callback(folder.clear_partial)
            manifest = Manifest(output.path / MANIFEST_NAME)
            stack.callback(manifest.close)
            yield manifest, lambda: None
            return
        lock = RemoteLock(output)
        stack.callback(lock.release)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "manifest.sqlite"
        if output.stamp(MANIFEST_NAME) is not None:
            with output.to_read(MANIFEST_NAME) as found:
                path.write_bytes(found.read_bytes())
        manifest = Manifest(path)
        stack.callback(manifest.close)
        keeper = _Keeper(manifest, output, lock)
        stack.callback(keeper.copy)
        yield manifest, keeper


def _written(job: Job) -> list[LocalFolder]:
    """Folders of this machine that the job writes into."""
    folders = [open_folder(url) for url in excluded_folders(job)]
    return [folder for folder in folders if isinstance(folder, LocalFolder)]


class _Keeper:
    """Copies the manifest beside an object store every ``SNAPSHOT_SECONDS``."""

    def __init__(self, manifest: Manifest, output: RemoteFolder, lock: RemoteLock) -> None:
        self._manifest = manifest
        self._output = output
        self._lock = lock
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > SNAPSHOT_SECONDS:
            self.copy()

    def copy(self) -> None:
        with self._output.to_write(MANIFEST_NAME) as path:
            self._manifest.copy_to(path)
        self._lock.refresh()
        self._last = time.monotonic()


def count_reasons(plan: Plan) -> dict[str, int]:
    """How many photos there are for each reason."""
    return dict(Counter(planned.reason for planned in plan.photos))
