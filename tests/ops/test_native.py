"""What the operations of the native core share."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oldrestore.ops import _dispatch, _native, freed_memory_kept

NATIVE = _dispatch.NATIVE
pytestmark = pytest.mark.skipif(NATIVE is None, reason="oldrestore._C is not built")

LARGE = (1, 16, 256, 257)  # more than 2 MB, and no power of two


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_large_map_is_laid_out_like_the_given_one_and_is_all_there(
    layout: torch.memory_format,
) -> None:
    x = torch.empty(LARGE).contiguous(memory_format=layout)
    maps = [_native.like(x, 24) for _ in range(3)]
    for value, out in enumerate(maps):
        assert out.is_contiguous(memory_format=layout)
        out.fill_(value)
    for value, out in enumerate(maps):  # none lies in another's memory
        assert bool((out == value).all())


def test_a_map_outlives_those_it_shared_memory_with() -> None:
    x = torch.zeros(LARGE)
    part = _native.like(x).fill_(3.0)[0, 3]
    gc.collect()
    others = [_native.like(x).fill_(float(i)) for i in range(4)]
    assert bool((part == 3.0).all())
    assert len({out.data_ptr() for out in others}) == len(others)


def test_freed_memory_is_used_again() -> None:
    size = 20 * 2**20  # floats: more than is kept outside the context
    with freed_memory_kept():
        first = NATIVE.empty(size)
        address = first.__array_interface__["data"][0]
        del first
        with freed_memory_kept():
            pass  # the inner end gives nothing back
        assert NATIVE.empty(size - 5).__array_interface__["data"][0] == address
        small = NATIVE.empty(size // 2 - 9)  # would waste more than half of it
        assert small.__array_interface__["data"][0] != address


# in a process of its own: in an older one the C library may have room for it already
MEASURE_WHAT_GOES_BACK = """
import resource
from pathlib import Path
from oldrestore.ops import _native, freed_memory_kept

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

with freed_memory_kept():
    _native.core().empty(20 * 2**20).fill(1.0)
    before = resident_bytes()
print(before - resident_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc to ask")
def test_memory_goes_back_when_the_context_ends() -> None:
    command = [sys.executable, "-c", MEASURE_WHAT_GOES_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 3 * 20 * 2**20  # most of its four bytes each


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size: expected at least 0"):
        NATIVE.empty(-1)
    with pytest.raises(MemoryError):
        NATIVE.empty(2**60)
