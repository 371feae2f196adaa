"""The published face generator gives what the published code gives, and imports strictly.

`golden.npz` holds an input and every fourth pixel of the output of the published PyTorch code with
16 channels, in float32 on a CPU.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oldrestore.checkpoint import read_checkpoint
from oldrestore.cli import run_command
from oldrestore.face.generator import FaceGenerator, PaperFaceConfig
from oldrestore.face.published import convert_face, face_tensors

ALLOWED = 1e-4  # both in float32; the published one is 1e-5 from float64 itself
GOLDEN = PaperFaceConfig(256, channels=16)
NARROW = PaperFaceConfig(256, channels=2)
States = Callable[[PaperFaceConfig], dict[str, Tensor]]


def test_the_output_is_that_of_the_published_code(published_face: States) -> None:
    network = FaceGenerator(GOLDEN)
    network.load_state_dict(face_tensors(published_face(GOLDEN), GOLDEN, "golden"))
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        image, expected = (torch.from_numpy(file[f"face_{name}"]) for name in ("image", "output"))
    with torch.inference_mode():
        found = network.eval()(image.float() / 255 * 2 - 1)
    assert found.std() > 0.1
    assert (found[..., ::4, ::4] - expected).abs().max() <= ALLOWED


def test_both_published_sizes_have_a_generator() -> None:
    for side in (256, 512):
        network = FaceGenerator(PaperFaceConfig(side, channels=1)).eval()
        with torch.inference_mode():
            assert network(torch.zeros(1, 3, side, side)).shape == (1, 3, side, side)
        with pytest.raises(ValueError, match=f"expected \\(B, 3, {side}, {side}\\)"):
            network(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="side_px"):
        PaperFaceConfig(128)


def test_spectral_norm_is_folded(published_face: States) -> None:
    state = published_face(NARROW)
    folded = face_tensors(state, NARROW, "file")
    assert not any(key.endswith(("_u", "_v", "_orig")) for key in folded)
    matrix = folded["blocks.3.conv1.weight"].double().flatten(1)
    assert abs(float(torch.linalg.matrix_norm(matrix, 2)) - 1) < 0.2  # power iterations are few


@pytest.mark.parametrize(("variant", "side"), [("face", 256), ("face-512", 512)])
def test_the_command_converts_a_published_folder(
    variant: str,
    side: int,
    published_face: States,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "oldrestore.face.published.convert_face.__kwdefaults__",
        {"file": None, "half": False, "channels": 2},
    )
    folders = {"face": "Setting_9_epoch_100", "face-512": "FaceSR_512"}
    checkpoint = tmp_path / "checkpoints" / folders[variant] / "latest_net_G.pth"
    checkpoint.parent.mkdir(parents=True)
    torch.save(published_face(PaperFaceConfig(side, 2)), checkpoint)
    output = tmp_path / "faces.safetensors"
    source = str(tmp_path / "checkpoints")
    assert run_command(["convert", source, "-o", str(output), "--variant", variant]) == 0
    assert str(checkpoint) in capsys.readouterr().out
    written = read_checkpoint(output)
    assert written.config == {"preset": "paper", "face": {"side_px": side, "channels": 2}}
    assert written.about["variant"] == variant


def _without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: v for key, v in state.items() if key != "up_0.conv_s.weight_u"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "missing key up_0.conv_s.weight_u"),
        (lambda s: {**s, "up_4.conv_0.bias": torch.zeros(1)}, "unknown key up_4.conv_0.bias"),
        (
            lambda s: {**s, "fc.bias": torch.zeros(3)},
            r"fc.bias: expected shape \(32,\), got \(3,\)",
        ),
        (lambda s: {**s, "fc.bias": torch.full((32,), torch.nan)}, "fc.bias: holds values that"),
        (lambda s: {"encoder.1.weight": torch.zeros(64)}, "this looks like a VAE"),
        (lambda s: {**s, "up_0.conv_0.weight_u": torch.zeros(16)}, "a spectral norm in it is 0"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    published_face: States,
    tmp_path: Path,
) -> None:
    path, output = tmp_path / "latest_net_G.pth", tmp_path / "faces.safetensors"
    torch.save(change(published_face(NARROW)), path)
    with pytest.raises(ValueError, match=message) as caught:
        convert_face([], output, "face", file=path, channels=2)
    assert str(path) in str(caught.value)
    assert not output.exists()


def test_requests_that_make_no_sense_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "faces.safetensors")
    assert run_command(["convert", str(tmp_path), "-o", output, "--variant", "face"]) == 2
    assert "Setting_9_epoch_100/latest_net_G.pth" in capsys.readouterr().err
    asked = ["convert", str(tmp_path), "-o", output, "--variant", "face", "--mapping", "m.pth"]
    assert run_command(asked) == 2
    assert "is one network" in capsys.readouterr().err
    asked = ["convert", str(tmp_path), "-o", output, "--variant", "hr", "--face", "f.pth"]
    assert run_command(asked) == 2
    assert "--face" in capsys.readouterr().err
