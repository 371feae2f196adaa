"""The mended and watched interpreter itself: what it must catch, it catches."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="the kernels run on a GPU here"
)
SIZE = 16


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, STEP: tl.constexpr, IS_MASKED: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0) * STEP + tl.arange(0, SIZE)
    mask = (place < n) if IS_MASKED else (place >= 0)
    tl.store(out_ptr + place, tl.load(x_ptr + place, mask=mask), mask=mask)


@triton.jit
def hand_over_kernel(x_ptr):
    program = tl.program_id(0)
    tl.store(x_ptr + program, tl.load(x_ptr + tl.maximum(program - 1, 0)))


@triton.jit
def add_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    out = tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place), input_precision="ieee")
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty))


def copy(x: Tensor, step: int, is_masked: bool) -> Tensor:
    out = torch.zeros_like(x)
    grid = (triton.cdiv(len(x), step),)
    copy_kernel[grid](x, out, len(x), STEP=step, IS_MASKED=is_masked, SIZE=SIZE)
    return out


def test_a_correct_kernel_passes() -> None:
    x = torch.randn(SIZE + 1)
    assert torch.equal(copy(x, SIZE, True), x)


def test_a_read_outside_the_tensor_is_caught() -> None:
    with pytest.raises(Exception, match="read outside every tensor"):
        copy(torch.randn(SIZE + 1), SIZE, False)


def test_two_programs_that_write_to_one_address_are_caught() -> None:
    with pytest.raises(Exception, match="two programs meet at one address: write"):
        copy(torch.randn(SIZE), SIZE // 2, True)


def test_a_program_that_reads_what_another_writes_is_caught() -> None:
    with pytest.raises(Exception, match="two programs meet at one address: read"):
        hand_over_kernel[(3,)](torch.zeros(3))


def test_atomics_are_caught() -> None:
    with pytest.raises(Exception, match="no atomics"):
        add_kernel[(2,)](torch.zeros(1))


def test_bfloat16_products_are_rounded_to_nearest_even() -> None:
    a, b = torch.randn(2, SIZE, SIZE).bfloat16()
    out = torch.empty_like(a)
    product_kernel[(1,)](a, b, out, SIZE=SIZE)
    assert torch.equal(out, (a.double() @ b.double()).float().bfloat16())


def test_memory_is_poisoned() -> None:
    x = torch.empty(3)
    for fresh in (x, torch.empty_like(x), x.new_empty(3)):
        assert bool(fresh.isnan().all())
    assert bool((torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all())
