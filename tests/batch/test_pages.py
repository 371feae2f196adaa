"""Pages of a photo of a batch: all of them, held or by windows, within the memory allowed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from photo_folders import RunBatch, below, pixels

from oldrestore import pipeline
from oldrestore.batch import pages as pages_module
from oldrestore.batch.engines import Runtime
from oldrestore.batch.plan import Plan
from oldrestore.batch.runner import Summary, count_reasons
from oldrestore.pipeline import Restorer
from oldrestore.tiling import plan

BAND = 64
OPTIONS = {"tone": 0.0, "threshold": 0.5}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Have every photo taken for small, or for large."""

    def force(is_small: bool) -> None:
        for module in (pages_module, pipeline):
            monkeypatch.setattr(module, "is_best_whole", lambda *_: is_small)
        monkeypatch.setattr(plan, "BANDS", (BAND,))

    return force


def test_every_page_is_restored_with_its_maps(
    run: RunBatch, scans: Path, out: Path, weights: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pages = [rng.integers(0, 65536, (height, 40, 3), np.uint16) for height in (32, 64)]
    with tifffile.TiffWriter(scans / "album.tif") as writer:
        for number, page in enumerate(pages):
            writer.write(page, photometric="rgb", description=f"plate {number}", metadata=None)
    maps = tmp_path / "maps"
    assert run(maps=str(maps), **OPTIONS) == Summary(done=4)
    restorer = Restorer.load(weights, "cpu")
    expected = [restorer.restore(page, **OPTIONS) for page in pages]
    with tifffile.TiffFile(out / "album.tif") as written:
        for number, page in enumerate(written.pages):
            assert np.array_equal(page.asarray(), expected[number].image)
            assert page.description == f"plate {number}"
    second = maps / "album.tif.page-2.mask.png"
    assert np.array_equal(pixels(maps / "album.tif.mask.png"), expected[0].mask)
    assert np.array_equal(pixels(second), expected[1].mask)
    about = json.loads((out / "album.tif.json").read_text())
    assert [page["height"] for page in about["pages"]] == [32, 64]
    both = np.concatenate([found.mask for found in expected]) > 0
    assert about["damaged"] == pytest.approx(both.mean(), abs=1e-6)
    assert {"mask", "mask-2", "change-2", "probability-2"} <= set(about["outputs"])
    assert run(maps=str(maps), **OPTIONS) == Summary(unchanged=4)
    second.unlink()
    plans: list[Plan] = []
    run(maps=str(maps), on_plan=plans.append, **OPTIONS)
    assert count_reasons(plans[0]) == {"unchanged": 3, "results missing": 1}
    assert second.exists()


def test_masks_of_pages(run: RunBatch, scans: Path, out: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    own = np.zeros((2, 32, 40), np.uint8)
    own[0, 4:8], own[1, 20:30] = 255, 255
    photo = np.random.default_rng(0).integers(0, 255, own.shape, np.uint8)
    tifffile.imwrite(scans / "album.tif", photo, photometric="minisblack")
    tifffile.imwrite(masks / "album.tif", own, photometric="minisblack")
    run(mask=str(masks), outside_mask="keep")
    written = tifffile.imread(out / "album.tif")
    assert np.array_equal(written[own == 0], photo[own == 0])
    for page in range(2):
        assert not np.array_equal(written[page][own[page] > 0], photo[page][own[page] > 0])
    tifffile.imwrite(masks / "album.tif", np.stack([*own, own[0]]), photometric="minisblack")
    summary = run(mask=str(masks), outside_mask="keep")
    assert "expected 1 page or 2, as the photo has, got 3" in summary.failed["album.tif"]


def test_a_bad_page_leaves_nothing_of_its_photo(
    run: RunBatch, scans: Path, out: Path, tmp_path: Path
) -> None:
    path, maps = scans / "album.tif", tmp_path / "maps"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(np.zeros((32, 40), np.uint8), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        place = file.pages[1].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[place : place + 9] = bytes(9)
    path.write_bytes(data)
    summary = run(maps=str(maps))
    assert "album.tif: page 2: is damaged" in summary.failed["album.tif"]
    assert not [name for name in below(out) + below(maps) if "album" in name]


@pytest.mark.parametrize("is_small", [True, False])
def test_small_photos_are_held_and_large_ones_go_by_windows(
    is_small: bool,
    held: Callable[[bool], None],
    run: RunBatch,
    scans: Path,
    out: Path,
    weights: Path,
    heights_read: list[int],
    tmp_path: Path,
) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (150, 40, 3), np.uint16)
    strips = {"photometric": "rgb", "rowsperstrip": 8, "compression": "zlib"}
    tifffile.imwrite(scans / "deep.tif", deep, description="a plate of 1910", **strips)
    expected = Restorer.load(weights, "cpu").restore(deep, threshold=1)
    held(is_small)
    assert run(maps=str(tmp_path / "maps")).done == 4
    assert max(heights_read) == (150 if is_small else BAND)
    with tifffile.TiffFile(out / "deep.tif") as written:
        assert np.array_equal(written.asarray(), expected.image)
        assert written.pages[0].description == "a plate of 1910"
    change = np.abs(expected.image / 257 - deep / 257).max(axis=2)
    found = pixels(tmp_path / "maps" / "deep.tif.change.png")
    assert np.array_equal(found, np.ceil(change - 1e-3).astype(np.uint8))


def test_memory_is_shared_by_the_photos_in_work(
    held: Callable[[bool], None], run: RunBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    one, two = (Runtime("cpu", max_memory="1GiB").share(device, n, 1) for n in (1, 2))
    assert (one.max_memory, two.max_memory) == (2**30, 2**29)
    given: list[object] = []
    real = Restorer.restore_windows

    def restore(self: Restorer, *photo: Any, **options: Any) -> object:
        given.append(options["max_memory"])
        return real(self, *photo, **options)

    monkeypatch.setattr(Restorer, "restore_windows", restore)
    run(max_memory="1GiB")
    assert given == [2**29] * 3  # of two slots
    held(False)
    message = run(max_memory="10MiB", strength=0.5).failed["a.png"]
    assert "a.png: max_memory: a photo of 16 x 24 px needs" in message
    assert "got 5 MiB; so much is left for each of the photos in work" in message
