"""Worker: one photo of a batch from its file to its results, on any machine.

Hashing, and reading and writing of small photos, run beside the networks of other photos; the
networks themselves run in a slot, of which there are as many as the cores or the GPU can serve.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import platform
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
import torch

import oldrestore
from oldrestore.batch.job import AUTO, Job, Terms
from oldrestore.batch.manifest import now
from oldrestore.batch.maps import is_map, map_writer, suffix_of, write_preview
from oldrestore.batch.pages import PageWriter, RestoredPage, Share, record_of, restore_page
from oldrestore.batch.sidecar import describe, sidecar_names, write_json, write_xmp
from oldrestore.batch.storage import (
    OWN,
    Folder,
    NewFiles,
    Stamp,
    entry,
    open_folder,
    sha256_of,
    write_file,
)
from oldrestore.files import LatePage, mask_page, open_masks
from oldrestore.photo_file import (
    Page,
    PhotoError,
    PhotoFile,
    PhotoWriter,
    create_photo,
    open_photo,
)
from oldrestore.pipeline import Restorer

# of a place for results that takes no more: the next photo would fare no better
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# what a photo may fail of; RuntimeError is torch's, of one that does not fit into memory
FAILURES = (ValueError, TypeError, OSError, MemoryError, RuntimeError)
MOST_CAUSES = 10  # of an error that are looked at
# states of an outcome
DONE, UNCHANGED, FAILED, STOP = "done", "unchanged", "failed", "stop"

SIDECARS = {"sidecar": write_json, "xmp": write_xmp}

Entries: TypeAlias = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One photo to restore.

    name: below the folder of photos. target: of the result, below the folder of results.
    mask: below the folder of masks.
    known_inputs, known_outputs: of the manifest, if they may still hold.
    """

    name: str
    target: str
    mask: str | None = None
    known_inputs: Entries = field(default_factory=dict)
    known_outputs: Entries = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Task":
        return Task(**json.loads(text))


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    state: "done"; "unchanged": by their content the results still hold; "failed"; or "stop": the
        results cannot be written at all, and nothing speaks against the photo.
    inputs, outputs, record, error: as in the manifest.
    """

    name: str
    state: str
    inputs: Entries = field(default_factory=dict)
    outputs: Entries = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Outcome":
        return Outcome(**json.loads(text))


class Worker:
    """Works on photos of one job; may be called from several threads.

    Args:
        restorer: with the job's weights.
        job, terms: what is asked for.
        share: of what there is, for each thread that calls.
    """

    def __init__(
        self,
        restorer: Restorer,
        job: Job,
        terms: Terms,
        share: Share,
    ) -> None:
        self._restorer = restorer
        self._job = job
        self._terms = terms
        self._share = share
        self._weights = {"name": job.weights_path.name, "sha256": terms.weights_sha256}
        self._source = open_folder(job.source)
        self._output = open_folder(job.output)
        self._maps = None if job.maps is None else open_folder(job.maps)
        self._masks = None if job.mask in (None, AUTO) else open_folder(str(job.mask))

    def __call__(self, task: Task) -> Outcome:
        """Restore a photo and write all that is made of it; never raises for a bad photo."""
        inputs: Entries = {}
        try:
            return self._work(task, inputs)
        except FAILURES as error:
            text = str(error) or type(error).__name__
            title = self._source.title(task.name)
            if is_full(error):
                return Outcome(task.name, STOP, error=text)
            error_text = text if title in text else f"{title}: {text}"
            return Outcome(task.name, FAILED, inputs=inputs, error=error_text)

    def _work(self, task: Task, inputs: Entries) -> Outcome:
        files = self._files(task)
        with ExitStack() as stack:
            paths: dict[str, Path] = {}
            for kind, (folder, name) in files.items():
                # noted before it is read: a file that fails is tried again when it was touched
                inputs[kind] = entry(name, _stamp(folder, name), "")
                paths[kind] = stack.enter_context(folder.to_read(name))
                inputs[kind]["sha256"] = sha256_of(paths[kind])
            held = self._still_hold(task, inputs)
            if held is not None:
                return Outcome(task.name, UNCHANGED, inputs, held)
            photo = stack.enter_context(open_photo(paths["photo"]))
            masks = None
            if "mask" in paths:
                masks = stack.enter_context(open_masks(paths["mask"], photo))
            new = stack.enter_context(NewFiles())
            path = new.path("photo", self._output, task.target)
            with create_photo(path, photo) as written:
                pages = [
                    self._restore_page(page, number, task, masks, written, new)
                    for number, page in enumerate(photo.pages(), start=1)
                ]
            for kind, (folder, name) in files.items():
                stamp = _stamp(folder, name)
                if entry(name, stamp, inputs[kind]["sha256"]) != inputs[kind]:
                    raise PhotoError(f"{folder.title(name)}: changed while it was read; run again")
            outputs: Entries = new.finish()
        preview = functools.partial(write_preview, pages[0].strip)
        write_file(self._output, preview_name(task.name), preview)
        record = self._record(pages)
        if self._job.sidecar:
            self._write_sidecars(task, inputs, outputs, record)
        return Outcome(task.name, DONE, inputs, outputs, record)

    def _files(self, task: Task) -> dict[str, tuple[Folder, str]]:
        """What is read for a photo, by kind."""
        files: dict[str, tuple[Folder, str]] = {"photo": (self._source, task.name)}
        if self._masks is not None:
            if task.mask is None:
                raise FileNotFoundError(f"no mask of its name in {self._masks.url}")
            files["mask"] = (self._masks, task.mask)
        return files

    def _still_hold(self, task: Task, inputs: Entries) -> Entries | None:
        """Fresh entries of the results, if photo and results have the content that is known."""
        if not task.known_outputs or _contents(task.known_inputs) != _contents(inputs):
            return None
        fresh: Entries = {}
        for kind, known in task.known_outputs.items():
            folder = self._folder_of(kind)
            stamp = folder.stamp(known["name"])
            if stamp is None or stamp.size != known["size"]:
                return None
            with folder.to_read(known["name"]) as path:
                if sha256_of(path) != known["sha256"]:
                    return None
            fresh[kind] = entry(known["name"], stamp, known["sha256"])
        return fresh

    def _folder_of(self, kind: str) -> Folder:
        if is_map(kind):
            assert self._maps is not None
            return self._maps
        return self._output

    def _restore_page(
        self,
        page: Page,
        number: int,
        task: Task,
        masks: PhotoFile | None,
        written: PhotoWriter,
        new: NewFiles,
    ) -> RestoredPage:
        """A page, counted from 1, into the photo that is written and the files of its maps."""
        mask = self._job.mask if masks is None else mask_page(masks, number)
        with ExitStack() as opened:
            writers: dict[str, PageWriter] = {}
            for kind in self._job.maps_made:
                kept = kind if number == 1 else f"{kind}-{number}"
                of_page = task.target if number == 1 else f"{task.target}.page-{number}"
                name = f"{of_page}.{kind}{suffix_of(page.size)}"
                path = new.path(kept, self._folder_of(kind), name)
                writers[kind] = map_writer(opened, path, page.size)
            writers["photo"] = opened.enter_context(LatePage(written, page))
            wishes = self._job.wishes()
            return restore_page(self._restorer, page, mask, writers, self._share, wishes)

    def _record(self, pages: list[RestoredPage]) -> dict[str, Any]:
        """What was done, for the manifest and the sidecar."""
        restorer = self._restorer
        return {
            **record_of([page.record for page in pages]),
            "device": str(restorer.device),
            "dtype": str(restorer.dtype).removeprefix("torch."),
        }

    def _write_sidecars(
        self, task: Task, inputs: Entries, outputs: Entries, record: dict[str, Any]
    ) -> None:
        """Last, as they speak of the others; adds them to the outputs."""
        about = describe(
            inputs=inputs,
            outputs=outputs,
            record=record,
            options=self._terms.options,
            weights=self._weights,
            software=versions(),
            finished=now(),
        )
        for kind, name in sidecar_names(task.target).items():
            write = functools.partial(SIDECARS[kind], about)
            outputs[kind] = write_file(self._output, name, write)


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that its disk is full or read-only, or was caused by one that does."""
    for _ in range(MOST_CAUSES):
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = None if error is None else error.__cause__ or error.__context__
    return False


def preview_name(name: str) -> str:
    """Of the strip that the report shows of a photo, below the folder of results."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{OWN}/previews/{digest[:2]}/{digest[2:34]}.jpg"  # a folder holds 1/256 of them


def versions() -> dict[str, str]:
    """Of what the pixels depend on."""
    return {
        "oldrestore": oldrestore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def _stamp(folder: Folder, name: str) -> Stamp:
    stamp = folder.stamp(name)
    if stamp is None:
        raise PhotoError(f"{folder.title(name)}: is gone")
    return stamp


def _contents(entries: Entries) -> dict[str, str]:
    return {kind: about["sha256"] for kind, about in entries.items()}
