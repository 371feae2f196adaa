"""Worker: one photo of a batch from its file to its results, on any machine.

Reading, hashing and writing run beside the networks of other photos; the networks themselves run
in a slot, of which there are as many as the cores or the GPU can serve.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
import torch

import oldrestore
from oldrestore.batch.job import AUTO, Job, Terms
from oldrestore.batch.manifest import now
from oldrestore.batch.maps import KINDS, make_maps, write_map, write_preview
from oldrestore.batch.sidecar import describe, sidecar_names, write_json, write_xmp
from oldrestore.batch.storage import (
    OWN,
    Folder,
    Stamp,
    entry,
    open_folder,
    sha256_of,
    write_file,
)
from oldrestore.image import Photo, decode, decode_mask
from oldrestore.photo_file import Array, Page, PhotoError, open_photo, save
from oldrestore.pipeline import Restorer
from oldrestore.restoration import Restoration

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
        slot: is held while the networks run.
        threads: of the networks on a CPU, in each thread that calls.
    """

    def __init__(
        self,
        restorer: Restorer,
        job: Job,
        terms: Terms,
        *,
        slot: AbstractContextManager[Any],
        threads: int,
    ) -> None:
        self._restorer = restorer
        self._job = job
        self._terms = terms
        self._slot = slot
        self._threads = threads
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
            page, pixels = _read_page(paths["photo"])
            before = decode(pixels)
            mask = decode_mask(paths["mask"], before) if "mask" in paths else self._job.mask
        restoration, probability = self._restore(before, mask)
        for kind, (folder, name) in files.items():
            stamp = _stamp(folder, name)
            if entry(name, stamp, inputs[kind]["sha256"]) != inputs[kind]:
                raise PhotoError(f"{folder.title(name)}: changed while it was read; run again")
        results = _Results(task, inputs, page, before, restoration, probability)
        record = results.record(self._restorer)
        return Outcome(task.name, DONE, inputs, self._write(results, record), record)

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
        if kind in KINDS:
            assert self._maps is not None
            return self._maps
        return self._output

    def _restore(self, before: Photo, mask: Any) -> tuple[Restoration, torch.Tensor | None]:
        """The networks, in a slot; also the detector's probability, where maps are wanted."""
        torch.set_num_threads(self._threads)
        restorer, probability = self._restorer, None
        with self._slot:
            if isinstance(mask, str) and self._job.maps is not None:
                probability = restorer.damage_probability(before.image)
                mask = restorer.mark_damage(probability, self._terms.options["threshold"])
            return restorer.restore(before, mask=mask, **self._job.wishes()), probability

    def _write(self, results: "_Results", record: dict[str, Any]) -> Entries:
        """Write all results; the sidecars last, as they speak of the others."""
        outputs: Entries = {}

        def write(kind: str, name: str, how: Callable[[Path], object]) -> None:
            outputs[kind] = write_file(self._folder_of(kind), name, how)

        task, image, maps = results.task, results.restoration.image, results.maps
        write("photo", task.target, lambda path: save(image, path, like=results.page))
        if self._maps is not None:
            for kind, values in maps.present().items():
                name = f"{task.target}.{kind}.png"
                write(kind, name, functools.partial(write_map, values))
        preview = functools.partial(write_preview, results.before, results.after, maps)
        write_file(self._output, preview_name(task.name), preview)
        if self._job.sidecar:
            about = describe(
                inputs=results.inputs,
                outputs=outputs,
                record=record,
                options=self._terms.options,
                weights=self._weights,
                software=versions(),
                finished=now(),
            )
            for kind, name in sidecar_names(task.target).items():
                write(kind, name, functools.partial(SIDECARS[kind], about))
        return outputs


class _Results:
    """A restored photo before it is written."""

    def __init__(
        self,
        task: Task,
        inputs: Entries,
        page: Page,
        before: Photo,
        restoration: Restoration,
        probability: torch.Tensor | None,
    ) -> None:
        self.task = task
        self.inputs = inputs
        self.page = page
        self.before = before
        self.restoration = restoration
        self.after = decode(restoration.image)
        mask = None
        if restoration.mask is not None:
            mask = decode_mask(restoration.mask, self.after)
        self.maps = make_maps(before, self.after, mask, probability)

    def record(self, restorer: Restorer) -> dict[str, Any]:
        """What was done, for the manifest and the sidecar."""
        height, width = self.before.size
        mask = self.maps.mask
        return {
            "width": width,
            "height": height,
            "damaged": None if mask is None else _share(mask > 0),
            "changed": _share(self.maps.change > 0),
            "mean_change": round(self.maps.mean_change, 6),
            "tone": [dataclasses.asdict(curve) for curve in self.restoration.tone],
            **({"faces": self._faces()} if restorer.faces is not None else {}),
            "seconds": round(self.restoration.seconds, 3),
            "device": str(restorer.device),
            "dtype": str(restorer.dtype).removeprefix("torch."),
        }

    def _faces(self) -> list[dict[str, Any]]:
        return [face.to_json() for face in self.restoration.faces]


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


def _read_page(path: Path) -> tuple[Page, Array]:
    """A photo's page and its pixels; a file of more is refused: a batch would lose the others."""
    with open_photo(path) as photo:
        if photo.page_count > 1:
            raise PhotoError(
                f"has {photo.page_count} pages, of which a batch would lose all but one; restore "
                "it with `oldrestore restore`, or split it"
            )
        (page,) = photo.pages()
        return page, page.read_all()


def _stamp(folder: Folder, name: str) -> Stamp:
    stamp = folder.stamp(name)
    if stamp is None:
        raise PhotoError(f"{folder.title(name)}: is gone")
    return stamp


def _contents(entries: Entries) -> dict[str, str]:
    return {kind: about["sha256"] for kind, about in entries.items()}


def _share(flags: torch.Tensor) -> float:
    return round(float(flags.float().mean()), 6)
