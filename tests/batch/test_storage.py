"""Folders of this machine and others, and a batch between object stores."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photo_folders import RunBatch, pixels, write_photo

from oldrestore.batch import runner
from oldrestore.batch.job import Job
from oldrestore.batch.lock import LOCK_NAME, RemoteLock
from oldrestore.batch.manifest import Manifest
from oldrestore.batch.runner import MANIFEST_NAME, Summary, dry_run
from oldrestore.batch.storage import LocalFolder, RemoteFolder, open_folder, write_file
from oldrestore.jobs import UnreadableFolder, UsageError, walk_photos


@pytest.fixture
def store() -> Iterator[str]:
    """The URL of an empty store in memory."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://archive"
    files.store.clear()


def copy_to(folder: RemoteFolder, path: Path, name: str) -> None:
    write_file(folder, name, lambda target: target.write_bytes(path.read_bytes()))


def test_a_walk_follows_links_once_and_passes_over_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.tif", "a.png", ".trash/x.png", "b/._1.tif", "c.txt", "skip/s.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "in.png").touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)  # a loop
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "z").symlink_to(tmp_path / "b")  # b again
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    names = [
        path.relative_to(tmp_path).as_posix()
        for path in walk_photos(tmp_path, [tmp_path / "skip", tmp_path / "nowhere"])
        if isinstance(path, Path)
    ]
    assert names == ["a.png", "b/1.tif", "b/2.JPG", "dangling.png", "folder.png/in.png"]


def test_a_walk_tells_of_what_it_cannot_read(tmp_path: Path) -> None:
    (found,) = walk_photos(tmp_path / "gone")
    assert found == UnreadableFolder(str(tmp_path / "gone"), "No such file or directory")


def write_half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError("no more")


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_folder_gives_and_takes_files_whole(is_remote: bool, store: str, tmp_path: Path) -> None:
    folder = open_folder(store if is_remote else tmp_path)
    assert isinstance(folder, RemoteFolder if is_remote else LocalFolder)
    about = write_file(folder, "x/y.png", lambda path: path.write_bytes(b"abc"))
    assert about["name"] == "x/y.png"
    assert about["size"] == 3
    assert about["sha256"].startswith("ba7816bf")
    stamp = folder.stamp("x/y.png")
    assert (stamp.size, stamp.version) == (about["size"], about["version"])
    with folder.to_read("x/y.png") as path:
        assert path.read_bytes() == b"abc"
        assert path.suffix == ".png"
    with pytest.raises(OSError, match="no more"):
        write_file(folder, "x/y.png", write_half)
    with folder.to_read("x/y.png") as path:
        assert path.read_bytes() == b"abc"
    assert folder.stamp("x/z.png") is None
    assert list(folder.walk()) == ["x/y.png"]
    assert list(folder.walk([f"{folder.url}/x"])) == []
    assert folder.exists()
    assert folder.title("x/y.png") == f"{folder.url}/x/y.png"


def test_urls_that_nothing_reaches_are_named() -> None:
    with pytest.raises(UsageError, match="nonsense://x: cannot be reached"):
        open_folder("nonsense://x")
    assert open_folder("file:///tmp/a%20b").url == "/tmp/a b"


def test_a_batch_between_stores(run: RunBatch, scans: Path, store: str, weights: Path) -> None:
    source, output = f"{store}/in", f"{store}/out"
    for name in ("a.png", "1931/b.jpg"):
        copy_to(open_folder(source), scans / name, name)
    assert run(source=source, output=output, maps=f"{output}/maps") == Summary(done=2)
    folder = open_folder(output)
    assert list(folder.walk([f"{output}/maps"])) == ["1931/b.jpg", "a.png"]
    assert folder.stamp("maps/a.png.mask.png") is not None
    assert folder.stamp(LOCK_NAME) is None
    with folder.to_read("a.png") as path:
        assert pixels(path).shape == (16, 24, 3)
    job = Job(source, output, str(weights), threshold=1, maps=f"{output}/maps", faces="off")
    assert {planned.reason for planned in dry_run(job).photos} == {"unchanged"}
    assert run(source=source, output=output) == Summary(unchanged=2)
    copy_to(open_folder(source), scans / "1931" / "c.tif", "a.png")  # other content, same name
    assert run(source=source, output=output) == Summary(done=1, unchanged=1)


def test_the_manifest_beside_a_store_is_copied_now_and_then(
    run: RunBatch, scans: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SNAPSHOT_SECONDS", 0)
    seen: list[int] = []

    def look(_: object) -> None:
        folder = open_folder(store)
        if folder.stamp(MANIFEST_NAME) is not None:
            with folder.to_read(MANIFEST_NAME) as path:
                manifest = Manifest(path, is_read_only=True)
                seen.append(manifest.counts().get("done", 0))
                manifest.close()

    assert run(output=store, on_outcome=look).done == 3
    assert seen == [1, 2]


def test_a_batch_beside_a_store_keeps_others_out(run: RunBatch, store: str) -> None:
    lock = RemoteLock(open_folder(store))
    with pytest.raises(UsageError, match=f"at work here .process {os.getpid()} on"):
        run(output=store)
    lock.release()
    assert run(output=store).done == 3


def test_a_store_gives_the_same_pixels(run: RunBatch, scans: Path, out: Path, store: str) -> None:
    run(sidecar=False)
    run(output=store, sidecar=False)
    with open_folder(store).to_read("a.png") as path:
        assert np.array_equal(pixels(path), pixels(out / "a.png"))


def test_names_keep_their_suffix_on_the_way(tmp_path: Path, store: str) -> None:
    write_photo(tmp_path / "a.TIFF")
    copy_to(open_folder(store), tmp_path / "a.TIFF", "deep/er/a.TIFF")
    assert list(open_folder(store).walk()) == ["deep/er/a.TIFF"]
