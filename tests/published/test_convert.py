"""The published folder, zip or files -> one file that restores; all else one clear message."""

import collections
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oldrestore
from oldrestore.checkpoint import read_checkpoint
from oldrestore.cli import run_command
from oldrestore.config import PaperConfig
from oldrestore.mapping import VARIANTS, PaperMappingConfig, PaperMappingNetwork
from oldrestore.mask import PaperDetector
from oldrestore.published import convert
from oldrestore.vae import VAE

States = Callable[..., dict[str, Tensor]]
FOLDERS = {
    "quality": "mapping_quality",
    "scratch": "mapping_scratch",
    "hr": "mapping_Patch_Attention",
}


def _mapping(config: PaperConfig, variant: str) -> nn.Module:
    width = config.mapping
    return PaperMappingNetwork(
        PaperMappingConfig(variant, width.latent_channels, width.channels, width.blocks)
    )


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, published_state: States, narrow: PaperConfig
) -> Path:
    """The published folder `checkpoints`, with narrow networks."""
    root = tmp_path_factory.mktemp("published") / "checkpoints"
    assert narrow.mask is not None
    states = {
        "restoration/VAE_A_quality/latest_net_G.pth": published_state(VAE(narrow.vae)),
        "restoration/VAE_B_quality/latest_net_G.pth": published_state(
            VAE(narrow.vae), is_clean_vae=True
        ),
        "restoration/VAE_B_scratch/latest_net_G.pth": published_state(
            VAE(narrow.vae), is_clean_vae=True
        ),
    }
    for variant, name in FOLDERS.items():
        state = published_state(_mapping(narrow, variant))
        states[f"restoration/{name}/latest_net_mapping_net.pth"] = state
    for name, state in states.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(collections.OrderedDict(state), root / name)
    detector = published_state(PaperDetector(narrow.mask))
    for level in range(narrow.mask.levels):
        detector[f"down_sample.{level}.4.filt"] = torch.ones(4 << level, 1, 3, 3)
    (root / "detection").mkdir()
    # the published file holds its optimiser and figures beside the weights
    extra = {"epoch": 30, "best": np.float64(0.9), "optimizer": {"state": {}, "lr": [1e-4]}}
    torch.save({"model_state": detector, **extra}, root / "detection" / "FT_Epoch_latest.pt")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, narrow: PaperConfig) -> None:
    """The command line with narrow networks."""
    monkeypatch.setattr("oldrestore.published.PaperConfig", lambda: narrow)


