"""The commands under `oldrestore train`."""

import json
from pathlib import Path

import pytest

from oldrestore.train.cli import app
from oldrestore.train.loop import read_state


def _run(*arguments: str | Path) -> None:
    app([str(a) for a in arguments], exit_on_error=False, result_action="return_value")


def test_flags_change_single_fields_of_the_preset(clean_folder: Path, tmp_path: Path) -> None:
    _run(
        *("vae", tmp_path / "run", "--clean", clean_folder, "--preset", "tiny", "--steps", "2"),
        *("--network.half-channels", "12", "--betas", "0.5", "0.9"),
    )
    settings = json.loads(read_state(tmp_path / "run" / "state.pt")["settings"])
    assert settings["steps"] == 2
    assert settings["betas"] == [0.5, 0.9]
    assert settings["network"]["half_channels"] == 12
    assert settings["network"]["quarter_channels"] == 16  # of the preset, untouched


def test_the_perceptual_loss_asks_for_its_backbone(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone: the perceptual loss"):
        _run("vae", tmp_path, "--clean", clean_folder, "--preset", "tiny", "--perceptual", "1")


def test_the_old_domain_asks_for_old_photos(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="old: the old domain needs"):
        _run("vae", tmp_path, "--clean", clean_folder, "--preset", "tiny", "--domain", "old")


def test_an_unknown_preset_is_named(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preset: expected one of tiny, compact"):
        _run("mask", tmp_path, "--clean", clean_folder, "--preset", "huge")
