"""``oldrestore batch`` and ``oldrestore report`` as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from photo_folders import below, write_photo

from oldrestore.batch.manifest import Manifest
from oldrestore.batch.runner import MANIFEST_NAME
from oldrestore.cli import run_command
from oldrestore.config import PaperConfig
from oldrestore.mapping import PaperMappingConfig
from oldrestore.pipeline import Restorer
from oldrestore.vae import PaperVAEConfig

TIMEOUT_S = 60


@pytest.fixture
def command(scans: Path, out: Path, weights: Path) -> list[str]:
    return ["batch", str(scans), str(out), "--weights", str(weights), "--device", "cpu"]


def test_a_batch_and_its_report(
    command: list[str], scans: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command) == 0
    names = ("1931/b.jpg", "1931/c.tif", "a.png")
    assert below(out) == sorted(f"{name}{end}" for name in names for end in ("", ".json", ".xmp"))
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == f"oldrestore: {out}: 3 restored, 0 unchanged, 0 failed\n"
    assert run_command(command) == 0
    assert "0 restored, 3 unchanged" in capsys.readouterr().err
    assert run_command(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}: 3 restored\n"
    assert run_command(["report", str(scans)]) == 2


def test_errors_are_listed_at_the_end_with_code_1(
    command: list[str], scans: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "0.png").write_bytes(b"")
    assert run_command([*command, "--json", "--no-sidecar"]) == 1
    output, errors = capsys.readouterr()
    records = {record["input"]: record for record in map(json.loads, output.splitlines())}
    assert records["0.png"]["state"] == "failed"
    assert records["a.png"]["outputs"] == {"photo": "a.png"}
    assert records["a.png"]["width"] == 24
    assert errors.splitlines()[0] == f"oldrestore: {scans / '0.png'}: is empty"
    assert errors.splitlines()[1].endswith("3 restored, 0 unchanged, 1 failed")
    assert run_command([*command, "--no-sidecar"]) == 1  # nothing new, and it still failed
    assert "0 restored, 3 unchanged, 1 failed" in capsys.readouterr().err
    write_photo(scans / "0.png")
    assert run_command([*command, "--no-sidecar", "--retry-failed"]) == 0


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    command: list[str], scans: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(scans / os.fsdecode(b"\xff.gif"))
    assert run_command([*command, "--dry-run"]) == 0
    output, errors = capsys.readouterr()
    lines = ["1931/b.jpg -> 1931/b.jpg", "1931/c.tif -> 1931/c.tif", "a.png -> a.png"]
    assert output.splitlines() == [*lines, r"\udcff.gif -> \udcff.png"]
    assert errors == "oldrestore: new: 4\n"
    assert not out.exists()
    run_command(command)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run_command([*command, "--dry-run", "--json", "--strength", "0.5"]) == 0
    whys = [json.loads(line)["why"] for line in capsys.readouterr().out.splitlines()]
    assert whys == ["other weights or options"] * 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers: expected 1 or more"),
        (["--threads", "0"], "--threads: expected 1 or more"),
        (["--address", "auto"], "--address: expected --engine ray"),
        (["--no-mask", "--mask", "x"], "--no-mask: expected neither"),
        (["--no-mask", "--outside-mask", "keep"], "--outside-mask keep: expected no --no-mask"),
        (["--mask", "nowhere"], "--mask: expected a folder of masks"),
        (["--strength", "2"], "strength: expected 0 to 1"),
        (["--engine", "steam"], "Invalid value"),
    ],
)
def test_requests_that_make_no_sense_restore_nothing(
    command: list[str],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert run_command([*command, *options]) == 2
    output, errors = capsys.readouterr()
    assert message in " ".join((output + errors).split())
    assert not out.exists()


def test_a_folder_that_cannot_be_written(
    command: list[str], scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    command[2] = str(tmp_path / "file" / "out")
    assert run_command(command) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_a_full_disk_has_its_own_code_and_one_message(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oldrestore.files.PhotoWriter.add_page", full)
    assert run_command(command) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[1].startswith("oldrestore: stopped: ")
    assert errors[1].endswith("the same command goes on from here")
    monkeypatch.undo()
    assert run_command(command) == 0


@pytest.mark.parametrize("content", [b"no manifest at all" * 100, b""])
def test_a_damaged_manifest_is_named(
    command: list[str], out: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (out / MANIFEST_NAME).parent.mkdir(parents=True)
    (out / MANIFEST_NAME).write_bytes(content)
    assert run_command(command) == 2
    assert str(out / MANIFEST_NAME) in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_what_is_in_work_and_the_batch_goes_on(
    command: list[str], scans: Path, out: Path, number: signal.Signals
) -> None:
    for index in range(60):
        write_photo(scans / f"{index}.png", index, (200, 160))
    program = [sys.executable, "-m", "oldrestore", *command, "--workers", "1", "--threads", "1"]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + TIMEOUT_S
    while not (out / "0.png.xmp").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "stopping; photos in work are finished first" in errors
    assert " left\n" in errors
    manifest = Manifest(out / MANIFEST_NAME, is_read_only=True)
    counts = manifest.counts()
    manifest.close()
    assert set(counts) == {"done"}
    assert 0 < counts["done"] < 63
    assert run_command(command) == 0
    assert f"{counts['done']} restored" in errors


def test_what_weights_cannot_do_is_one_message(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.safetensors"
    config = PaperConfig(
        vae=PaperVAEConfig(latent_channels=8),
        mapping=PaperMappingConfig("scratch", latent_channels=8, channels=16),
        mask=None,
    )
    Restorer(config, device="cpu").save(bare, {"data": "none"})
    command[command.index("--weights") + 1] = str(bare)
    assert run_command(command) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "these weights have no scratch detector" in errors[0]
    assert run_command([*command, "--no-mask"]) == 0
