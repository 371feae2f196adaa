"""The Triton search for similar patches, against one that compares all with all."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _triton

operation = importlib.import_module("oldrestore.ops.patch_attention")

SIZES = [(1, 1, 1), (3, 7, 2), (1, 63, 100), (2, 150, 5)]  # batch, patches, features


def make_inputs(size: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Patches; which are damaged, a third; and which intact, most of the others."""
    batch, n_patches, depth = size
    generator = torch.Generator().manual_seed(sum(size))
    patches = torch.randn(batch, n_patches, depth, generator=generator)
    kind = torch.rand(batch, n_patches, generator=generator)
    return patches.to(device), (kind < 0.3).to(device), (kind > 0.4).to(device)


def search(patches: Tensor, is_query: Tensor, is_key: Tensor) -> tuple[Tensor, Tensor]:
    """float64: the answer, and how far behind its runner-up is."""
    unit = F.normalize(patches.double(), dim=2)
    cosine = (unit @ unit.mT).masked_fill(~is_key[:, None], -math.inf)
    own = torch.arange(patches.shape[1], device=patches.device)
    answers = is_query & is_key.any(dim=1, keepdim=True)
    top = F.pad(cosine, (0, 1), value=-math.inf).topk(2, dim=2).values
    lead = torch.where(answers, top[..., 0] - top[..., 1], math.inf)
    return torch.where(answers, cosine.argmax(dim=2), own), lead


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, torch.float32) for size in SIZES]
    + [((1, 63, 100), dtype) for dtype in (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_the_most_similar_patch_is_found(
    size: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    patches, is_query, is_key = make_inputs(size, device)
    patches = patches.to(dtype)
    expected, lead = search(patches, is_query, is_key)
    # products are summed in float32 in every dtype; a smaller lead than its error decides nothing
    is_clear = lead > 2 * size[2] * torch.finfo(torch.float32).eps
    found = _triton.search_patches(patches, is_query, is_key)
    assert torch.equal(found[is_clear], expected[is_clear])
    assert is_clear.double().mean() >= 0.9


@pytest.mark.parametrize("n_patches", [7, 200])
def test_the_first_of_equal_patches_is_taken(n_patches: int, device: torch.device) -> None:
    patches = torch.ones(1, n_patches, 4, device=device)
    is_query = torch.arange(n_patches, device=device)[None] >= n_patches // 2
    is_key = ~is_query
    is_key[:, 0] = False
    found = _triton.search_patches(patches, is_query, is_key)
    assert bool((found[is_query] == 1).all())
    assert torch.equal(found[~is_query], torch.arange(n_patches // 2, device=device))


def test_a_sample_without_a_key_keeps_its_patches(device: torch.device) -> None:
    patches, is_query, is_key = make_inputs((3, 30, 4), device)
    is_key[1] = False
    found = _triton.search_patches(patches, is_query, is_key)
    assert torch.equal(found[1], torch.arange(30, device=device))
    assert not torch.equal(found[0], torch.arange(30, device=device))


def test_patches_of_zeros_resemble_the_first_key(device: torch.device) -> None:
    patches, is_query, is_key = make_inputs((1, 30, 4), device)
    patches[is_query] = 0
    found = _triton.search_patches(patches, is_query, is_key)
    assert bool((found[is_query] == is_key[0].nonzero()[0]).all())


def test_torch_accepts_the_registration(device: torch.device) -> None:
    torch.library.opcheck(_triton.search_patches, make_inputs((2, 9, 4), device))


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (3, 3)])
def test_the_operation_is_that_of_the_reference(
    size: tuple[int, int], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size, generator=generator).to(device)
    mask = (torch.rand(2, 1, *size, generator=generator) < 0.4).float().to(device)
    run = operation._searched_by(_triton.search_patches)
    for patch_size in (1, 2, 4):
        found = run(x, mask, patch_size)
        assert torch.equal(found, operation._reference(x, mask, patch_size))
