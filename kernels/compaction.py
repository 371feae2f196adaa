"""The positions that a flag picks, in order, as an index list and a count that stay on the device.

Attention over undamaged positions runs over such a list: the host never learns how long it is, so
nothing waits for the GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # positions a program ranks at once; a map of 256 x 256 takes 16 rounds


@triton.jit
def compact_kernel(flag_ptr, index_ptr, count_ptr, n_positions, BLOCK: tl.constexpr):
    """One program a sample: its flagged positions, in order."""
    sample = tl.program_id(0).to(tl.int64)
    count = tl.zeros((), tl.int32)
    for start in range(0, n_positions, BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < n_positions
        flag = tl.load(flag_ptr + sample * n_positions + position, mask=inside, other=0).to(
            tl.int32
        )
        rank = count + tl.cumsum(flag, 0) - 1
        tl.store(index_ptr + sample * n_positions + rank, position, mask=flag != 0)
        count += tl.sum(flag, 0)
    tl.store(count_ptr + sample, count)


def compact(flag: Tensor) -> tuple[Tensor, Tensor]:
    """List the positions where ``flag`` holds.

    Args:
        flag: (B, N) bool, N < 2**31.

    Returns:
        (B, N) int32, of which the first ``count[b]`` in row b are written, ascending; and the
        counts, (B,) int32.
    """
    batch, n_positions = flag.shape
    index = torch.empty((batch, n_positions), dtype=torch.int32, device=flag.device)
    count = torch.empty(batch, dtype=torch.int32, device=flag.device)
    block = min(BLOCK, max(16, triton.next_power_of_2(n_positions)))
    compact_kernel[(batch,)](flag.contiguous(), index, count, n_positions, BLOCK=block)
    return index, count
