"""CenterFace finds the faces of real photos however they lie; what it gives is in photo pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from oldrestore.face.detect import (
    CenterFaceDetector,
    Face,
    _distinct,
    _turned_back,
    nearest_to,
    why_no_detector,
)
from oldrestore.face.enhancer import FaceConfig, FaceEnhancer
from oldrestore.face.network import FaceNetwork
from oldrestore.face.stage import FaceStage
from oldrestore.image import decode

PORTRAIT = Path(__file__).parents[1] / "photos" / "carte-de-visite.jpg"
needs_packages = pytest.mark.skipif(
    why_no_detector() is not None, reason=f"not installed: {why_no_detector()}"
)


@pytest.fixture(scope="module")
def detector() -> CenterFaceDetector:
    return CenterFaceDetector()


def _portrait(side: int | None = None) -> Tensor:
    """(3, H, W), the longer side ``side``."""
    with Image.open(PORTRAIT) as photo:
        rgb = photo.convert("RGB")
    if side is not None:
        scale = side / max(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)))
    return decode(rgb).image[0]


@pytest.fixture(scope="module")
def upright(detector: CenterFaceDetector) -> Face:
    (face,) = detector.detect(_portrait(320))
    return face


@needs_packages
def test_landmarks_lie_as_in_a_face(upright: Face) -> None:
    left_eye, right_eye, nose, left_mouth, right_mouth = upright.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    left, top, right, bottom = upright.box
    assert all(left < x < right and top < y < bottom for x, y in upright.landmarks)


@needs_packages
def test_any_number_of_threads_finds_the_same(detector: CenterFaceDetector) -> None:
    image, found = torch.rot90(_portrait(), 1, (1, 2)), []  # which takes looks at turned copies
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(detector.detect(image))
    finally:
        torch.set_num_threads(threads)
    assert len(found[0]) == 1
    assert found[0] == found[1] == found[2]


@needs_packages
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photo_that_lies_on_its_side_or_head(
    quarters: int, detector: CenterFaceDetector, upright: Face
) -> None:
    image = _portrait(320)
    turned = torch.rot90(image, quarters, (1, 2))
    (face,) = detector.detect(turned)
    # turned back by hand: where the upright face is
    expected = np.array(upright.landmarks)
    height, width = image.shape[1:]
    for _ in range(quarters):
        expected = np.stack([expected[:, 1], width - expected[:, 0]], axis=1)
        height, width = width, height
    error = np.linalg.norm(np.array(face.landmarks) - expected, axis=1)
    assert error.mean() < 0.15 * upright.size_px


@needs_packages
@pytest.mark.parametrize("side", [160, 900])
def test_small_and_large_photos_give_the_same_place(
    side: int, detector: CenterFaceDetector, upright: Face
) -> None:
    face = max(detector.detect(_portrait(side)), key=lambda face: face.size_px)
    found = np.array(face.moved(0, 0, 320 / side).landmarks)
    error = np.linalg.norm(found - upright.landmarks, axis=1)
    assert error.mean() < 0.1 * upright.size_px


@needs_packages
def test_grey_and_sixteen_bit_photos(detector: CenterFaceDetector, upright: Face) -> None:
    with Image.open(PORTRAIT) as photo:
        grey = photo.convert("L")
    scale = 320 / max(grey.size)
    small = grey.resize((round(grey.width * scale), round(grey.height * scale)))
    deep = np.asarray(small).astype(np.uint16) * 257
    (face,) = detector.detect(decode(deep).image[0])
    assert nearest_to(upright, [face]) is face


@needs_packages
def test_a_hundred_faces_are_a_hundred(detector: CenterFaceDetector, upright: Face) -> None:
    left, top, right, bottom = (round(side) for side in upright.box)
    margin = round(upright.size_px * 0.5)
    head = _portrait(320)[
        :, max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin
    ]
    small = torch.nn.functional.interpolate(head[None], (96, 96), mode="area")[0]
    found = detector.detect(small.repeat(1, 10, 10))
    assert 98 <= len(found) <= 102


@needs_packages
@pytest.mark.parametrize("height", [8, 37, 300])
def test_nothing_is_found_where_nothing_is(height: int, detector: CenterFaceDetector) -> None:
    assert detector.detect(torch.zeros(3, height, 50)) == []
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    drawing = torch.where((x // 20 + y // 20) % 2 > 0, 1.0, -1.0).expand(3, -1, -1)
    assert detector.detect(drawing) == []


@needs_packages
def test_a_drawn_face_is_found_or_not_but_is_no_error(detector: CenterFaceDetector) -> None:
    paper = Image.new("RGB", (240, 300), "white")
    pen = ImageDraw.Draw(paper)
    pen.ellipse((50, 60, 190, 250), outline="black", width=3)
    for left in (85, 135):
        pen.ellipse((left, 120, left + 22, 134), outline="black", width=3)
    pen.line((120, 135, 112, 175, 124, 178), fill="black", width=3)
    pen.arc((90, 185, 150, 220), 20, 160, fill="black", width=3)
    drawing = decode(paper).image
    for face in detector.detect(drawing[0]):
        assert np.isfinite(face.landmarks).all()
        assert 0 < face.score <= 1
    config = FaceConfig((4, 8), (0, 1))
    stage = FaceStage(detector, FaceNetwork(FaceEnhancer(config), {}))
    before = torch.from_numpy(np.array(paper)).permute(2, 0, 1)
    after = before.clone()
    for told in stage.apply(before, after, 1.0):
        assert told.kept or told.reason
    assert (after.int() - before.int()).abs().max() <= 1  # untrained: the identity


def _face(left: float, top: float, size: float, score: float) -> Face:
    points = tuple((left + size * x, top + size * x) for x in (0.3, 0.7, 0.5, 0.4, 0.6))
    return Face((left, top, left + size, top + size), points, score)


def test_of_overlapping_faces_the_surest_stays() -> None:
    sure, again, apart, inside = (
        _face(10, 10, 50, 0.9),
        _face(14, 12, 50, 0.8),
        _face(100, 10, 50, 0.7),
        _face(20, 20, 20, 0.6),
    )
    assert _distinct([inside, apart, again, sure]) == [sure, apart]
    assert _distinct([]) == []
    assert nearest_to(sure, [again, apart]) is again
    assert nearest_to(sure, [apart]) is None


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_faces_come_back(quarters: int) -> None:
    """A dot at (column 5, row 2) of a picture of 10 rows and 20 columns."""
    picture = torch.zeros(10, 20)
    picture[2, 5] = 1
    row, column = (int(i[0]) for i in torch.rot90(picture, quarters).nonzero(as_tuple=True))
    dot = (column + 0.5, row + 0.5)
    seen = Face((column, row, column + 1, row + 1), (dot,) * 5, 0.9)
    back = _turned_back(seen, quarters, (10, 20))
    assert back.landmarks == ((5.5, 2.5),) * 5
    assert back.box == (5, 2, 6, 3)
