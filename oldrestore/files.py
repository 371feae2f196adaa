"""Files in, files out: every page of a photo restored and written with its metadata.

Between a file and ``Restorer``: pages are read upright (``photo_file``), restored one by one, and
written in the format of the target's suffix, whole or not at all.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oldrestore.photo_file import Page, PhotoError, create_photo, name_of, open_photo
from oldrestore.pipeline import Restorer
from oldrestore.restoration import Restoration


def restore_pages(
    restorer: Restorer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    mask: Any = "auto",
    **options: Any,
) -> Iterator[tuple[Page, Restoration]]:
    """Restore every page of a file; the target is there when the last page has been given.

    Type, depth, size, colour profile, EXIF, XMP, IPTC and resolution stay; 16 bits are never cut to
    8. If something fails, or no more pages are asked for, nothing is left behind.

    Args:
        source: a photo, of one page or more.
        target: file to write, its folders too; its suffix says the format, and only TIFF holds more
            than one page.
        mask: "auto", None, or a file: of one page for all, or of as many pages as the source.
        options: see ``Restorer.restore``.

    Yields:
        Each page as it was, and what came of it: ``image`` (H, W, C) and ``mask`` (H, W) arrays.

    Raises:
        PhotoError: the source or the mask cannot be read, or the target cannot be written.
        ValueError: see ``Restorer.restore``.
    """
    with open_photo(source) as photo, create_photo(target, photo) as written:
        for index, page in enumerate(photo.pages()):
            pixels = page.read_all()
            is_file = mask is not None and mask != "auto"
            asked = _mask_page(mask, photo.page_count, index) if is_file else mask
            restoration = restorer.restore(pixels, mask=asked, **options)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with written.add_page(page) as windows:
                windows.write(0, 0, restoration.image)
            yield page, restoration


def restore_file(
    restorer: Restorer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    mask: Any = "auto",
    **options: Any,
) -> None:
    """Restore every page of a file into another; see ``restore_pages``."""
    for _ in restore_pages(restorer, source, target, mask=mask, **options):
        pass


def _mask_page(mask: str | os.PathLike[str], pages: int, index: int) -> Any:
    """The mask of a page: a file, or (H, W, C)."""
    if pages == 1:
        return mask
    with open_photo(mask) as file:
        if file.page_count not in (1, pages):
            expected = f"1 page or {pages}, as the photo has"
            raise PhotoError(f"{name_of(mask)}: expected {expected}, got {file.page_count}")
        return file.page(min(index, file.page_count - 1)).read_all()
