"""Bands of a photo on their way to the device and back.

On CUDA through pinned memory on a stream of their own, so that copies run beside the networks; what
comes back is waited for when the next band is under way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Transfers:
    """Moves bands between the host and one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        self._waiting: list[tuple[Callable[[Tensor], None], Tensor, torch.cuda.Event]] = []

    def up(self, rows: Tensor) -> Tensor:
        """Rows of the host, on the device."""
        if self._stream is None:
            return rows.to(self._device)
        pinned = rows.pin_memory()
        with torch.cuda.stream(self._stream):
            moved = pinned.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        moved.record_stream(current)  # its memory was taken on the other stream
        return moved

    def down(self, rows: Tensor, take: Callable[[Tensor], None]) -> None:
        """Have ``take`` called with rows of the device on the host; in order, by ``finish``."""
        if self._stream is None:
            take(rows.cpu())
            return
        self.finish()
        host = torch.empty_like(rows, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(rows, non_blocking=True)
        rows.record_stream(self._stream)
        self._waiting.append((take, host, self._stream.record_event()))

    def finish(self) -> None:
        """Wait for what is on its way back."""
        for take, host, done in self._waiting:
            done.synchronize()
            take(host)
        self._waiting.clear()
