"""The face stage over whole photos: in memory, or as restored rows pass by."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from oldrestore.face.detect import Face
from oldrestore.face.stage import FaceStage, FoundFace, left_alone
from oldrestore.image import Photo, decode, encode_pixels

Take = Callable[[int, Tensor], None]  # first row, rows (1, C, h, W)
R = TypeVar("R")  # Restoration, which is made of what is here

HELD_SHARE = 0.25  # of the memory allowed, that rows may take which wait for a face
COPIES = 2  # of these rows at a time
TOO_LARGE = "its part of the photo takes more than a quarter of the memory allowed"


class RowSource(Protocol):
    """A photo of which rows (1, C, h, W) are read."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def read(self) -> Callable[[int, int], Tensor]: ...


def with_faces(stage: FaceStage | None, before: Photo, restored: R, strength: float) -> R:
    """Enhance the faces of a restored photo, or of a batch of one size.

    Args:
        stage: None: nothing is done.
        before: as it came in.
        restored: the Restoration of it.
        strength: share of the change that is made; 0: nothing is done.

    Returns:
        ``restored`` with its faces enhanced, and what came of each.
    """
    if stage is None or strength == 0:
        return restored
    given: Any = restored
    start = time.perf_counter()
    after = decode(given.image)
    pixels = after.pixels.cpu().clone()
    found: list[FoundFace] = []
    for index in range(before.batch):
        told = stage.apply(before.pixels[index].cpu(), pixels[index], strength)
        found += [dataclasses.replace(face, photo=index) for face in told]
    image = encode_pixels(after, pixels) if any(face.kept for face in found) else given.image
    seconds = given.seconds + time.perf_counter() - start
    changed: R = dataclasses.replace(given, image=image, faces=tuple(found), seconds=seconds)
    return changed


class FaceRows:
    """Takes restored rows from the top down, and gives them on with their faces enhanced.

    Rows are held back until the faces in them are complete.

    Args:
        stage: None: rows are given on as they come.
        source: the photo as it came; read once, here.
        write: gets the rows, in order.
        strength: share of the change that is made; 0: as without a stage.
        budget: bytes that restoring may take; a face that needs more than its share of them is
            left alone.

    Attributes:
        held_bytes: the most that is held back.
    """

    def __init__(
        self,
        stage: FaceStage | None,
        source: RowSource,
        write: Take,
        strength: float,
        budget: int,
    ) -> None:
        self._stage = stage if strength > 0 else None
        self._size = (source.height, source.width)
        self._write, self._strength = write, strength
        self._told: list[FoundFace] = []
        self._waiting: list[tuple[Face, tuple[int, int, int, int]]] = []
        self._top = 0  # of the rows that are held back
        self._held: Tensor | None = None
        self.held_bytes = 0
        if self._stage is None:
            return

        def read(top: int, left: int, bottom: int, right: int) -> Tensor:
            return source.read(top, bottom)[..., left:right]

        row_bytes = COPIES * source.read(0, 1).nbytes
        for face in self._stage.find(read, *self._size):
            window = self._stage.window_of(face, *self._size)
            needed = (window[2] - window[0]) * row_bytes
            if needed > HELD_SHARE * budget:
                self._told.append(left_alone(face, TOO_LARGE))
            else:
                self._waiting.append((face, window))
                self.held_bytes = max(self.held_bytes, needed)

    def put(self, top: int, rows: Tensor) -> None:
        """Take rows (1, C, h, W), which start at ``top``."""
        if not self._waiting and self._held is None:
            self._write(top, rows)
            return
        self._held = rows.clone() if self._held is None else torch.cat([self._held, rows], dim=2)
        self._top = top + rows.shape[2] - self._held.shape[2]
        reached = top + rows.shape[2]
        while self._waiting and self._waiting[0][1][2] <= reached:
            self._enhance(*self._waiting.pop(0))
        done = min([reached, *(window[0] for _, window in self._waiting)]) - self._top
        if done > 0:
            self._write(self._top, self._held[:, :, :done])
            rest = self._held[:, :, done:]
            self._held = rest.clone() if rest.shape[2] else None

    def told_in(self, restoration: R) -> R:
        """The Restoration with what came of the faces."""
        given: Any = restoration
        changed: R = dataclasses.replace(given, faces=tuple(self._told))
        return changed

    def _enhance(self, face: Face, window: tuple[int, int, int, int]) -> None:
        top, left, bottom, right = window
        assert self._held is not None
        assert self._stage is not None
        part = self._held[:, :, top - self._top : bottom - self._top, left:right]
        new, told = self._stage.enhance(face, part, top, left, self._size, self._strength)
        if new is not None:
            part.copy_(new)
        self._told.append(told)
