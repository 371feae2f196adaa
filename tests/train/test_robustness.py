"""Training goes on past bad photos, full disks and kills, and stops at numbers that are none."""

import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oldrestore.train import cli
from oldrestore.train import vae as vae_stage
from oldrestore.train.config import VAESettings
from oldrestore.train.loop import DivergedError, Trainer
from oldrestore.train.presets import preset
from oldrestore.train.state import read_state

CPU = torch.device("cpu")
Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def start(folder: Path, clean: Path, **changes: object) -> Trainer:
    settings = replace(preset(VAESettings, "tiny"), steps=6, crop_px=32, **changes)  # type: ignore[arg-type]
    return Trainer(vae_stage.make_stage(settings, clean=[clean]), settings, folder, CPU)


def spoil_step(trainer: Trainer, number: int, spoil: Callable[[dict[str, Tensor]], None]) -> None:
    """Before step ``number``, do something to the batch or the trainer."""
    step: Step = trainer.train_step

    def spoilt(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if trainer.step + 1 == number:
            spoil(batch)
        return step(batch)

    trainer.train_step = spoilt  # type: ignore[method-assign]


def test_a_photo_that_becomes_unreadable_is_named_once_and_passed_over(
    write_photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_photos(tmp_path / "photos", 3, seed=4)
    trainer = start(tmp_path / "run", folder)
    victim = folder / "photo_bx.png"
    victim.write_bytes(victim.read_bytes()[:300])
    trainer.run()
    assert trainer.step == 6
    named = [r for r in caplog.records if "photo_bx.png" in r.getMessage()]
    # of the photos to train on and of the held-out ones, which are the same here
    assert 1 <= len(named) <= 2
    assert all(r.levelno == logging.WARNING for r in named)


def test_a_photo_that_was_never_readable_is_named_once(
    write_photos: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_photos(tmp_path / "photos", 3, seed=4)
    (folder / "text.jpg").write_text("no photo")
    start(tmp_path / "run", folder).run()
    assert len([r for r in caplog.records if "text.jpg" in r.getMessage()]) == 1


def test_a_folder_that_is_gone_ends_the_run_with_its_name(
    write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos", 3, seed=4)
    trainer = start(tmp_path / "run", folder)
    for photo in folder.iterdir():
        photo.unlink()
    with pytest.raises(ValueError, match="photos: 100 photos drawn in a row could not be read"):
        trainer.run()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_keeps_the_state_saved_before_and_the_run_goes_on(
    clean_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = start(tmp_path, clean_folder, save_minutes=0.0)
    kept = []

    def fill_disk(_: dict[str, Tensor]) -> None:
        (tmp_path / "state.part").symlink_to("/dev/full")

    def look(_: dict[str, Tensor]) -> None:
        kept.append(read_state(tmp_path / "state.pt")["step"])

    spoil_step(trainer, 3, fill_disk)
    spoil_step(trainer, 4, look)
    trainer.run()
    assert kept == [2]  # not 3, which could not be written
    assert "step 3 could not be saved" in caplog.text
    assert "training goes on" in caplog.text
    assert read_state(tmp_path / "state.pt")["step"] == 6
    assert not (tmp_path / "state.part").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_whose_end_cannot_be_saved_says_so(clean_folder: Path, tmp_path: Path) -> None:
    start(tmp_path, clean_folder).run(until=2)
    (tmp_path / "state.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"state\.pt: step 6 could not be saved"):
        start(tmp_path, clean_folder).run()
    assert read_state(tmp_path / "state.pt")["step"] == 2


def test_a_sheet_that_cannot_be_written_does_not_end_the_run(
    clean_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = start(tmp_path, clean_folder, sheet_every=2)
    (tmp_path / "sheets").write_text("in the way")
    trainer.run()
    assert read_state(tmp_path / "state.pt")["step"] == 6
    assert "could not write the figures" in caplog.text


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_loss_that_is_not_finite_stops_and_leaves_its_batch(
    clip: float, clean_folder: Path, tmp_path: Path
) -> None:
    trainer = start(tmp_path, clean_folder, save_minutes=0.0, clip=clip)
    spoil_step(trainer, 4, lambda batch: batch["image"][1].fill_(torch.nan))
    with pytest.raises(DivergedError, match="the loss of vae is not finite at step 4"):
        trainer.run()
    state = read_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert all(v.isfinite().all() for v in state["networks"].values())
    (path,) = tmp_path.glob("diverged-0000004-0.pt")
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 4
    assert kept["batch"]["image"][1].isnan().all()
    assert kept["batch"]["image"][0].isfinite().all()
    start(tmp_path, clean_folder, save_minutes=0.0, clip=clip).run()  # goes on from step 3
    assert read_state(tmp_path / "state.pt")["step"] == 6


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_gradient_that_is_not_finite_stops_too(
    clip: float, clean_folder: Path, tmp_path: Path
) -> None:
    trainer = start(tmp_path, clean_folder, save_minutes=0.0, clip=clip)
    weight = next(p for p in trainer.stage.networks.parameters() if p.requires_grad)
    handles = []

    def spoil(_: dict[str, Tensor]) -> None:
        handles.append(weight.register_hook(lambda grad: grad * torch.inf))

    spoil_step(trainer, 3, spoil)
    with pytest.raises(DivergedError, match="the gradient of vae is not finite at step 3"):
        trainer.run()
    assert weight.isfinite().all()
    assert read_state(tmp_path / "state.pt")["step"] == 2


def test_weights_that_are_not_finite_are_never_saved(clean_folder: Path, tmp_path: Path) -> None:
    trainer = start(tmp_path, clean_folder)
    trainer.run(until=2)
    with torch.no_grad():
        next(trainer.stage.networks.parameters())[0] = torch.nan
    with pytest.raises(DivergedError, match="is not finite at step 2, not saved"):
        trainer.save()
    assert read_state(tmp_path / "state.pt")["step"] == 2


def test_what_was_logged_after_the_last_save_is_taken_out(
    clean_folder: Path, tmp_path: Path
) -> None:
    start(tmp_path, clean_folder, log_every=1).run(until=3)
    metrics = tmp_path / "metrics.jsonl"
    with metrics.open("a") as file:  # as a killed run leaves them
        file.write('{"step": 4, "kl": 1.0}\n{"step": 5, "k')
    start(tmp_path, clean_folder, log_every=1).run()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "kl" in line] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_the_same_to_the_bit(
    kills: int, one_thread: None, clean_folder: Path, tmp_path: Path
) -> None:
    def arguments(folder: Path) -> list[str]:
        common = f"--clean {clean_folder} --preset tiny --steps 30 --crop-px 32 --threads 1"
        often = "--save-minutes 0 --validate-every 15 --log-every 5 --workers 0"
        return ["vae", str(folder), *common.split(), *often.split()]

    moments = random.Random(kills)
    killed = 0
    for _ in range(4 * kills):
        command = [sys.executable, "-m", "oldrestore.train", *arguments(tmp_path / "killed")]
        process = subprocess.Popen(command)
        state = tmp_path / "killed" / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (
            state.exists() and state.stat().st_mtime_ns != before
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        killed += process.wait(timeout=60) == -signal.SIGKILL
        if killed == kills or read_state(state)["step"] == 30:
            break
    assert killed >= 1
    for name in ("killed", "whole"):
        cli.app(arguments(tmp_path / name), result_action="return_value")
    whole, resumed = (read_state(tmp_path / n / "state.pt") for n in ("whole", "killed"))
    assert whole["step"] == resumed["step"] == 30
    assert repr(whole["optimizers"]) == repr(resumed["optimizers"])
    for part in ("networks", "averaged"):
        assert all(torch.equal(v, resumed[part][k]) for k, v in whole[part].items())
