"""One page of a photo of a batch: restored into its files, with what is said and seen of it.

A small page is held: it is read before the networks have it and written after, beside those of
other photos. A large one goes through by windows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from oldrestore.batch.maps import MapsOfPage
from oldrestore.photo_file import Array, ArrayPage, Page, PhotoError
from oldrestore.pipeline import Restorer
from oldrestore.tiling.plan import TooLittleMemoryError, is_best_whole
from oldrestore.tiling.windows import ArrayWindows, WindowReader, WindowWriter

# what ``Restorer.restore_windows`` calls the writers of each kind
RESULTS = {"photo": "result", "mask": "mask_result", "probability": "probability_result"}


class PageWriter(WindowWriter, Protocol):
    """A writer that says what it holds."""

    held_bytes: int


@dataclass(frozen=True)
class Share:
    """What one of the photos that are in the networks together may take.

    slot: is held while the networks run. threads: of the networks on a CPU.
    max_memory: bytes of one photo, see ``Restorer.restore``.
    """

    slot: AbstractContextManager[Any]
    threads: int
    max_memory: int


@dataclass(frozen=True)
class RestoredPage:
    """record: what was done to it, for manifest and sidecar. strip: for the report."""

    record: dict[str, Any]
    strip: Image.Image


def restore_page(
    restorer: Restorer,
    page: Page,
    mask: Page | str | None,
    writers: Mapping[str, PageWriter],
    share: Share,
    wishes: Mapping[str, Any],
) -> RestoredPage:
    """Restore a page.

    Args:
        mask: a page of its own, "auto" or None.
        writers: of the result ("photo"), and of those maps that are wanted, by kind.
        wishes: see ``Restorer.restore``.

    Raises:
        ValueError: see ``Restorer.restore_windows``.
    """
    torch.set_num_threads(share.threads)
    is_small = is_best_whole(restorer, page.size, share.max_memory)
    reader: WindowReader = page
    if is_small and not isinstance(page, ArrayPage):
        reader = ArrayWindows(page.read_all())
    maps = MapsOfPage(reader, writers)
    kinds = [kind for kind in RESULTS if kind != "probability" or kind in writers]
    takers = {kind: maps.writer(kind) for kind in kinds}
    late = {kind: _Late(taker) for kind, taker in takers.items()} if is_small else {}
    results: dict[str, Any] = {RESULTS[kind]: late.get(kind, takers[kind]) for kind in kinds}
    held = page.held_bytes + sum(writer.held_bytes for writer in writers.values())
    with share.slot:
        try:
            found = restorer.restore_windows(
                reader,
                **results,
                mask=mask,
                max_memory=share.max_memory,
                held=held,
                **wishes,
            )
        except TooLittleMemoryError as error:
            advice = "so much is left for each of the photos in work: try fewer --workers"
            raise PhotoError(f"{error}; {advice}") from error
    for taker in late.values():
        taker.pass_on()
    record = {
        "width": page.size[1],
        "height": page.size[0],
        "damaged": None if found.damaged is None else round(found.damaged, 6),
        "changed": round(maps.changed, 6),
        "mean_change": round(maps.mean_change, 6),
        "denoise": list(found.denoise),
        "tone": [dataclasses.asdict(curve) for curve in found.tone],
        **({"faces": found.faces_as_json()} if restorer.faces is not None else {}),
        "seconds": round(found.seconds, 3),
    }
    return RestoredPage(record, maps.strip())


def record_of(pages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is said of a photo: of several pages their means and sums, and each under "pages"."""
    first = pages[0]
    if len(pages) == 1:
        return first
    sizes = [page["width"] * page["height"] for page in pages]

    def mean(key: str) -> float | None:
        if first[key] is None:
            return None
        return round(float(np.average([page[key] for page in pages], weights=sizes)), 6)

    return {
        **first,
        **{key: mean(key) for key in ("damaged", "changed", "mean_change")},
        **{
            key: [one for page in pages for one in page[key]]
            for key in ("denoise", "tone", "faces")
            if key in first
        },
        "seconds": round(sum(page["seconds"] for page in pages), 3),
        "pages": list(pages),
    }


class _Late:
    """Keeps windows of a whole page, for a writer that is to get them later."""

    def __init__(self, writer: WindowWriter) -> None:
        self._writer = writer
        self._windows: list[tuple[int, int, Array]] = []

    def write(self, top: int, left: int, pixels: Array) -> None:
        self._windows.append((top, left, pixels))

    def pass_on(self) -> None:
        """Write what was kept."""
        for window in self._windows:
            self._writer.write(*window)
