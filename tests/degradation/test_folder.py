"""Pairs from a folder: complete, replayable, and clear about what could not be done."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oldrestore.degradation import Degradation, DegradationSettings, degrade, degrade_folder
from oldrestore.image import decode
from oldrestore.photo_file import PhotoError

SETTINGS = DegradationSettings(p_undamaged=0.0, p_structured=1.0)
KINDS = ("clean", "degraded", "mask")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three photos (two of one stem), a note, and two files that are no photos."""
    folder = tmp_path / "photos"
    (folder / "attic").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("a.jpg", (40, 60)), ("attic/b.png", (33, 21))):
        y, x = np.mgrid[0 : size[0], 0 : size[1]]
        levels = 90 + x + y + rng.integers(0, 9, size)
        Image.fromarray(np.stack([levels] * 3, axis=-1).astype(np.uint8)).save(folder / name)
    (folder / "note.txt").write_text("not a photo")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "short.png").write_bytes((folder / "a.png").read_bytes()[:300])
    return folder


def written(destination: Path) -> set[str]:
    return {file.relative_to(destination).as_posix() for file in destination.rglob("*.*")}


def log(destination: Path) -> list[dict[str, object]]:
    lines = (destination / "degradations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_photo_gets_its_three_files_and_its_line(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = degrade_folder(
        source,
        tmp_path / "out",
        seed=3,
        settings=SETTINGS,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    names = {"a.png", "a.jpg", "attic/b"}
    expected = {f"{kind}/{name}.png" for kind in KINDS for name in names}
    assert written(tmp_path / "out") == {*expected, "degradations.jsonl"}
    assert report.written == 3
    assert len(report.skipped) == 2
    assert "empty.jpg" in report.skipped[0]
    assert "short.png" in report.skipped[1]
    assert calls == [(done, 5) for done in range(1, 6)]
    assert {entry["name"] for entry in log(tmp_path / "out")} == names


def test_log_replays_the_files(source: Path, tmp_path: Path) -> None:
    degrade_folder(source, tmp_path / "out", seed=3, settings=SETTINGS)
    for entry in log(tmp_path / "out"):
        degradation = Degradation.from_dict(entry["degradation"])  # type: ignore[arg-type]
        clean = decode(source / str(entry["source"])).image[0].contiguous()
        degraded = degrade(clean, degradation)
        for kind, image in (("degraded", degraded.image), ("clean", degraded.target)):
            stored = decode(tmp_path / "out" / kind / f"{entry['name']}.png").image[0]
            assert (stored - image).abs().max() <= 0.5 / 127.5 + 1e-6
        mask = np.asarray(Image.open(tmp_path / "out" / "mask" / f"{entry['name']}.png"))
        assert torch.equal(torch.from_numpy(mask / 255).float(), degraded.mask[0])


def test_what_a_photo_gets_depends_on_seed_and_path_alone(source: Path, tmp_path: Path) -> None:
    degrade_folder(source, tmp_path / "all", seed=3, settings=SETTINGS)
    degrade_folder(source, tmp_path / "other", seed=4, settings=SETTINGS)
    (source / "a.png").unlink()
    degrade_folder(source, tmp_path / "fewer", seed=3, settings=SETTINGS)
    by_source = [
        {entry["source"]: entry["degradation"] for entry in log(tmp_path / name)}
        for name in ("all", "other", "fewer")
    ]
    assert by_source[0]["attic/b.png"] == by_source[2]["attic/b.png"]
    assert by_source[0]["attic/b.png"] != by_source[1]["attic/b.png"]
    assert by_source[0]["a.jpg"] == by_source[2]["a.jpg"]


def test_several_pairs_for_a_photo_differ(source: Path, tmp_path: Path) -> None:
    report = degrade_folder(source, tmp_path / "out", count_per_photo=2, settings=SETTINGS)
    assert report.written == 6
    first, second = (
        (tmp_path / "out/degraded/attic" / f"b-{number}.png").read_bytes() for number in (1, 2)
    )
    assert first != second


def test_pairs_inside_the_source_are_not_degraded_again(source: Path) -> None:
    for _ in range(2):
        report = degrade_folder(source, source / "pairs", settings=SETTINGS)
        assert report.written == 3


def test_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photo"):
        degrade_folder(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="folder"):
        degrade_folder(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ValueError, match="count_per_photo"):
        degrade_folder(tmp_path, tmp_path / "out", count_per_photo=0)
    assert not (tmp_path / "out").exists()


def test_destination_that_is_a_file_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(PhotoError, match="cannot be written"):
        degrade_folder(source, tmp_path / "out", settings=SETTINGS)


def test_pair_that_cannot_be_completed_is_removed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mask").write_text("in the way")
    with pytest.raises(PhotoError, match="mask"):
        degrade_folder(source, tmp_path / "out", settings=SETTINGS)
    assert written(tmp_path / "out") == set()


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 2500 bytes, as on a disk that is almost full.

    Not even a file that pytest itself prints to: so only around what is tested.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    source, destination = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    Image.new("RGB", (16, 16), (90, 80, 70)).save(source / "a.png")
    Image.new("RGB", (300, 300), (90, 80, 70)).save(source / "b.png")
    noisy = DegradationSettings(p_undamaged=0.0, p_structured=0.0, p_noise=1.0)
    with small_files(), pytest.raises(PhotoError, match=r"b\.png"):
        degrade_folder(source, destination, settings=noisy)
    assert written(destination) == {
        "clean/a.png",
        "degraded/a.png",
        "mask/a.png",
        "degradations.jsonl",
    }
    assert [entry["name"] for entry in log(destination)] == ["a"]
