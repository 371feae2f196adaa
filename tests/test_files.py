from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from oldrestore.files import restore_file, restore_pages
from oldrestore.photo_file import PhotoError
from oldrestore.pipeline import Restorer


@pytest.fixture
def restorer(weights: Path) -> Restorer:
    return Restorer.load(weights, "cpu")


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
