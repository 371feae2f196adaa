"""Files in, files out: every page of a photo restored and written with its metadata.

Between a file and ``Restorer``: pages are read upright and by windows (``photo_file``), restored
one by one, and written by windows in the format of the target's suffix, whole or not at all.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from oldrestore.photo_file import (
    Array,
    ArrayPage,
    Metadata,
    Page,
    PageWriter,
    PhotoError,
    PhotoFile,
    PhotoWriter,
    create_photo,
    name_of,
    open_photo,
)
from oldrestore.pipeline import Restorer
from oldrestore.restoration import Restoration

UINT16_TO_UINT8 = 257

FilePath = str | os.PathLike[str]


def restore_pages(
    restorer: Restorer,
    source: FilePath,
    target: FilePath,
    *,
    mask: Any = "auto",
    save_mask: FilePath | None = None,
    compare: FilePath | None = None,
    **options: Any,
) -> Iterator[tuple[Page, Restoration]]:
    """Restore every page of a file; the target is there when the last page has been given.

    Type, depth, size, colour profile, EXIF, XMP, IPTC and resolution stay; 16 bits are never cut to
    8. A TIFF of any size goes through by windows. If something fails, or no more pages are asked
    for, nothing is left of the target.

    Args:
        source: a photo, of one page or more.
        target: file to write, its folders too; its suffix says the format, and only TIFF holds more
            than one page.
        mask: "auto", None, or a file: of one page for all, or of as many pages as the source.
        save_mask: file for what was taken for damage, 0 and 255; of later pages ``page_path`` says.
        compare: file for a picture of before and after, likewise.
        options: see ``Restorer.restore``.

    Yields:
        Each page as it was, and what came of it, without image and mask.

    Raises:
        PhotoError: the source or the mask cannot be read, or a file cannot be written.
        ValueError: see ``Restorer.restore``; or ``save_mask`` where no damage is looked for.
    """
    if save_mask is not None and (mask is None or not restorer.mapping.uses_mask):
        raise ValueError("save_mask: no damage is looked for with these options and weights")
    is_file = mask is not None and mask != "auto"
    with ExitStack() as files:
        photo = files.enter_context(open_photo(source))
        written = files.enter_context(create_photo(target, photo))
        masks = files.enter_context(open_masks(mask, photo)) if is_file else None
        for number, page in enumerate(photo.pages(), start=1):
            with ExitStack() as opened:
                result = opened.enter_context(LatePage(written, page))
                writers: dict[str, Any] = {"result": result}
                if save_mask is not None:
                    writers["mask_result"] = picture_file(
                        opened, page_path(save_mask, number), (*page.size, 1)
                    )
                if compare is not None:
                    shape = page.size[0], 2 * page.size[1], 3
                    writers["compare"] = picture_file(opened, page_path(compare, number), shape)
                held = page.held_bytes + sum(writer.held_bytes for writer in writers.values())
                if compare is not None:
                    writers["result"] = _Compared(page, result, writers.pop("compare"))
                restoration = restorer.restore_windows(
                    page,
                    **writers,
                    mask=mask if masks is None else mask_page(masks, number),
                    held=held,
                    **options,
                )
            yield page, restoration


def restore_file(
    restorer: Restorer, source: FilePath, target: FilePath, *, mask: Any = "auto", **options: Any
) -> None:
    """Restore every page of a file into another; see ``restore_pages``."""
    for _ in restore_pages(restorer, source, target, mask=mask, **options):
        pass


def detect_pages(
    restorer: Restorer, source: FilePath, target: FilePath, **options: Any
) -> Iterator[float]:
    """Find damage on every page of a file; see ``restore_pages``, and ``Restorer.detect``.

    Yields:
        The share of damaged pixels of each page, when its mask, 0 and 255, is written.
    """
    with open_photo(source) as photo:
        for number, page in enumerate(photo.pages(), start=1):
            with ExitStack() as opened:
                result = picture_file(opened, page_path(target, number), (*page.size, 1))
                held = page.held_bytes + result.held_bytes
                damaged = restorer.detect_windows(page, result, held=held, **options)
            yield damaged


def page_path(path: FilePath, number: int) -> Path:
    """Where what is of a page goes: ``path`` for the first, ``NAME-page-2.png`` for the second."""
    path = Path(path)
    return path if number == 1 else path.with_name(f"{path.stem}-page-{number}{path.suffix}")


def open_masks(mask: FilePath, photo: PhotoFile) -> PhotoFile:
    """The masks of a photo: a file of one page, or of as many as the photo.

    Raises:
        PhotoError: it has another number of pages, or cannot be read.
    """
    masks = open_photo(mask)
    if masks.page_count in (1, photo.page_count):
        return masks
    with masks:
        pages = "1 page" if photo.page_count == 1 else f"1 page or {photo.page_count}"
        message = f"expected {pages}, as the photo has, got {masks.page_count}"
        raise PhotoError(f"{name_of(mask)}: {message}")


def mask_page(masks: PhotoFile, number: int) -> Page:
    """The mask of a page, counted from 1."""
    return masks.page(min(number, masks.page_count) - 1)


class LatePage:
    """A page that is opened when its first window comes; leaving its ``with`` block closes it.

    So a photo that fails before leaves no folder behind. What the format cannot hold is refused at
    once.
    """

    def __init__(self, photo: PhotoWriter, page: Page) -> None:
        photo.check_holds(page)
        self.held_bytes = photo.held_bytes(page)
        self._photo, self._page = photo, page
        self._writer: PageWriter | None = None

    def __enter__(self) -> "LatePage":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._writer is not None:
            self._writer.close()

    def write(self, top: int, left: int, pixels: Array) -> None:
        """A window (h, w, channels); see ``PageWriter.write``."""
        if self._writer is None:
            self._photo.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._photo.add_page(self._page)
        self._writer.write(top, left, pixels)


def side_by_side(before: Array, after: Array) -> Array:
    """One picture, 8-bit RGB, with ``before`` (H, W, C) on the left and ``after`` on the right."""
    both = np.concatenate([before, after], axis=1)
    both = (both // UINT16_TO_UINT8).astype(np.uint8) if both.dtype == np.uint16 else both
    colours = both[:, :, :1] if both.shape[2] <= 2 else both[:, :, :3]
    return np.broadcast_to(colours, (*both.shape[:2], 3))


class _Compared:
    """Takes rows of the result, and writes them beside those that were."""

    def __init__(self, before: Page, result: LatePage, picture: LatePage) -> None:
        self._before, self._result, self._picture = before, result, picture

    def write(self, top: int, left: int, pixels: Array) -> None:
        """A window of the page's whole width."""
        self._result.write(top, left, pixels)
        before = self._before.read(top, left, *pixels.shape[:2])
        self._picture.write(top, 0, side_by_side(before, pixels))


def picture_file(opened: ExitStack, path: Path, shape: tuple[int, int, int]) -> LatePage:
    """A picture (H, W, C) of 8 bits in a file of its own, until ``opened`` is closed."""
    page = ArrayPage(str(path), np.broadcast_to(np.uint8(0), shape), Metadata())
    return opened.enter_context(LatePage(opened.enter_context(PhotoWriter(path)), page))
