"""Portraits are measured in their face, with and without the stage; what has no face is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oldrestore.cli import run_command
from oldrestore.evaluate.faces import ANOTHER, WAYS, FaceResults, FaceScore, evaluate_faces
from oldrestore.face.align import TEMPLATE
from oldrestore.face.detect import Face
from oldrestore.face.enhancer import FaceConfig, FaceEnhancer
from oldrestore.face.network import FaceNetwork
from oldrestore.face.stage import FaceStage
from oldrestore.pipeline import Restorer


class Middle:
    """Takes the middle of every colourful picture for a face."""

    def detect(self, image: Tensor) -> list[Face]:
        height, width = image.shape[1:]
        if image.std() < 0.01:
            return []
        points = (TEMPLATE - 0.5) * min(height, width) * 0.8 + (width / 2, height / 2)
        box = (0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height)
        return [Face(box, tuple(map(tuple, points.tolist())), 0.9)]


class Sharper(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        blurred = nn.functional.avg_pool2d(image, 9, 1, 4, count_include_pad=False)
        return image + 0.3 * (image - blurred)


@pytest.fixture
def stage() -> FaceStage:
    network = FaceNetwork(FaceEnhancer(FaceConfig((4, 8), (0, 1))), {})
    network.network = Sharper()
    return FaceStage(Middle(), network)


def test_every_way_is_scored_against_the_clean_portrait(
    clean_folder: Path, restorer: Restorer, stage: FaceStage
) -> None:
    results = evaluate_faces(clean_folder, restorer, stage)
    assert [score.way for score in results.scores] == list(WAYS) * 4
    by_way = {way: [s for s in results.scores if s.way == way] for way in WAYS}
    assert all(score.seconds is not None for score in by_way["restored, faces on"])
    # compressed anew is nearer than damaged
    clean, damaged = (np.mean([s.psnr for s in by_way[w]]) for w in ("clean, as JPEG", "input"))
    assert clean > damaged
    assert all(score.pattern > 0.9 for score in by_way["clean, as JPEG"])
    (table,) = results.tables()
    assert [row[0] for row in table.rows] == list(WAYS)
    assert "4 portraits" in table.caption
    assert evaluate_faces(clean_folder, restorer, stage, limit=1).scores[0].photo == "0.png"


def test_portraits_without_a_face_are_named(
    restorer: Restorer, stage: FaceStage, tmp_path: Path
) -> None:
    Image.fromarray(np.full((80, 80, 3), 90, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no face in any of its 1 portraits"):
        evaluate_faces(tmp_path, restorer, stage)


def test_the_command_says_what_is_missing(
    clean_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["evaluate", "--clean", str(clean_folder), "--parts", "faces"]
    assert run_command(asked) == 2
    assert "--portraits" in capsys.readouterr().err
    missing = tmp_path / "none.safetensors"
    monkeypatch.setattr("oldrestore.face.stage.DEFAULT_FACE_WEIGHTS", missing)
    assert run_command([*asked, "--portraits", str(clean_folder)]) == 2
    assert "--face-weights" in capsys.readouterr().err


def test_the_restorers_own_stage_is_left_as_it_was(
    clean_folder: Path, restorer: Restorer, stage: FaceStage
) -> None:
    restorer.faces = stage
    evaluate_faces(clean_folder, restorer, stage, limit=1)
    assert restorer.faces is stage
    restorer.faces = None
    assert torch.is_grad_enabled()


class Thumbnails:
    """Takes a picture's small copy for the face's description."""

    def describe(self, pictures: list[np.ndarray], landmarks: object) -> list[np.ndarray]:
        return [np.asarray(Image.fromarray(one).resize((8, 8)), float).ravel() for one in pictures]


def test_identity_is_told_with_its_floor_and_its_ceiling(
    clean_folder: Path, restorer: Restorer, stage: FaceStage
) -> None:
    results = evaluate_faces(clean_folder, restorer, stage, recogniser=Thumbnails())  # type: ignore[arg-type]
    mean = {
        way: np.mean([s.identity for s in results.scores if s.way == way and s.identity])
        for way in WAYS
    }
    floor = np.mean([found for found, _ in results.another])
    assert len(results.another) == 4
    assert floor < mean["restored"] < mean["clean, as JPEG"] <= 1
    (table,) = results.tables()
    assert table.rows[-1][0] == ANOTHER
    staged, compressed = mean["restored, faces on"], mean["clean, as JPEG"]
    assert f"Identity kept, of that of the JPEG: {staged / compressed:.3f} with" in table.caption
    assert f"{(staged - floor) / (compressed - floor):.3f} and" in table.caption
    (alone,) = evaluate_faces(
        clean_folder,
        restorer,
        stage,
        recogniser=Thumbnails(),  # type: ignore[arg-type]
        limit=1,
    ).tables()
    assert [row[0] for row in alone.rows] == list(WAYS)  # there is no other person


def test_the_share_of_the_same_person_counts_dlibs_distance() -> None:
    scores = [
        FaceScore("a", way, 30.0, 0.9, 0.4, 0.99, 0.0, 0.95, apart)
        for way in WAYS
        for apart in (0.3, 0.59, 0.6, 0.9)
    ]
    (table,) = FaceResults(scores, {}, "efficientnet_lite0").tables()
    assert [row[table.head.index("same person")] for row in table.rows] == ["50%"] * len(WAYS)
    assert "Distance by efficientnet_lite0: 0.0% lower" in table.caption
