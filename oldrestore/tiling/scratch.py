"""Whole maps that do not fit into memory: kept in a scratch file, of which windows are mapped."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class StoredMap:
    """A map (1, C, H, W), in memory or in a file, row after row.

    Windows of the file are mapped for as long as it takes to copy them, so that what the process
    holds stays small. The file has no name and goes with the process.

    Args:
        channels, height, width: of the map.
        in_memory: whether it is kept there.
        folder: of the scratch file; None: the system's.
        dtype: of what is kept.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        in_memory: bool,
        folder: str | None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self.channels, self.height, self.width = channels, height, width
        self._dtype = np.dtype(dtype)
        self.nbytes = channels * height * width * self._dtype.itemsize
        self._memory: NDArray[np.floating[Any]] | None = None
        self._file: Any = None
        if in_memory:
            self._memory = np.empty((height, channels, width), self._dtype)
            return
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by ``free``)
        try:
            _reserve(self._file.fileno(), self.nbytes)
        except OSError as error:
            self._file.close()
            where = folder or tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"no room for a scratch file of {self.nbytes} bytes in {where} ({error.strerror}): "
                "make room there, or set TMPDIR to another folder",
            ) from error

    def put(self, top: int, rows: Tensor) -> None:
        """Keep rows (1, C, h, W) from ``top`` on."""
        values = rows[0].permute(1, 0, 2).float()  # NumPy knows no bfloat16
        self._window(top, top + rows.shape[2])[...] = values.cpu().numpy()

    def get(self, top: int, bottom: int) -> Tensor:
        """A copy of rows [top, bottom), contiguous (1, C, h, W)."""
        window = torch.from_numpy(
            np.ascontiguousarray(self._window(top, bottom).transpose(1, 0, 2))
        )
        return window[None]

    @property
    def is_in_memory(self) -> bool:
        """Or else in a file."""
        return self._memory is not None

    def free(self) -> None:
        """Give memory or file back; the map is gone."""
        self._memory = None
        if self._file is not None:
            self._file.close()

    def _window(self, top: int, bottom: int) -> NDArray[np.floating[Any]]:
        if self._memory is not None:
            return self._memory[top:bottom]
        shape = (bottom - top, self.channels, self.width)
        offset = top * self.channels * self.width * self._dtype.itemsize
        return np.memmap(self._file, self._dtype, "r+", offset, shape)


class Store:
    """Makes maps: in memory as long as the allowance lasts, then in scratch files.

    Args:
        allowance: bytes of maps in memory.
        folder: of scratch files; None: the system's.
    """

    def __init__(self, allowance: int, folder: str | None) -> None:
        self._left = allowance
        self._folder = folder

    def new(self, channels: int, height: int, width: int) -> StoredMap:
        """An empty map."""
        size = channels * height * width * np.dtype(np.float32).itemsize
        in_memory = size <= self._left
        made = StoredMap(channels, height, width, in_memory=in_memory, folder=self._folder)
        if in_memory:
            self._left -= size
        return made

    def free(self, stored: StoredMap) -> None:
        """Give a map of this store back."""
        if stored.is_in_memory:
            self._left += stored.nbytes
        stored.free()


def _reserve(file: int, size: int) -> None:
    """Room on the disk, before a mapped page finds none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
