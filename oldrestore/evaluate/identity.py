"""The same person or another: dlib's face recogniser, a judge that nothing here was trained by.

Its weights come with an optional package (extra ``judges``). Only the evaluation uses it; faces are
found and restored without dlib.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oldrestore.evaluate.samples import Pixels, to_pixels
from oldrestore.face.align import TEMPLATE, Points, similarity, warp
from oldrestore.image import decode

SAME_PERSON = 0.6  # dlib's limit of the distance, right for 99.4 % of the pairs of LFW
WEIGHTS_PACKAGE = "face_recognition_models"
# an upright face in a crop with its surroundings: the template, and a quarter of its side around it
FACE_PX = 256
MARGIN_PX = 64
# where dlib's own detector has its box, in sides of the template: left, top, right, bottom; the
# median of fourteen portraits. From it the eyes' corners are found, which CenterFace does not give.
BOX = (0.145, 0.23, 0.835, 0.92)
CHIP_PX = 150
CHIP_PADDING = 0.25  # both as dlib trained the network

Descriptor = np.ndarray[Any, np.dtype[np.float64]]


class FaceRecogniser:
    """128 numbers a face, such that those of one person lie within ``SAME_PERSON`` of each other.

    The ResNet of King, dlib (2017).

    Raises:
        ModuleNotFoundError: dlib or the package of the weights is not installed.
    """

    def __init__(self) -> None:
        missing = why_no_recogniser()
        if missing is not None:
            raise ModuleNotFoundError(
                f"{missing} is needed to measure identity: pip install 'oldrestore[judges]'"
            )
        import dlib

        # not imported: the package asks for setuptools, which is no longer everywhere
        spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
        assert spec is not None
        assert spec.submodule_search_locations
        models = Path(spec.submodule_search_locations[0]) / "models"
        self._dlib = dlib
        self._landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def describe(self, pictures: Sequence[Pixels], landmarks: Points) -> list[Descriptor]:
        """One face in several pictures of it, cut out alike: as it lies in the first one.

        Args:
            pictures: (H, W, 3) of 8 bits, of one size.
            landmarks: (5, 2), ``face.detect.LANDMARKS`` of the face, in pixels.

        Returns:
            (128,) a picture.
        """
        target = TEMPLATE * FACE_PX + MARGIN_PX
        matrix, side = similarity(landmarks, target), FACE_PX + 2 * MARGIN_PX
        upright = [to_pixels(warp(decode(one).image, matrix, (side, side))[0]) for one in pictures]
        box = self._dlib.rectangle(*(round(MARGIN_PX + FACE_PX * part) for part in BOX))
        shape = self._landmarks(upright[0], box)
        chips = [self._dlib.get_face_chip(one, shape, CHIP_PX, CHIP_PADDING) for one in upright]
        return [np.array(found) for found in self._network.compute_face_descriptor(chips)]


def why_no_recogniser() -> str | None:
    """Which package is missing for ``FaceRecogniser``; None: all are there."""
    packages = {"dlib": "dlib-bin", WEIGHTS_PACKAGE: WEIGHTS_PACKAGE}
    missing = (name for module, name in packages.items() if not importlib.util.find_spec(module))
    return next(missing, None)


def cosine(a: Descriptor, b: Descriptor) -> float:
    """Of two descriptors; two people have some 0.8: compare with another's."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
