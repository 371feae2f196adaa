"""What a batch is asked for: where from, where to, with which weights and wishes.

A job goes to every worker as JSON; its ``key`` says whether what was made before is still what is
asked for.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oldrestore.batch.storage import open_folder, sha256_of
from oldrestore.checkpoint import read_checkpoint
from oldrestore.config import restorer_config
from oldrestore.face.stage import Faces, face_weights_of
from oldrestore.networks import DEFAULT_WEIGHTS
from oldrestore.restraint import OutsideMask, read_wishes

AUTO = "auto"  # a mask of the detector's


@dataclass(frozen=True)
class Job:
    """All that decides what is made of a photo.

    source, output: folders, paths or URLs that fsspec reaches.
    weights: file; None: the one shipped.
    mask: "auto"; None: nothing is taken for damaged; or a folder with a mask for each photo.
    threshold, denoise, outside_mask, strength, tone: see ``Restorer.restore``.
    sidecar: whether a JSON and an XMP file go beside each result.
    maps: folder for the maps of each photo; None: no maps.
    faces, face_weights: see ``Restorer.load``.
    """

    source: str
    output: str
    weights: str | None = None
    mask: str | None = AUTO
    threshold: float | None = None
    denoise: float | None = None
    outside_mask: OutsideMask = "restore"
    strength: float = 1.0
    tone: float | None = None
    sidecar: bool = True
    maps: str | None = None
    faces: Faces = "auto"
    face_weights: str | None = None

    @property
    def weights_path(self) -> Path:
        return DEFAULT_WEIGHTS if self.weights is None else Path(self.weights)

    @property
    def products(self) -> set[str]:
        """Kinds of files that are made of each photo, in the manifest's words."""
        sidecars = {"sidecar", "xmp"} if self.sidecar else set()
        return {"photo", *sidecars, *self.maps_made}

    @property
    def maps_made(self) -> tuple[str, ...]:
        """Kinds of maps that are made of each page."""
        if self.maps is None:
            return ()
        found = () if self.mask is None else ("mask",)
        return ("change", *found, *(("probability",) if self.mask == AUTO else ()))

    def wishes(self) -> dict[str, Any]:
        """The options that ``Restorer.restore`` takes."""
        names = ("threshold", "denoise", "outside_mask", "strength", "tone")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Job":
        return Job(**json.loads(text))


@dataclass(frozen=True)
class Terms:
    """A job's weights and options with every default filled in.

    weights_sha256: of the weights file.
    options: by name; of a mask its kind: "auto", "none" or "given"; of faces, if they are enhanced,
        the sha256 of their weights.
    """

    weights_sha256: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """The same key: the same weights and options. Versions and devices do not count."""
        text = json.dumps([self.weights_sha256, self.options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def terms_of(job: Job) -> Terms:
    """Read the weights' defaults and check the job's numbers against them.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they are damaged, or a number is out of its range.
    """
    path = job.weights_path
    config = restorer_config(read_checkpoint(path).config, f"{path}: config")
    wishes = dataclasses.asdict(read_wishes(config, **job.wishes()))
    mask = job.mask if job.mask == AUTO else "none" if job.mask is None else "given"
    if mask != AUTO:
        del wishes["threshold"]
    options = {**wishes, "outside_mask": job.outside_mask, "mask": mask}
    face_weights = face_weights_of(job.faces, job.face_weights)
    if face_weights is not None:  # said where there are any: batches without know of none
        options["faces"] = sha256_of(face_weights)
    return Terms(sha256_of(path), options)


def excluded_folders(job: Job) -> list[str]:
    """Where results and maps go, which hold no photos to restore."""
    return [job.output, *([job.maps] if job.maps else [])]


def mask_names(job: Job) -> dict[str, str]:
    """Masks of the job's folder by their name without suffix; empty where none was given."""
    if job.mask in (AUTO, None):
        return {}
    assert job.mask is not None
    found = (name for name in open_folder(job.mask).walk() if isinstance(name, str))
    return {stem_of(name): name for name in found}


def stem_of(name: str) -> str:
    """A name without its suffix."""
    head, dot, tail = name.rpartition(".")
    return head if dot and "/" not in tail else name
