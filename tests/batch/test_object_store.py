"""A batch between buckets of an S3 server: objects come in parts, and are never renamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_folders import RunBatch, below, pixels, write_photo

from oldrestore.batch.lock import LOCK_NAME
from oldrestore.batch.runner import MANIFEST_NAME, Summary
from oldrestore.batch.storage import RemoteFolder, open_folder, write_file

MISSING = 'moto and s3fs are not installed (pip install ".[test]")'
PART_BYTES = 256  # of these tests' uploads, so that a result of a kilobyte has several parts
MORE = 6  # photos: more than are in work at a time


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    server = pytest.importorskip("moto.server", reason=MISSING)
    served = server.ThreadedMotoServer(port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    s3fs = pytest.importorskip("s3fs", reason=MISSING)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("archive")
    yield "s3://archive"
    files.rm("archive", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def parts(bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Has objects uploaded in small parts; what was asked of the server for each part."""
    import moto.s3.models
    import s3fs

    sent: list[dict[str, Any]] = []
    call = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "upload_part":
            sent.append(kwargs)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: PART_BYTES)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    return sent


def refuse(monkeypatch: pytest.MonkeyPatch, method: str, key_ending: str) -> None:
    """Have the server answer one kind of request for some objects as if it had broken down."""
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def broken(self: Any, asked: str, *args: Any, **kwargs: Any) -> Any:
        if (
            asked == method
            and kwargs["Key"].endswith(key_ending)
            and kwargs.get("PartNumber", 2) > 1
        ):
            raise OSError("InternalError: We encountered an internal error. Please try again.")
        return await call(self, asked, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", broken)


def copy_photos(scans: Path, url: str) -> None:
    for name in below(scans):
        content = (scans / name).read_bytes()
        write_file(open_folder(url), name, lambda path, content=content: path.write_bytes(content))


def uploads(folder: RemoteFolder) -> list[Any]:
    """Those that were begun and neither completed nor given up."""
    found: list[Any] = folder.files.call_s3("list_multipart_uploads", Bucket="archive").get(
        "Uploads", []
    )
    return found


def test_a_batch_between_buckets_resumes(
    run: RunBatch, scans: Path, out: Path, bucket: str
) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    for index in range(MORE):
        write_photo(scans / "more" / f"{index}.png", index)
    count = MORE + 3
    copy_photos(scans, source)
    done: list[object] = []
    first = run(
        source=source,
        output=output,
        maps=f"{output}/maps",
        should_stop=lambda: bool(done),
        on_outcome=done.append,
    )
    assert first.interrupted
    assert 0 < first.done < count
    folder = open_folder(output)
    assert folder.stamp(MANIFEST_NAME) is not None
    assert folder.stamp(LOCK_NAME) is None
    second = run(source=source, output=output, maps=f"{output}/maps")
    assert second == Summary(done=count - first.done, unchanged=first.done)
    assert run(source=source, output=output, maps=f"{output}/maps").unchanged == count
    assert len(list(folder.walk([f"{output}/maps"]))) == count
    assert folder.stamp("maps/1931/c.tif.mask.png") is not None
    run(sidecar=False)
    with folder.to_read("a.png") as path:
        assert np.array_equal(pixels(path), pixels(out / "a.png"))
    folder.files.pipe_file("archive/in/a.png", (scans / "1931" / "c.tif").read_bytes())
    again = run(source=source, output=output, maps=f"{output}/maps")
    assert again == Summary(done=1, unchanged=count - 1)  # other content, the same name


def test_objects_of_several_parts_are_whole(
    run: RunBatch, scans: Path, out: Path, bucket: str, parts: list[dict[str, Any]]
) -> None:
    assert run(output=bucket).done == 3
    assert max(part["PartNumber"] for part in parts if part["Key"] == "a.png") > 1
    assert uploads(open_folder(bucket)) == []
    run(sidecar=False)
    with open_folder(bucket).to_read("a.png") as path:
        assert path.read_bytes() == (out / "a.png").read_bytes()


def test_an_upload_that_breaks_off_leaves_what_was_there(
    run: RunBatch, bucket: str, parts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(output=bucket, strength=0.5)
    folder = open_folder(bucket)
    with folder.to_read("a.png") as path:
        before = path.read_bytes()
    with monkeypatch.context() as broken:
        refuse(broken, "upload_part", "a.png")
        summary = run(output=bucket)
    assert (summary.done, list(summary.failed)) == (2, ["a.png"])
    assert "InternalError" in summary.failed["a.png"]
    with folder.to_read("a.png") as path:
        assert path.read_bytes() == before
    assert uploads(folder) == []
    assert run(output=bucket, retry_failed=True) == Summary(done=1, unchanged=2)


def test_a_result_that_is_refused_is_not_there(
    run: RunBatch, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        refuse(broken, "put_object", "1931/b.jpg")
        summary = run(output=bucket)
    assert (summary.done, list(summary.failed)) == (2, ["1931/b.jpg"])
    folder = open_folder(bucket)
    assert folder.stamp("1931/b.jpg") is None
    assert folder.stamp("1931/b.jpg.json") is None
    assert run(output=bucket, retry_failed=True) == Summary(done=1, unchanged=2)
