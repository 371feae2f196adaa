"""The batch as a whole: what is made, what is not made again, what ends it early."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_folders import RunBatch, below, pixels, write_photo
from PIL import Image

from oldrestore.batch import work
from oldrestore.batch.manifest import Manifest, Row
from oldrestore.batch.plan import MOST_DEATHS, Plan
from oldrestore.batch.runner import MANIFEST_NAME, Summary, count_reasons
from oldrestore.batch.work import Outcome
from oldrestore.jobs import UsageError
from oldrestore.pipeline import Restorer


def reasons(run: RunBatch, **options: object) -> dict[str, int]:
    plans: list[Plan] = []
    run(on_plan=plans.append, **options)
    return count_reasons(plans[0])


def test_the_tree_is_mirrored_and_pixels_are_those_of_restore(
    run: RunBatch, scans: Path, out: Path, weights: Path
) -> None:
    assert run(sidecar=False) == Summary(done=3)
    assert below(out) == ["1931/b.jpg", "1931/c.tif", "a.png"]
    restorer = Restorer.load(weights, "cpu")
    for name in ("a.png", "1931/c.tif"):
        expected = restorer.restore(scans / name, threshold=1.0).image
        assert np.array_equal(pixels(out / name), np.asarray(expected))
    assert not (out / ".oldrestore" / "partial").exists()


def test_nothing_is_made_twice(run: RunBatch, out: Path) -> None:
    run()
    before = {name: (out / name).stat().st_mtime_ns for name in below(out)}
    assert run() == Summary(unchanged=3)
    assert {name: (out / name).stat().st_mtime_ns for name in below(out)} == before


def test_content_decides_where_times_differ(run: RunBatch, scans: Path, out: Path) -> None:
    run()
    os.utime(scans / "a.png", (1, 1))
    os.utime(out / "1931" / "b.jpg", (1, 1))
    before = (out / "a.png").stat().st_mtime_ns
    assert reasons(run) == {"touched": 2, "unchanged": 1}
    assert (out / "a.png").stat().st_mtime_ns == before
    assert reasons(run) == {"unchanged": 3}  # the new times are known now
    record = Manifest(out / MANIFEST_NAME, is_read_only=True).row("a.png").record
    assert record["width"] == 24


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strength": 0.5}, {"other weights or options": 3}),
        ({"threshold": 0.25}, {"other weights or options": 3}),
        ({"denoise": 0.75}, {"other weights or options": 3}),  # not estimated
        ({"denoise": None, "tone": 0.5}, {"unchanged": 3}),  # the defaults, said aloud
        ({"mask": None}, {"other weights or options": 3}),
        ({"sidecar": False}, {"unchanged": 3}),
        ({"maps": "maps"}, {"results missing": 3}),
    ],
)
def test_other_options_make_everything_anew(
    run: RunBatch, tmp_path: Path, options: dict[str, object], expected: dict[str, int]
) -> None:
    run()
    if "maps" in options:
        options = {"maps": str(tmp_path / "maps")}
    assert reasons(run, **options) == expected
    assert reasons(run, **options) == {"unchanged": 3}


def test_other_weights_make_everything_anew(
    run: RunBatch, restorer: Restorer, tmp_path: Path
) -> None:
    run()
    other = tmp_path / "other.safetensors"
    restorer.mapping.tail.bias.add_(0.1)
    restorer.save(other, {"data": "none"})
    assert reasons(run, weights=str(other)) == {"other weights or options": 3}


def test_changed_new_and_missing_photos(run: RunBatch, scans: Path, out: Path) -> None:
    run()
    write_photo(scans / "a.png", seed=9, size=(32, 16))
    write_photo(scans / "d.png")
    (out / "1931" / "b.jpg").unlink()
    (out / "1931" / "c.tif").write_bytes(b"cut short")
    assert reasons(run) == {"changed": 1, "new": 1, "results missing": 2}
    assert pixels(out / "a.png").shape == (16, 32, 3)
    assert pixels(out / "1931" / "c.tif").shape == (16, 24, 3)


def test_a_bad_photo_is_listed_each_time_and_tried_again_when_asked_or_changed(
    run: RunBatch, scans: Path, out: Path
) -> None:
    bad = scans / "bad.png"
    bad.write_bytes(b"not a picture")
    os.mkfifo(scans / "pipe.jpg")
    (scans / "gone.jpg").symlink_to(scans / "nothing")
    summary = run()
    assert summary.done == 3
    assert set(summary.failed) == {"bad.png", "gone.jpg", "pipe.jpg"}
    assert "is not a picture" in summary.failed["bad.png"]
    assert summary.failed["pipe.jpg"].endswith("pipe.jpg: is not a file")
    assert summary.failed["gone.jpg"].endswith("gone.jpg: is gone")
    (scans / "pipe.jpg").unlink()
    (scans / "gone.jpg").unlink()
    outcomes: list[Outcome] = []
    again = run(on_outcome=outcomes.append)
    assert again == Summary(unchanged=3, failed={"bad.png": summary.failed["bad.png"]})
    assert outcomes == []
    run(retry_failed=True, on_outcome=outcomes.append)
    assert [outcome.name for outcome in outcomes] == ["bad.png"]
    write_photo(bad)
    assert run() == Summary(done=1, unchanged=3)


def test_names_that_collide_and_names_that_are_no_utf8(
    run: RunBatch, scans: Path, out: Path
) -> None:
    write_photo(scans / "a.gif", seed=4)
    write_photo(scans / "a.png.png", seed=5)
    strange = os.fsdecode(b"caf\xe9 [x].png")
    try:
        write_photo(scans / strange)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert run(sidecar=True).done == 6
    assert {"a.png", "a.png.png", "a.gif.png", strange} <= set(below(out))
    assert not np.array_equal(pixels(out / "a.gif.png"), pixels(out / "a.png"))
    assert json.loads((out / f"{strange}.json").read_text())["inputs"]["photo"]["name"] == strange
    assert run() == Summary(unchanged=6)


def test_unreadable_folders_are_told(
    run: RunBatch, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name == "1931":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    summary = run()
    assert summary.done == 1
    assert summary.failed[str(scans / "1931")].endswith("cannot be read: Permission denied")
    monkeypatch.undo()
    assert run() == Summary(done=2, unchanged=1)


def test_a_photo_that_changes_while_it_is_read_fails_and_is_tried_again(
    run: RunBatch, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Restorer.restore_windows
    write_photo(scans / "a.png", size=(40, 16))

    def restore(self: Restorer, photo: Any, result: Any, **options: Any) -> object:
        if photo.size == (16, 40):
            write_photo(scans / "a.png", seed=7, size=(64, 48))
        return real(self, photo, result, **options)

    monkeypatch.setattr(Restorer, "restore_windows", restore)
    summary = run()
    assert "changed while it was read" in summary.failed["a.png"]
    assert not (out / "a.png").exists()
    monkeypatch.undo()
    assert run() == Summary(done=1, unchanged=2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_ends_the_batch_and_it_goes_on_later(
    run: RunBatch, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = Image.Image.save

    def save(self: Image.Image, file: object, *rest: object, **options: object) -> None:
        if (out / "1931" / "b.jpg").exists():
            file.write(b"half") if hasattr(file, "write") else None
            raise OSError(number, os.strerror(number))
        real(self, file, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    summary = run()
    assert os.strerror(number) in str(summary.stopped)
    assert summary.failed == {}
    assert summary.left + summary.done == 3
    monkeypatch.undo()
    finished = run()
    assert finished.done == summary.left
    assert finished.failed == {}
    assert finished.stopped is None


def test_a_disk_that_is_full_for_the_manifest(
    run: RunBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    def write(self: Manifest, row: Row) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Manifest, "write", write)
    assert "database or disk is full" in str(run().stopped)
    monkeypatch.undo()
    assert run().done == 3


def test_a_source_that_goes_away_ends_the_batch(
    run: RunBatch, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(_: object) -> None:
        scans.rename(scans.with_name("unmounted"))

    summary = run(on_plan=go)
    assert str(summary.stopped).endswith("is gone")
    assert summary.failed == {}
    assert summary.left == 3
    scans.with_name("unmounted").rename(scans)
    assert run() == Summary(done=3)


def test_a_batch_asked_to_stop_finishes_what_is_in_work(run: RunBatch) -> None:
    done: list[Outcome] = []
    first = run(should_stop=lambda: bool(done), on_outcome=done.append)
    assert first.interrupted or first.left == 0
    assert first.done == len(done)
    assert first.done + first.left == 3
    assert run().done == first.left


def test_two_batches_at_once_are_refused(run: RunBatch) -> None:
    refused: list[str] = []

    def second(_: object) -> None:
        with pytest.raises(UsageError) as info:
            run()
        refused.append(str(info.value))

    run(on_plan=second)
    assert "another batch is at work here" in refused[0]
    assert f"process {os.getpid()} on" in refused[0]
    assert run() == Summary(unchanged=3)


def test_results_of_another_folder_are_not_replaced(
    run: RunBatch, scans: Path, tmp_path: Path
) -> None:
    run()
    write_photo(tmp_path / "others" / "a.png", seed=8)
    with pytest.raises(UsageError, match="holds results of"):
        run(source=str(tmp_path / "others"))
    scans.rename(tmp_path / "moved")
    assert run(source=str(tmp_path / "moved")) == Summary(unchanged=3)


def test_a_photo_that_processes_die_of_is_left_alone_at_last(run: RunBatch, out: Path) -> None:
    (out / ".oldrestore").mkdir(parents=True)
    manifest = Manifest(out / MANIFEST_NAME)
    for _ in range(MOST_DEATHS - 1):
        manifest.start("1931/b.jpg")
    orders: list[list[str]] = []
    run(on_plan=lambda plan: orders.append([p.task.name for p in plan.to_do()]))
    assert orders == [["1931/c.tif", "a.png", "1931/b.jpg"]]  # last, and done
    for _ in range(MOST_DEATHS):
        manifest.start("a.png")
    manifest.close()
    summary = run()
    assert summary.unchanged == 2
    assert "5 times the program ended" in summary.failed["a.png"]
    assert run(retry_failed=True) == Summary(done=1, unchanged=2)


def test_what_these_weights_cannot_do_is_told_before_the_first_photo(
    run: RunBatch, out: Path
) -> None:
    with pytest.raises(ValueError, match="strength: expected 0 to 1"):
        run(strength=2.0)
    with pytest.raises(UsageError, match="another folder than that of the photos"):
        run(output=str(out.with_name("scans")))
    with pytest.raises(UsageError, match="expected a folder of photos"):
        run(source=str(out.with_name("nowhere")))
    with pytest.raises(UsageError, match="folder of masks"):
        run(mask=str(out.with_name("nowhere")))
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        run(weights="nowhere.safetensors")
    assert below(out.parent / "scans") == ["1931/b.jpg", "1931/c.tif", "a.png", "notes.txt"]


def test_masks_of_ones_own_belong_to_the_input(
    run: RunBatch, scans: Path, out: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    mask = np.zeros((16, 24), np.uint8)
    mask[4:8] = 255
    for name in ("a.png", "1931/b.png"):
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / name)
    summary = run(mask=str(masks))
    assert summary.done == 2
    assert "no mask of its name" in summary.failed["1931/c.tif"]
    about = json.loads((out / "a.png.json").read_text())
    assert about["damaged"] == pytest.approx(0.25)
    assert about["options"]["mask"] == "given"
    assert set(about["inputs"]) == {"photo", "mask"}
    Image.fromarray(255 - mask).save(masks / "a.png")
    Image.fromarray(mask).save(masks / "1931" / "c.png")
    summary = run(mask=str(masks))
    assert (summary.done, summary.unchanged, summary.failed) == (2, 1, {})
    Image.fromarray(mask[:9]).save(masks / "a.png")
    assert "to match photo" in run(mask=str(masks)).failed["a.png"]


def test_results_inside_the_folder_of_photos_are_no_photos(run: RunBatch, scans: Path) -> None:
    results, maps = str(scans / "restored"), str(scans / "maps")
    assert run(output=results, maps=maps).done == 3
    assert run(output=results, maps=maps) == Summary(unchanged=3)


def test_what_a_killed_process_left_half_written_is_removed(run: RunBatch, out: Path) -> None:
    partial = out / ".oldrestore" / "partial"
    partial.mkdir(parents=True)
    (partial / "0011.png").write_bytes(b"half")
    run()
    assert not partial.exists()


def test_a_bug_is_not_taken_for_a_bad_photo(run: RunBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("a bug of ours")

    monkeypatch.setattr(work, "write_file", broken)
    with pytest.raises(AssertionError, match="a bug of ours"):
        run()
