"""Which table of tile sizes serves a GPU."""

from __future__ import annotations

import torch

ARCHITECTURES = (80, 90, 100, 120)  # compute capabilities with a table of their own

# Shared memory that one program may use, in bytes (CUDA programming guide, compute capabilities).
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TENSOR_MEMORY_COLUMNS = 512  # of a tcgen05 multiprocessor (compute capability 10)


def table_of(capability: tuple[int, int]) -> int:
    """The member of ``ARCHITECTURES`` whose tiles fit a GPU of this compute capability.

    8.6, 8.9 and whatever is not known take those of 12.0, which ask for the least.

    Raises:
        ValueError: older than 8.0, which has no bfloat16.
    """
    if capability < (8, 0):
        raise ValueError(f"compute capability: expected 8.0 or newer, got {capability}")
    major, minor = capability
    exact = {(8, 0): 80, (8, 7): 80, (9, 0): 90}
    return exact.get((major, minor), 100 if major == 10 else 120)


def architecture(device: torch.device) -> int:
    """The table for ``device``; the interpreter on the CPU runs the tiles of 8.0."""
    if device.type != "cuda":
        return 80
    return table_of(torch.cuda.get_device_capability(device))
