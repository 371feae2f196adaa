from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from oldrestore import pipeline
from oldrestore.files import detect_pages, page_path, restore_file, restore_pages
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer
from oldrestore.tiling import plan

BAND = 64


@pytest.fixture
def restorer(weights: Path) -> Restorer:
    return Restorer.load(weights, "cpu", faces="off")


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """Three pages of 16-bit RGB."""
    rng = np.random.default_rng(0)
    path = tmp_path / "masters" / "master.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            page = rng.integers(0, 65536, (24, 32, 3), np.uint16)
            writer.write(page, photometric="rgb", compression="lzw", metadata=None)
    return path


def test_every_page_is_restored_as_its_array_is(master: Path, restorer: Restorer) -> None:
    target = master.with_name("new") / "out.tif"
    restore_file(restorer, master, target, denoise=0.5)
    for index in range(3):
        page = tifffile.imread(master, key=index)
        expected = restorer.restore(page, denoise=0.5).image
        assert np.array_equal(tifffile.imread(target, key=index), expected)
        assert not np.array_equal(expected, page)
        assert len(np.unique(expected & 0xFF)) > 200  # the low byte is no copy of the high one


def test_16_bits_of_colour_need_no_tiff(master: Path, restorer: Restorer, tmp_path: Path) -> None:
    page = tifffile.imread(master, key=0)
    tifffile.imwrite(tmp_path / "one.tif", page, photometric="rgb", metadata=None)
    restore_file(restorer, tmp_path / "one.tif", tmp_path / "one.png")
    restore_file(restorer, tmp_path / "one.png", tmp_path / "two.png", strength=0.0)
    assert (tmp_path / "one.png").read_bytes()[24] == 16
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_no_strength_gives_the_same_pixels(master: Path, restorer: Restorer) -> None:
    target = master.with_name("out.tif")
    restore_file(restorer, master, target, strength=0.0)
    for index in range(3):
        assert np.array_equal(
            tifffile.imread(target, key=index), tifffile.imread(master, key=index)
        )


def test_nothing_is_left_of_what_is_not_finished(master: Path, restorer: Restorer) -> None:
    target = master.with_name("out.tif")
    pages = restore_pages(restorer, master, target)
    next(pages)
    assert len(list(master.parent.iterdir())) == 2  # the source, and a file that is not named so
    assert not target.exists()
    pages.close()
    assert [path.name for path in master.parent.iterdir()] == [master.name]


def test_a_broken_page_leaves_nothing(master: Path, restorer: Restorer) -> None:
    data = bytearray(master.read_bytes())
    with tifffile.TiffFile(master) as file:
        place = file.pages[2].dataoffsets[0]
    data[place : place + 400] = bytes(400)
    master.write_bytes(data)
    with pytest.raises(PhotoError, match=r"master\.tif: page 3: is damaged or cut short"):
        restore_file(restorer, master, master.with_name("out.tif"))
    assert [path.name for path in master.parent.iterdir()] == [master.name]


def test_a_mask_of_one_page_serves_all(master: Path, restorer: Restorer) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 6:20] = 255
    Image.fromarray(mask).save(master.with_name("mask.png"))
    target = master.with_name("out.tif")
    restore_file(restorer, master, target, mask=master.with_name("mask.png"), outside_mask="keep")
    for index in range(3):
        page, restored = (tifffile.imread(path, key=index) for path in (master, target))
        assert np.array_equal(restored[mask == 0], page[mask == 0])
        assert not np.array_equal(restored[mask > 0], page[mask > 0])


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two tall pages of 16 bits: RGB in tiles, grey in strips."""
    rng = np.random.default_rng(0)
    path = tmp_path / "album.tif"
    with tifffile.TiffWriter(path) as writer:
        for shape, options in (
            ((300, 40, 3), {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}),
            ((260, 50), {"photometric": "minisblack", "rowsperstrip": 7}),
        ):
            writer.write(rng.integers(0, 65536, shape, np.uint16), metadata=None, **options)
    return path


@pytest.fixture
def windows(heights_read: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Photos are worked on in bands; heights of the windows that are read of pages."""
    monkeypatch.setattr(pipeline, "is_best_whole", lambda *_: False)
    monkeypatch.setattr(plan, "BANDS", (BAND,))
    return heights_read


