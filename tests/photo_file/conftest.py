"""Photos of every kind, made here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from oldrestore.photo_file import Array, create_photo, open_photo


@pytest.fixture(scope="session")
def profile() -> bytes:
    """A colour profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="session")
def exif() -> Image.Exif:
    """EXIF with tags in all its directories, turned clockwise."""
    block = Image.Exif()
    block[271] = "Scanner & Sons"
    block[274] = 6
    block[306] = "1931:05:17 10:00:00"
    block[282], block[283], block[296] = 600.0, 300.0, 2
    block[34665] = {36867: "1931:05:17 10:00:00", 37510: b"ASCII\0\0\0a note", 40962: 40, 40963: 24}
    block[34853] = {1: "N", 2: (48.0, 12.0, 30.5)}
    return block


@pytest.fixture(scope="session")
def xmp() -> bytes:
    """XMP that says how the photo is turned."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf'
        b'-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        b'tiff:Orientation="6" tiff:Artist="A. Nonymous"/></rdf:RDF></x:xmpmeta>'
    )


@pytest.fixture(scope="session")
def iptc() -> bytes:
    """IPTC records: a caption."""
    return b"\x1c\x02\x78\x00\x0bA caption.\r"


@pytest.fixture
def random_pixels() -> Callable[..., Array]:
    """Pixels of a shape and type; the same for the same shape."""

    def pixels(*shape: int, dtype: type = np.uint8) -> Array:
        top = np.iinfo(dtype).max
        return np.random.default_rng(0).integers(0, top, shape, dtype, endpoint=True)

    return pixels


@pytest.fixture
def copy_photo() -> Callable[..., None]:
    """Read every page by windows and write it; windows of odd sizes."""

    def copy(source: Path | bytes, target: Path, rows: int = 37, columns: int = 41) -> None:
        with open_photo(source) as photo, create_photo(target, photo) as written:
            for page in photo.pages():
                height, width = page.size
                with written.add_page(page) as windows:
                    for top in range(0, height, rows):
                        for left in range(0, width, columns):
                            size = min(rows, height - top), min(columns, width - left)
                            windows.write(top, left, page.read(top, left, *size))

    return copy
