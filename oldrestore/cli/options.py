"""Options that the commands for photos share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter

from oldrestore.face.stage import Faces
from oldrestore.jobs import UsageError
from oldrestore.pipeline import Restorer
from oldrestore.restraint import OutsideMask

Flag = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class Engine:
    """What runs the networks.

    Parameters
    ----------
    weights:
        Weights file; the one shipped if none is given.
    device:
        "cpu", "cuda", "cuda:1"; "auto" takes the GPU if there is one.
    backend:
        Of the operations ("oldrestore info" lists them); the fastest if none is given.
    threads:
        Of the networks on a CPU; as PyTorch chooses if not given.
    """

    weights: Path | None = None
    device: str = "auto"
    backend: str | None = None
    threads: int | None = None

    def load(self, faces: Faces = "off", face_weights: Path | None = None) -> Restorer:
        """Set the threads of this process and read the weights."""
        self.check()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Restorer.load(
            self.weights,
            self.device,
            backend=self.backend,
            faces=faces,
            face_weights=face_weights,
        )

    def check(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads: expected 1 or more, got {self.threads}")


@Parameter(name="*")
@dataclass(frozen=True)
class Wishes:
    """How a photo is restored.

    Parameters
    ----------
    mask:
        Your own mask, white = damaged: a file, or a folder with masks named as the photos.
    no_mask:
        Look for no scratches; mend only blur, noise and fading.
    threshold:
        Of the scratch detector, 0 (all is damage) to 1 (nothing is).
    denoise:
        How much of the mending outside holes is taken: 0 (the photo's own grain and noise stay) to
        1 (all of it); if not given, as much as patches of the photo say it needs.
    outside_mask:
        "keep" changes nothing but the holes, and gives them the grain around them.
    strength:
        0 (the photo as it is) to 1 (all of the restoration).
    tone:
        How much of a fading found is undone, 0 to 1; 0 keeps the colours.
    """

    mask: str | None = None
    no_mask: Flag = False
    threshold: float | None = None
    denoise: float | None = None
    outside_mask: OutsideMask = "restore"
    strength: float = 1.0
    tone: float | None = None

    def check(self) -> None:
        """Raise UsageError if two of them contradict each other."""
        if self.no_mask and self.mask:
            raise UsageError("--no-mask: expected neither --mask nor --save-mask with it")
        if self.no_mask and self.outside_mask == "keep":
            raise UsageError(
                "--outside-mask keep: expected no --no-mask, which leaves no holes to fill"
            )

    def options(self) -> dict[str, Any]:
        """What ``Restorer.restore`` takes, but the mask."""
        names = ("threshold", "denoise", "outside_mask", "strength", "tone")
        return {name: getattr(self, name) for name in names}


@Parameter(name="*")
@dataclass(frozen=True)
class FaceWishes:
    """What is done with faces.

    Parameters
    ----------
    faces:
        "on" finds faces and sharpens them, and says so if something is missing for that; "off";
        "auto": on where face weights are given or shipped and the extra "faces" is installed.
    face_weights:
        Weights file of a face network, see "oldrestore convert --variant face".
    """

    faces: Faces = "auto"
    face_weights: Path | None = None
