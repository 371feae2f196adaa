"""The CUDA search for similar patches, run by the shim or a card, held against the reference."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import _cuda_patch_attention as cuda

DEFINITION = importlib.import_module("oldrestore.ops.patch_attention")
# batch, channels, height, width, patch size: whole and cut patches; one; none whole; one tile of 64
# keys and two
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 18, 21, 1),
    (3, 5, 13, 18, 4),
    (2, 2, 16, 3, 4),
    (1, 40, 20, 18, 2),
    (0, 3, 8, 8, 2),
]


def make_inputs(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Masks of 0 and 1 by which some of the patches are damaged."""
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, channels, height, width, generator=generator)
    coarse = torch.rand(batch, 1, -(-height // 4), -(-width // 4), generator=generator) < 0.2
    mask = coarse.float().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return x, mask[:, :, :height, :width].contiguous()


def unfold(x: Tensor, patch_size: int) -> Tensor:
    """The patches of the maps, extended over their border: (B, N, F)."""
    extended = DEFINITION._extend(x, patch_size)
    return torch.nn.functional.unfold(extended, patch_size, stride=patch_size).transpose(1, 2)


def judge(mask: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Which patches are queries and which are keys: two (B, N) of bool."""
    is_query, is_key = DEFINITION.judge_patches(mask, patch_size)
    return is_query.flatten(1), is_key.flatten(1)


def find_sources(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    return cuda.search_patches(unfold(x, patch_size), *judge(mask, patch_size))


def similarities(x: Tensor, patch_size: int) -> Tensor:
    """Cosines of all pairs of patches of the maps: (B, N, N)."""
    unit = torch.nn.functional.normalize(unfold(x, patch_size), dim=2)
    return unit @ unit.transpose(1, 2)


def assert_sources(x: Tensor, mask: Tensor, patch_size: int) -> None:
    """Damaged patches get the most similar key, as far as float32 can tell; others themselves."""
    source = find_sources(x, mask, patch_size)
    is_query, is_key = judge(mask, patch_size)
    own = torch.arange(source.shape[1], device=x.device).expand_as(source)
    assert torch.equal(source[~is_query], own[~is_query])
    assert bool(is_key.gather(1, source)[is_query].all())
    truth = similarities(x.double(), patch_size)
    slow = similarities(x.float(), patch_size)
    error = (slow - truth).abs().amax() if truth.numel() else 0
    allowed = 2 * error + 2 * torch.finfo(torch.float32).eps
    best = truth.masked_fill(~is_key[:, None], -1).amax(dim=2) if truth.numel() else truth[:, 0]
    chosen = truth.gather(2, source[:, :, None])[:, :, 0]
    assert bool((best - chosen <= allowed)[is_query].all())
    assert allowed < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_damaged_patches_get_the_most_similar_key_within_rounding(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    *shape, patch_size = size
    x, mask = (t.to(device) for t in make_inputs(*shape))
    assert_sources(x.to(dtype), mask, patch_size)


def test_more_keys_than_all_parts_take_at_once_are_all_searched(device: torch.device) -> None:
    x = make_inputs(1, 3, 48, 46)[0].to(device)  # 2208 keys, of which 32 parts of 64 take 2048
    mask = torch.zeros(1, 1, 48, 46, device=device)
    mask[..., 10:12, 5:30] = 1
    x[..., 47, :] = x[..., 10, :]  # the best lie behind the first 2048
    assert_sources(x, mask, 1)
    found = find_sources(x, mask, 1).view(48, 46)[10, 5:30]
    assert bool((found >= 47 * 46).all())


def test_some_sample_has_more_queries_and_keys_than_one_tile() -> None:
    batch, *shape, patch_size = SIZES[1]
    is_query, is_key = judge(make_inputs(batch, *shape)[1], patch_size)
    assert int(is_query.sum(1).max()) > 32
    assert int(is_key.sum(1).min()) > 64


def test_the_first_of_equally_similar_patches_is_taken(device: torch.device) -> None:
    # of one value a patch: all keys but those of the other sign have cosine 1 with the query
    x = torch.ones(1, 1, 40, 40, device=device)
    x[..., :3, :] = -1
    mask = torch.zeros_like(x)
    mask[..., 0, 0] = mask[..., 39, 39] = 1
    source = find_sources(x, mask, 1).flatten()
    assert source[0] == 1
    assert source[-1] == 3 * 40


def test_a_query_without_a_key_keeps_its_own(device: torch.device) -> None:
    patches = torch.ones(2, 5, 3, device=device)
    is_query = torch.ones(2, 5, dtype=torch.bool, device=device)
    is_key = torch.zeros_like(is_query)
    is_key[1, 4] = True
    source = cuda.search_patches(patches, is_query, is_key)
    assert source.tolist() == [[0, 1, 2, 3, 4], [4, 4, 4, 4, 4]]


@pytest.mark.parametrize("device", ["shim"], indirect=True)
def test_the_order_of_threads_and_blocks_changes_nothing(
    device: torch.device, set_schedule: Callable[[int], None]
) -> None:
    x, mask = make_inputs(1, 3, 24, 24)
    first = find_sources(x, mask, 1)
    for schedule in (1, 2):
        set_schedule(schedule)
        assert torch.equal(find_sources(x, mask, 1), first)


def test_it_passes_opcheck(device: torch.device) -> None:
    x, mask = (t.to(device) for t in make_inputs(1, 3, 8, 8))
    arguments = (unfold(x, 2), *judge(mask, 2))
    torch.library.opcheck(torch.ops.oldrestore.cuda_patch_search, arguments)