def _photo(height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_becomes_a_file_that_restores(
    variant: str, folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    output = tmp_path / "weights.safetensors"
    found = convert([folder], output, variant, config=narrow)
    assert set(found) == {"vae_old", "vae_clean", "mapping", "detector"}
    checkpoint = read_checkpoint(output)
    assert checkpoint.about["variant"] == variant
    assert checkpoint.config["preset"] == "paper"
    assert checkpoint.config["defaults"]["threshold"] == 0.4
    assert checkpoint.config["defaults"]["dilation_px"] == (3 if variant == "hr" else 0)
    assert all(v.dtype in (torch.float32, torch.int64) for v in checkpoint.tensors.values())
    photo = _photo()
    restored = oldrestore.restore(photo, weights=output)
    assert restored.shape == photo.shape
    assert not np.array_equal(restored, photo)


def test_a_zip_a_folder_and_single_files_give_the_same(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    archive = tmp_path / "global_checkpoints.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.p*t*"):
            file.write(path, path.relative_to(folder.parent))
    renamed = {
        "vae_old": folder / "restoration/VAE_A_quality/latest_net_G.pth",
        "vae_clean": folder / "restoration/VAE_B_scratch/latest_net_G.pth",
        "mapping": folder / "restoration/mapping_scratch/latest_net_mapping_net.pth",
        "detector": folder / "detection/FT_Epoch_latest.pt",
    }
    parts = {}
    for name, path in renamed.items():
        parts[name] = tmp_path / f"{name}.bin"
        parts[name].write_bytes(path.read_bytes())
    ways: dict[str, dict[str, Any]] = {
        "folder": {"sources": [folder]},
        "zip": {"sources": [archive]},
        "files": {"sources": list(renamed.values())},
        "parts": {"sources": [], "parts": parts},
    }
    written = []
    for name, way in ways.items():
        output = tmp_path / f"{name}.safetensors"
        convert(output=output, variant="scratch", config=narrow, **way)
        written.append(read_checkpoint(output))
    first, *others = written
    for other in others:
        assert other.about == first.about
        assert other.config == first.config
        assert other.tensors.keys() == first.tensors.keys()
        assert all(torch.equal(v, other.tensors[name]) for name, v in first.tensors.items())


def test_half_precision_and_prefixed_state_dicts_are_accepted(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    source = folder / "restoration/mapping_quality/latest_net_mapping_net.pth"
    state = torch.load(source, weights_only=True)
    changed = tmp_path / "changed.pth"
    torch.save({f"module.{key}": value.half() for key, value in state.items()}, changed)
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    convert([folder], plain, "quality", config=narrow)
    convert([folder], other, "quality", parts={"mapping": changed}, config=narrow)
    ours, theirs = (read_checkpoint(path).tensors for path in (plain, other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = value.half().float() if name.startswith("mapping") else value
        assert torch.equal(theirs[name], expected)
        assert theirs[name].dtype == value.dtype


def test_half_halves_the_file(folder: Path, narrow: PaperConfig, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    convert([folder], whole, "scratch", config=narrow)
    convert([folder], half, "scratch", config=narrow, half=True)
    headers = 40_000
    assert half.stat().st_size < whole.stat().st_size / 2 + headers
    assert oldrestore.restore(_photo(), weights=half).shape == (40, 52, 3)


def test_without_a_detector_masks_are_asked_for(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    output = tmp_path / "weights.safetensors"
    convert([folder / "restoration"], output, "scratch", config=narrow)
    photo = _photo()
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[10:14, 5:40] = 255
    assert oldrestore.restore(photo, mask=mask, weights=output).shape == photo.shape
    assert oldrestore.restore(photo, mask=None, weights=output).shape == photo.shape
    with pytest.raises(ValueError, match="these weights have no scratch detector; give a mask"):
        oldrestore.restore(photo, weights=output)
    with pytest.raises(ValueError, match="these weights have no scratch detector"):
        oldrestore.detect_scratches(photo, weights=output)


def test_the_quality_variant_fills_no_holes(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    output = tmp_path / "weights.safetensors"
    convert([folder], output, "quality", config=narrow)
    photo = _photo()
    restorer = oldrestore.Restorer.load(output)
    result = restorer.restore(photo)
    assert result.mask is None
    assert np.array_equal(result.image, restorer.restore(photo, mask=None).image)
    assert restorer.detect(photo).shape == (40, 52)
    with pytest.raises(ValueError, match=r'mask: expected none; these weights .variant "quality"'):
        restorer.restore(photo, mask=np.zeros((40, 52)))
    with pytest.raises(ValueError, match="tone: these weights have no tone head"):
        restorer.restore(photo, tone=0.5)


class Exploit:
    """Asks to run a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _part_of(folder: Path, tmp_path: Path, keep: str) -> Path:
    """A folder with only those files whose path has ``keep`` in it."""
    for path in folder.rglob("*.p*t*"):
        if keep in str(path):
            copy = tmp_path / path.relative_to(folder.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "checkpoints"


def test_a_file_that_would_run_code_is_refused_by_name(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    evil, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"x": Exploit(trace)}, evil)
    output = tmp_path / "weights.safetensors"
    with pytest.raises(ValueError, match=r"evil.pth: would call (posix|nt)\.system when read"):
        convert([folder], output, "quality", parts={"mapping": evil}, config=narrow)
    assert not trace.exists()
    assert not output.exists()


def test_half_a_folder_is_named(folder: Path, narrow: PaperConfig, tmp_path: Path) -> None:
    partial = _part_of(folder, tmp_path, "VAE_")
    with pytest.raises(
        ValueError,
        match=r'expected mapping_scratch/latest_net_mapping_net.pth \(variant "scratch"\), '
        r"found latest_net_G.pth.*--mapping",
    ):
        convert([partial], tmp_path / "out.safetensors", "scratch", config=narrow)


def test_a_zip_of_something_else_is_named(narrow: PaperConfig, tmp_path: Path) -> None:
    archive = tmp_path / "face_checkpoints.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("checkpoints/FaceSR_512/latest_net_G.pth", b"x")
    with pytest.raises(
        ValueError,
        match=r"face_checkpoints.zip: expected VAE_A_quality.*found checkpoints/FaceSR_512",
    ):
        convert([archive], tmp_path / "out.safetensors", "hr", config=narrow)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"face_checkpoints.zip"):
        convert([archive], tmp_path / "out.safetensors", "hr", config=narrow)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("mapping_quality/", 'missing key before_NL.0.weight; .*the mapping of variant "quality"'),
        ("mapping_Patch", 'missing key after_NL.*; this looks like the mapping of variant "hr"'),
        ("VAE_A", "missing key before_NL.0.weight; this looks like a VAE"),
        ("detection", "missing key before_NL.0.weight; this looks like the scratch detector"),
    ],
)
def test_another_network_is_named(
    wrong: str, message: str, folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    file = next(path for path in folder.rglob("*.p*t*") if wrong in str(path))
    with pytest.raises(ValueError, match=message) as caught:
        convert(
            [folder],
            tmp_path / "out.safetensors",
            "scratch",
            parts={"mapping": file},
            config=narrow,
        )
    assert str(file) in str(caught.value)


def _saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"extra.weight": torch.zeros(1)}, "unknown key extra.weight"),
        (lambda s: s | {"encoder.1.bias": torch.zeros(9)}, r"encoder.1.bias: .*\(8,\), got \(9,\)"),
        (
            lambda s: s | {"encoder.1.bias": torch.full((8,), torch.nan)},
            "encoder.1.bias: holds values that are not finite",
        ),
        (list, "expected a state dict of tensors, got list"),
        (lambda s: s | {"encoder.1.bias": "text"}, "expected a state dict of tensors"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_named(
    change: Callable[[dict[str, Tensor]], Any],
    message: str,
    folder: Path,
    narrow: PaperConfig,
    tmp_path: Path,
) -> None:
    source = folder / "restoration/VAE_A_quality/latest_net_G.pth"
    state = dict(torch.load(source, weights_only=True))
    file = _saved(tmp_path / "changed.pth", change(state))
    with pytest.raises(ValueError, match=message) as caught:
        convert(
            [folder],
            tmp_path / "out.safetensors",
            "quality",
            parts={"vae_old": file},
            config=narrow,
        )
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(
    kept: float, folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    content = (folder / "restoration/VAE_A_quality/latest_net_G.pth").read_bytes()
    size = round(kept * len(content)) if isinstance(kept, float) else kept
    file = tmp_path / "short.pth"
    file.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"short.pth: damaged, or not a file of torch.save"):
        convert(
            [folder],
            tmp_path / "out.safetensors",
            "quality",
            parts={"vae_old": file},
            config=narrow,
        )


def test_files_of_old_torch_versions_are_read(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    source = folder / "restoration/VAE_A_quality/latest_net_G.pth"
    state = torch.load(source, weights_only=True)
    file = tmp_path / "legacy.pth"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    convert([folder], outputs[0], "quality", config=narrow)
    convert([folder], outputs[1], "quality", parts={"vae_old": file}, config=narrow)
    ours, theirs = (read_checkpoint(path).tensors for path in outputs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_numbers_that_an_old_numpy_pickled_are_harmless(
    folder: Path, narrow: PaperConfig, tmp_path: Path
) -> None:
    source = torch.load(
        folder / "detection/FT_Epoch_latest.pt",
        weights_only=False,  # made by this test
    )
    file = tmp_path / "old.pt"
    torch.save(source, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    output = tmp_path / "out.safetensors"
    found = convert([folder], output, "scratch", parts={"detector": file}, config=narrow)
    assert found["detector"] == str(file)


def test_a_zip_with_a_damaged_directory_is_named(narrow: PaperConfig, tmp_path: Path) -> None:
    archive = tmp_path / "global_checkpoints.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("checkpoints/VAE_A_quality/latest_net_G.pth", b"x")
    archive.write_bytes(archive.read_bytes().replace(b"PK\x01\x02", b"PK\x09\x09"))
    with pytest.raises(ValueError, match=r"global_checkpoints.zip: a damaged zip archive"):
        convert([archive], tmp_path / "out.safetensors", "scratch", config=narrow)


@pytest.mark.usefixtures("quick")
def test_the_command_converts_and_the_others_use_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hr.safetensors"
    assert run_command(["convert", str(folder), "-o", str(output), "--variant", "hr"]) == 0
    assert f"written to {output}" in capsys.readouterr().out
    photo = tmp_path / "photo.png"
    oldrestore.image.Image.fromarray(_photo(33, 47)).save(photo)
    weights = ["--weights", str(output), "--device", "cpu"]
    restored, mask = tmp_path / "restored.png", tmp_path / "mask.png"
    command = ["restore", str(photo), "-o", str(restored), "--save-mask", str(mask), "--json"]
    assert run_command([*command, *weights]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [47, 33]
    assert oldrestore.image.Image.open(mask).size == (47, 33)
    assert run_command(["detect", str(photo), "-o", str(mask), *weights]) == 0
    assert run_command(["info", *weights]) == 0
    assert "variant: hr" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.safetensors", "--variant", "hr"], "SOURCES: expected the published folder"),
        (["{folder}", "-o", "x.pth", "--variant", "hr"], "expected a name ending in .safetensors"),
        (["{folder}", "-o", "x.safetensors", "--variant", "best"], "variant: expected one of qual"),
        (["gone", "-o", "x.safetensors", "--variant", "hr"], "gone: no such file or folder"),
        (["{folder}", "-o", "no/x.safetensors", "--variant", "hr"], "there is no folder no to"),
    ],
)
def test_a_request_that_makes_no_sense_is_named(
    arguments: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [part.format(folder=folder) for part in arguments]
    assert run_command(["convert", *command]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
