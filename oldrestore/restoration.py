"""Restoration: what came of a photo."""

from dataclasses import dataclass
from typing import Any

from oldrestore.face.stage import FoundFace
from oldrestore.tone import AppliedTone


@dataclass(frozen=True)
class Restoration:
    """What came of a photo.

    image: the restored photo, of the kind that came in (a file gives a PIL image).
    mask: what was taken for structured damage, as ``image.encode_mask`` gives it; None if no mask
        was asked for.
    tone: one curve for each photo of the batch; empty if tone was off.
    denoise: for each, how much of the networks' change was taken outside holes; empty if nothing
        was restored.
    seconds: wall time, reading included.
    damaged: share of the pixels that was taken for damaged; None if no mask was asked for.
    faces: those found, enhanced or left alone; empty if they were not asked for.
    """

    image: Any
    mask: Any
    tone: tuple[AppliedTone, ...]
    seconds: float
    damaged: float | None = None
    faces: tuple[FoundFace, ...] = ()
    denoise: tuple[float, ...] = ()

    def faces_as_json(self) -> list[dict[str, Any]]:
        """What came of the faces, as JSON has it."""
        return [face.to_json() for face in self.faces]
