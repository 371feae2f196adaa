"""patch_attention: the definition, and the chunked search held against it."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import patch_attention

MODULE = importlib.import_module("oldrestore.ops.patch_attention")
BACKENDS = ["reference", "chunked"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# batch, channels, height, width, patch size: whole and cut patches, one cell, no whole patch
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 7, 7, 1),
    (3, 5, 13, 18, 4),
    (2, 4, 63, 100, 8),
    (2, 2, 16, 3, 4),
    (0, 3, 8, 8, 2),
]
BLOCK_BYTES = [2**25, 2000, 1]  # one chunk; several; a query and a row of keys at a time


def make_inputs(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """float64; masks of 0 and 1 by which about a third of the patches is damaged."""
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    coarse = torch.rand(batch, 1, -(-height // 4), -(-width // 4), generator=generator) < 0.35
    mask = coarse.double().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return x, mask[:, :, :height, :width].contiguous()


def find_sources(x: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    return torch.ops.oldrestore.patch_attention_source(x, mask, patch_size)


def similarities(x: Tensor, patch_size: int) -> Tensor:
    """Cosines of all pairs of patches of a map (C, H, W) of whole patches: (N, N)."""
    patches = torch.nn.functional.unfold(x[None], patch_size, stride=patch_size)[0].T
    unit = torch.nn.functional.normalize(patches, dim=1)
    return unit @ unit.T


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_equation(backend: str) -> None:
    x, mask = make_inputs(2, 3, 12, 16)
    out = patch_attention(x, mask, 4, backend=backend)
    corners = [(i, j) for i in range(0, 12, 4) for j in range(0, 16, 4)]
    n_damaged = 0
    for b in range(2):
        patches = {(i, j): x[b, :, i : i + 4, j : j + 4] for i, j in corners}
        is_damaged = {(i, j): mask[b, 0, i : i + 4, j : j + 4].mean() > 0.6 for i, j in corners}
        intact = [patches[at] for at in corners if not is_damaged[at]]
        for i, j in corners:
            expected = patches[i, j]
            if is_damaged[i, j]:
                n_damaged += 1
                cosines = [
                    torch.cosine_similarity(expected.flatten(), k.flatten(), dim=0) for k in intact
                ]
                expected = intact[int(torch.stack(cosines).argmax())]
            assert torch.equal(out[b, :, i : i + 4, j : j + 4], expected)
    assert 2 < n_damaged < 22


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_chunked_is_equal_to_the_reference(
    size: tuple[int, ...], dtype: torch.dtype, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "SEARCH_BLOCK_BYTES", block_bytes)
    *shape, patch_size = size
    x, mask = (t.to(dtype) for t in make_inputs(*shape))
    fast = patch_attention(x, mask, patch_size, backend="chunked")
    assert fast.dtype == dtype
    assert torch.equal(fast, patch_attention(x, mask, patch_size, backend="reference"))


@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_among_near_ties_the_choice_is_maximal_within_rounding(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "SEARCH_BLOCK_BYTES", block_bytes)
    x, mask = make_inputs(1, 8, 40, 40)
    x = (1 + 1e-4 * x).float()  # all cosines are 1 to seven digits
    source = find_sources(x, mask, 4)[0].flatten()
    is_damaged = mask[0, 0, ::4, ::4].flatten() == 1
    truth = similarities(x[0].double(), 4)
    allowed = 2 * (similarities(x[0], 4) - truth).abs().max() + torch.finfo(torch.float32).eps
    best = truth[:, ~is_damaged].max(dim=1).values
    chosen = truth[torch.arange(len(source)), source]
    assert bool((best - chosen <= allowed)[is_damaged].all())
    assert not bool(is_damaged[source].any())
    assert allowed < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_the_first_of_equally_similar_patches_is_taken(
    backend: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "SEARCH_BLOCK_BYTES", block_bytes)
    # of one value a patch: 2, 4 and 8 have cosine 1 with 1, without rounding
    x = torch.tensor([[1.0, -1.0], [2.0, 4.0], [8.0, 2.0]])[None, None]
    mask = torch.zeros_like(x)
    mask[..., 0, 0] = 1
    assert patch_attention(x, mask, 1, backend=backend)[0, 0, 0, 0] == 2
    mask[..., 0, 0], mask[..., 0, 1] = 0, 1  # cosine -1 with all
    assert patch_attention(x, mask, 1, backend=backend)[0, 0, 0, 1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_patch_is_damaged_above_a_mean_of_six_tenths(backend: str) -> None:
    x = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., :4] = 0.6
    assert torch.equal(patch_attention(x, mask, 4, backend=backend), x)
    mask[..., 0, 0] = 0.7
    out = patch_attention(x, mask, 4, backend=backend)
    assert torch.equal(out[..., :4], x[..., 4:])
    assert torch.equal(out[..., 4:], x[..., 4:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_patch_of_zeros_takes_the_first_intact_patch(backend: str) -> None:
    x, mask = make_inputs(1, 3, 8, 8)
    mask.zero_()[..., :4, :4] = 1
    out = patch_attention(x.masked_fill(mask == 1, 0.0), mask, 4, backend=backend)
    assert torch.equal(out[..., :4, :4], x[..., :4, 4:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_patch_over_the_border_is_filled_and_never_copied(backend: str) -> None:
    x, mask = make_inputs(1, 3, 6, 10)
    mask.zero_()[..., :4, :4] = 1
    x[..., :4, :4] = x[..., :4, 8:].repeat(1, 1, 1, 2)  # like the cut patch, not like a whole one
    out = patch_attention(x, mask, 4, backend=backend)
    assert torch.equal(out[..., :4, :4], x[..., :4, 4:8])
    assert torch.equal(out[..., 4:, :], x[..., 4:, :])
    mask.zero_()[..., 4:, 8:] = 1
    out = patch_attention(x, mask, 4, backend=backend)
    sources = [x[..., :2, :2], x[..., :2, 4:6]]
    assert any(torch.equal(out[..., 4:, 8:], source) for source in sources)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_without_an_intact_patch_is_returned_as_it_is(backend: str) -> None:
    x, mask = make_inputs(2, 3, 12, 16)
    mask[1] = 1
    out = patch_attention(x, mask, 4, backend=backend)
    assert torch.equal(out[1], x[1])
    assert not torch.equal(out[0], x[0])


def test_a_sample_does_not_depend_on_its_batch_nor_on_the_thread_count() -> None:
    x, mask = (t.float() for t in make_inputs(3, 16, 64, 64))
    out = patch_attention(x, mask, 4)
    alone = [patch_attention(x[b : b + 1], mask[b : b + 1], 4) for b in range(3)]
    assert torch.equal(torch.cat(alone), out)
    torch.set_num_threads(2)
    assert torch.equal(patch_attention(x, mask, 4), out)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_chunked_has_the_gradient_of_the_reference(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    *shape, patch_size = size
    x, mask = (t.to(dtype) for t in make_inputs(*shape))
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradient(backend: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        out = patch_attention(leaf, mask, patch_size, backend=backend)
        return torch.autograd.grad((out * weight).sum(), leaf)[0]

    torch.testing.assert_close(gradient("chunked"), gradient("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_copy_goes_to_its_source_alone(backend: str) -> None:
    x, mask = make_inputs(1, 3, 4, 12)
    mask.zero_()[..., :8] = 1
    x.requires_grad_()
    mask.requires_grad_()
    out = patch_attention(x, mask, 4, backend=backend)
    gradient, none = torch.autograd.grad(out.sum(), (x, mask), allow_unused=True)
    assert none is None
    assert bool((gradient[..., :8] == 0).all())
    assert bool((gradient[..., 8:] == 3).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_format_is_taken(backend: str) -> None:
    x, mask = make_inputs(2, 3, 13, 18)
    out = patch_attention(x, mask, 4, backend=backend)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (channels_last, strided):
        assert torch.equal(patch_attention(other, mask, 4, backend=backend), out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str) -> None:
    x, mask = (t.float() for t in make_inputs(2, 3, 40, 40))
    out = patch_attention(x, mask, 4, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(patch_attention(x, mask, 4, backend=backend), out)


def test_the_input_is_not_changed() -> None:
    x, mask = make_inputs(2, 3, 13, 18)
    before = x.clone(), mask.clone()
    patch_attention(x, mask, 4).zero_()
    assert torch.equal(x, before[0])
    assert torch.equal(mask, before[1])


def test_it_compiles() -> None:
    x, mask = make_inputs(2, 3, 13, 18)
    compiled = torch.compile(patch_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, mask, 4), patch_attention(x, mask, 4))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_registered_search_passes_opcheck(size: tuple[int, ...]) -> None:
    *shape, patch_size = size
    operator = torch.ops.oldrestore.patch_attention_source.default
    torch.library.opcheck(operator, (*make_inputs(*shape), patch_size))


def test_there_is_no_matrix_of_all_pairs(peak_extra_bytes: Callable[[str, str], int]) -> None:
    n_patches = 128 * 128
    extra = peak_extra_bytes(
        "from oldrestore.ops import patch_attention\n"
        "x = torch.rand(1, 8, 256, 256)\n"
        "mask = (torch.rand(1, 1, 128, 128) < 0.05).float()\n"
        "mask = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)\n"
        "patch_attention(x[..., :8, :8], mask[..., :8, :8], 2)\n",
        "patch_attention(x, mask, 2)",
    )
    assert extra < n_patches**2 * 4 / 8


BAD = {
    "x: expected floating": {"x": torch.zeros(2, 3, 8, 8, dtype=torch.int64)},
    "x: expected C, H and W": {"x": torch.zeros(2, 3, 0, 8)},
    "mask: expected \\(2, 1, 8, 8\\)": {"mask": torch.zeros(2, 3, 8, 8)},
    "mask: expected floating": {"mask": torch.zeros(2, 1, 8, 8, dtype=torch.bool)},
    "mask: expected floating point on cpu": {"mask": torch.zeros(2, 1, 8, 8, device="meta")},
    "patch_size": {"patch_size": 0},
    "backend": {"backend": "cpp"},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_argument_is_named(message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 8, 8), "mask": torch.zeros(2, 1, 8, 8), "patch_size": 2}
    with pytest.raises(ValueError, match=f"^{message}"):
        patch_attention(**arguments | BAD[message])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5])
def test_a_mask_out_of_range_is_named_by_every_backend(backend: str, value: float) -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"mask: expected values in \[0, 1\], got"):
        patch_attention(torch.randn(1, 3, 4, 4), mask, 2, backend=backend)