def test_tiffs_go_through_by_windows(album: Path, restorer: Restorer, windows: list[int]) -> None:
    folder = album.with_name("new")
    pages = [tifffile.imread(album, key=index) for index in range(2)]
    expected = [restorer.restore(page, tone=1.0) for page in pages]
    windows.clear()
    out, mask, pair = folder / "out.tif", folder / "mask.png", folder / "pair.png"
    restored = restore_pages(restorer, album, out, save_mask=mask, compare=pair, tone=1.0)
    for index, (_, found) in enumerate(restored):
        own, whole = pages[index], expected[index]
        assert (found.image, found.mask) == (None, None)
        assert (found.tone, found.damaged) == (whole.tone, whole.damaged)
        with Image.open(page_path(mask, index + 1)) as picture:
            assert np.array_equal(np.asarray(picture), whole.mask)
        with Image.open(page_path(pair, index + 1)) as picture:
            both = np.asarray(picture).reshape(len(own), -1, 3)
        shown = np.concatenate([own, whole.image], axis=1).reshape(len(own), both.shape[1], -1)
        assert np.array_equal(both, np.broadcast_to(shown // 257, both.shape))
    assert max(windows) <= BAND
    for index, whole in enumerate(expected):
        assert np.array_equal(tifffile.imread(out, key=index), whole.image)
    shares = list(detect_pages(restorer, album, mask, threshold=0.4))
    for index, share in enumerate(shares):
        found = restorer.detect(pages[index], threshold=0.4)
        with Image.open(page_path(mask, index + 1)) as picture:
            assert np.array_equal(np.asarray(picture), found)
        assert share == pytest.approx((found > 0).mean())
    assert max(windows) <= BAND


@pytest.mark.parametrize("kind", ["bits", "levels", "RGBA", "deep"])
def test_masks_are_read_by_windows_as_they_are_whole(
    kind: str, album: Path, restorer: Restorer, windows: list[int]
) -> None:
    own = np.zeros((300, 40), np.uint16)
    own[200:240, 5:20] = 1
    own[20:30, 5:20] = 2  # of 5: less than half
    own[40:50, 5:20] = 3
    values = {
        "bits": (own > 0).astype(np.uint8),
        "levels": (own * 80).clip(0, 255).astype(np.uint8),
        "RGBA": np.stack([own > 2, own > 2, own > 2, own >= 0], axis=2).astype(np.uint8) * 255,
        "deep": own * 13_000,
    }[kind]
    path = album.with_name("mask.tif")
    with tifffile.TiffWriter(album.with_name("one.tif")) as writer:
        writer.write(tifffile.imread(album, key=0), photometric="rgb", metadata=None)
    options = {"extrasamples": ["unassalpha"]} if kind == "RGBA" else {}
    photometric = "rgb" if kind == "RGBA" else "minisblack"
    tifffile.imwrite(path, values, photometric=photometric, metadata=None, **options)
    out = album.with_name("out.tif")
    restore_file(restorer, album.with_name("one.tif"), out, mask=path)
    expected = restorer.restore(tifffile.imread(album, key=0), mask=values)
    assert np.array_equal(tifffile.imread(out), expected.image)
    marked = {"bits": 900, "levels": 300, "RGBA": 150, "deep": 150}[kind]
    assert expected.damaged == pytest.approx(marked / (300 * 40))
    assert max(windows) <= 256


def test_what_is_no_mask_is_named(album: Path, restorer: Restorer, windows: list[int]) -> None:
    path = album.with_name("mask.tif")
    colours = np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)
    tifffile.imwrite(path, colours, photometric="rgb")
    target = album.with_name("out.tif")
    with pytest.raises(PhotoError, match=r"mask\.tif: expected one channel or equal ones"):
        restore_file(restorer, album, target, mask=path)
    tifffile.imwrite(path, colours[:99, :, 0])
    with pytest.raises(PhotoError, match=r"mask\.tif: expected \(300, 40\) to match photo"):
        restore_file(restorer, album, target, mask=path)
    with pytest.raises(ValueError, match="save_mask: no damage is looked for"):
        list(restore_pages(restorer, album, target, mask=None, save_mask=path))
    assert not target.exists()
    assert windows


def test_what_a_format_cannot_hold_is_refused_before_the_work(
    album: Path, restorer: Restorer, tmp_path: Path
) -> None:
    pages = np.zeros((8, 40_000), np.uint8)
    tifffile.imwrite(tmp_path / "wide.tif", pages, photometric="minisblack")
    restored = restore_pages(
        restorer, tmp_path / "wide.tif", tmp_path / "out.tif", compare=tmp_path / "pair.jpg"
    )
    with pytest.raises(PhotoError, match=r"pair\.jpg: JPEG cannot hold sides of over 65500 px"):
        next(restored)
    assert not (tmp_path / "out.tif").exists()
