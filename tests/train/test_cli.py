"""The commands under `oldrestore train`."""

import json
from pathlib import Path

import pytest

from oldrestore.checkpoint import read_checkpoint
from oldrestore.train.cli import app
from oldrestore.train.state import read_state


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
    with pytest.raises(ValueError, match=r"backbone: the perceptual loss .*--perceptual 0"):
        _run("vae", tmp_path, "--clean", clean_folder, "--preset", "tiny", "--perceptual", "1")


def test_a_run_of_the_published_system_from_flag_to_file(
    clean_folder: Path, paper_weights: Path, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "mine.safetensors"
    preset = ("--preset", "paper-tiny", "--variant", "scratch")
    _run(
        *("mapping", run, "--clean", clean_folder, *preset, "--init-from", paper_weights),
        *("--steps", "2", "--crop-px", "32", "--batch", "2", "--adversary.scales", "1"),
    )
    settings = json.loads(read_state(run / "state.pt")["settings"])
    assert settings["network"]["variant"] == "scratch"
    assert settings["adversary"]["scales"] == 1
    assert settings["adversary"]["spectral_norm"]
    facts = ("--threshold", "0.6")
    _run("release", output, "--mapping", run, "--mask", paper_weights, *facts)
    config = read_checkpoint(output).config
    assert config["preset"] == "paper"
    assert config["defaults"]["threshold"] == 0.6
    assert config["defaults"]["tone_strength"] == 0  # of the preset, untouched


@pytest.mark.parametrize(("preset", "count"), [("paper-tiny", 1), ("tiny", 3)])
def test_a_flag_that_networks_share_takes_what_each_has(
    preset: str, count: int, clean_folder: Path, tmp_path: Path
) -> None:
    widths = [flag for width in ("6", "8", "8") for flag in ("--network.channels", width)]
    _run(
        *("mask", tmp_path / "run", "--clean", clean_folder, "--preset", preset),
        *("--steps", "1", "--crop-px", "32", *widths[: 2 * count]),
    )
    settings = json.loads(read_state(tmp_path / "run" / "state.pt")["settings"])
    assert settings["network"]["channels"] == (6 if preset == "paper-tiny" else [6, 8, 8])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--network.half-channels", "8"),
            r"network\.half_channels: .*PaperVAEConfig, which knows",
        ),
        (("--network.blocks", "2", "--preset", "tiny"), r"network\.blocks: .* has a VAEConfig"),
    ],
)
def test_a_flag_of_the_other_system_is_refused(
    flags: tuple[str, ...], message: str, clean_folder: Path, tmp_path: Path
) -> None:
    preset = () if "--preset" in flags else ("--preset", "paper-tiny")
    with pytest.raises(ValueError, match=message):
        _run("vae", tmp_path, "--clean", clean_folder, *preset, *flags)


def test_a_list_where_one_number_belongs_is_refused(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network\.channels: this preset takes one number"):
        _run(
            *("mask", tmp_path, "--clean", clean_folder, "--preset", "paper-tiny"),
            *("--network.channels", "4", "--network.channels", "8"),
        )


def test_ours_has_no_variants(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant: preset compact has none"):
        _run("mapping", tmp_path, "--clean", clean_folder, "--variant", "hr")


def test_the_old_domain_asks_for_old_photos(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="old: the old domain needs"):
        _run("vae", tmp_path, "--clean", clean_folder, "--preset", "tiny", "--domain", "old")


def test_an_unknown_preset_is_named(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preset: expected one of tiny, compact"):
        _run("mask", tmp_path, "--clean", clean_folder, "--preset", "huge")


def test_the_backend_of_a_run_can_be_chosen(clean_folder: Path, tmp_path: Path) -> None:
    common = ("--clean", clean_folder, "--preset", "tiny", "--steps", "2")
    _run("vae", tmp_path / "a", *common, "--backend", "reference")
    _run("vae", tmp_path / "b", *common)
    a, b = (read_state(tmp_path / name / "state.pt")["averaged"] for name in "ab")
    for name, value in a.items():
        assert (value - b[name]).abs().max() <= 1e-3, name  # two steps, rounded in two ways
    with pytest.raises(ValueError, match="backend: no operation can use 'abacus' on cpu"):
        _run("vae", tmp_path / "c", *common, "--backend", "abacus")
