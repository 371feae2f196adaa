"""One command measures all there is to measure, prints it and saves it."""

import json
from pathlib import Path

import pytest

from oldrestore.cli import run_command
from oldrestore.evaluate.command import FORMAT


def test_all_tables_come_of_one_command(
    clean_folder: Path,
    old_folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "all.json"
    command = ["evaluate", "--clean", str(clean_folder), "--weights", str(weights)]
    command += ["--old", str(old_folder), "--vae", f"shipped={weights}", "--limit", "2"]
    command += ["--rival", f"end to end={weights}", "--threads", "1", "--output", str(output)]
    command += ["--rows", "input", "ours", "--columns", "not-faded", "wide-holes"]
    assert run_command([*command, "--markdown"]) == 0
    printed = capsys.readouterr().out
    saved = json.loads(output.read_text())
    assert saved["format"] == FORMAT
    assert list(saved) == ["format", "restoration", "detector", "real", "latents"]
    # the same weights give the same numbers, and a paired gain of nought
    rows = saved["restoration"]["table"]
    assert rows["end to end"]["columns"] == rows["ours"]["columns"]
    assert "| end to end, true mask | +0.00 [+0.00, +0.00] / +0.000 |" in printed
    for line in ("| film-like: ours |", "| shipped |", "| ours as `restore(photo)` |"):
        assert line in printed
    assert run_command(command) == 0
    on_terminal = capsys.readouterr().out
    for title in ("restoration", "medians", "gains", "detector", "real photos", "latent gap"):
        assert title in on_terminal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "real"], "--parts real: needs --old"),
        (["--parts", "latents"], "--parts latents: needs --vae"),
        (["--vae", "nothing"], "--vae: expected NAME=PATH, got 'nothing'"),
        (["--vae", "a=/nowhere"], "/nowhere: no such run folder or weights file"),
        (["--rival", "a=x", "--rival", "a=y"], "--rival: the name 'a' comes twice"),
        (["--old", "/nowhere"], "/nowhere: expected a folder of photos"),
    ],
)
def test_requests_that_make_no_sense_are_refused_at_once(
    clean_folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    command = ["evaluate", "--clean", str(clean_folder), "--weights", str(weights)]
    assert run_command([*command, *options]) == 2
    assert message in capsys.readouterr().err


def test_rivals_may_not_have_the_name_of_a_row(
    clean_folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--clean", str(clean_folder), "--weights", str(weights)]
    options = ["--rows", "input", "--rival", f"ours={weights}"]
    assert run_command([*command, *options]) == 2
    assert "expected a name that is no row's, got 'ours'" in capsys.readouterr().err
