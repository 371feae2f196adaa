"""Plan: which photos of a collection are still to be restored, and what each result is called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from oldrestore.batch.job import AUTO, Job, excluded_folders, mask_names, stem_of
from oldrestore.batch.manifest import Manifest, Row
from oldrestore.batch.maps import base_of, is_map
from oldrestore.batch.storage import Folder, Stamp, open_folder
from oldrestore.batch.work import DONE, FAILED, Task
from oldrestore.jobs import UnreadableFolder
from oldrestore.photo_file import WRITE_FORMATS, PhotoError

MOST_DEATHS = 5  # of processes at work on one photo; then it is left alone
# reasons to restore a photo, or not to
NEW = "new"
TOUCHED = "touched"  # the content decides
CHANGED = "changed"
OTHER_TERMS = "other weights or options"
INCOMPLETE = "results missing"
INTERRUPTED = "interrupted"
RETRIED = "failed before"
UNCHANGED = "unchanged"  # not to
FAILED_BEFORE = "failed before, not tried again"  # not to
LEFT_OUT = (UNCHANGED, FAILED_BEFORE)


@dataclass(frozen=True)
class Planned:
    """A photo, what is to be done, and why (or why not: ``LEFT_OUT``)."""

    task: Task
    reason: str
    row: Row | None

    @property
    def deaths(self) -> int:
        return 0 if self.row is None else self.row.deaths


@dataclass(frozen=True)
class Plan:
    """photos: in the order of work. unreadable: folders that could not be looked into."""

    photos: list[Planned]
    unreadable: list[UnreadableFolder]

    def to_do(self) -> list[Planned]:
        return [planned for planned in self.photos if planned.reason not in LEFT_OUT]


def make_plan(job: Job, key: str, manifest: Manifest | None, *, retry_failed: bool) -> Plan:
    """Walk the folder of photos and compare what is there with what is known.

    Photos that a process has died of come last, so that they keep none of the others waiting.

    Args:
        job: what is asked for; ``key`` of its terms.
        manifest: None: nothing was made yet.
        retry_failed: whether photos that failed are tried again though nothing changed.
    """
    source, unreadable, names = open_folder(job.source), [], []
    for found in source.walk(excluded_folders(job)):
        if isinstance(found, UnreadableFolder):
            unreadable.append(found)
        else:
            names.append(found)
    masks = mask_names(job)
    compare = _Comparison(job, key, source, retry_failed=retry_failed)
    photos = []
    for name, target in targets_of(names).items():
        row = None if manifest is None else manifest.row(name)
        photos.append(compare(Task(name, target, masks.get(stem_of(name))), row))
    photos.sort(key=lambda planned: planned.deaths)  # stable: else by name
    return Plan(photos, unreadable)


def targets_of(names: Iterable[str]) -> dict[str, str]:
    """Names of the results: those of the photos, with ``.png`` for a format that we cannot write.

    Where that name is another photo's, ``.png`` is added to the whole: ``a.gif`` beside ``a.png``
    becomes ``a.gif.png``.
    """
    names = list(names)
    suffixes = {name: PurePosixPath(name).suffix.lower() for name in names}
    taken = {name for name in names if suffixes[name] in WRITE_FORMATS}
    targets = {}
    for name in names:
        target = name
        if suffixes[name] not in WRITE_FORMATS:
            target = f"{stem_of(name)}.png"
            while target in taken:
                target = f"{name if target == f'{stem_of(name)}.png' else target}.png"
            taken.add(target)
        targets[name] = target
    return targets


class _Comparison:
    """Compares photos with their rows."""

    def __init__(self, job: Job, key: str, source: Folder, *, retry_failed: bool) -> None:
        self._job = job
        self._key = key
        self._retry_failed = retry_failed
        self._source = source
        self._output = open_folder(job.output)
        self._maps = None if job.maps is None else open_folder(job.maps)
        self._masks = None if job.mask in (None, AUTO) else open_folder(str(job.mask))

    def __call__(self, task: Task, row: Row | None) -> Planned:
        reason = NEW if row is None else self._reason(task, row)
        if reason == TOUCHED:
            assert row is not None
            task = Task(task.name, task.target, task.mask, row.inputs, row.outputs)
        return Planned(task, reason, row)

    def _reason(self, task: Task, row: Row) -> str:
        if row.state not in (DONE, FAILED):
            gave_up = row.deaths >= MOST_DEATHS and not self._retry_failed
            return FAILED_BEFORE if gave_up else INTERRUPTED
        if row.job != self._key:
            return OTHER_TERMS
        inputs = self._inputs(task, row)
        if row.state == FAILED:
            if self._retry_failed:
                return RETRIED
            return FAILED_BEFORE if inputs == UNCHANGED else CHANGED
        if row.outputs.get("photo", {}).get("name") != task.target:
            return INCOMPLETE
        return max(inputs, self._outputs(row), key=(UNCHANGED, TOUCHED, INCOMPLETE, CHANGED).index)

    def _inputs(self, task: Task, row: Row) -> str:
        files = {"photo": (self._source, task.name)}
        if self._masks is not None and task.mask is not None:
            files["mask"] = (self._masks, task.mask)
        if row.inputs.keys() != files.keys():
            return CHANGED
        states = [
            CHANGED
            if row.inputs[kind]["name"] != name
            else _compare(row.inputs[kind], _stamp_or_none(folder, name), CHANGED)
            for kind, (folder, name) in files.items()
        ]
        return max(states, key=(UNCHANGED, TOUCHED, CHANGED).index)

    def _outputs(self, row: Row) -> str:
        if not self._job.products <= row.outputs.keys():
            return INCOMPLETE
        worst = UNCHANGED
        for kind, known in row.outputs.items():
            folder = self._maps if is_map(kind) else self._output
            if base_of(kind) not in self._job.products or folder is None:
                continue  # of an earlier batch that made more
            state = _compare(known, _stamp_or_none(folder, known["name"]), INCOMPLETE)
            worst = max(worst, state, key=(UNCHANGED, TOUCHED, INCOMPLETE).index)
        return worst


def _compare(known: Mapping[str, Any], stamp: Stamp | None, different: str) -> str:
    if stamp is None or stamp.size != known["size"]:
        return different
    return UNCHANGED if stamp.version == known["version"] else TOUCHED


def _stamp_or_none(folder: Folder, name: str) -> Stamp | None:
    """What cannot be looked at is worked on, and says then why."""
    try:
        return folder.stamp(name)
    except (OSError, PhotoError):
        return None
