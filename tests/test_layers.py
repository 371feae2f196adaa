"""The convolutions and blocks that the networks share."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.layers import (
    Conv1x1,
    ConvNormAct,
    Downsample,
    NarrowConv,
    ResidualBlock,
    choose_backend,
    shuffled,
    unshuffled,
)


def test_a_fresh_residual_block_is_near_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 16, 16)
    change = ResidualBlock(32)(x) - x
    assert 0 < change.std() < 0.3


@pytest.mark.parametrize("size", [(1, 2), (7, 5), (32, 33)], ids=str)
def test_a_doubling_layer_is_the_transposed_convolution_forward_and_backward(
    size: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(20, 12, 4, stride=2, is_transposed=True)
    x = torch.randn(2, 20, *size)
    found, slow, truth = _with_gradients(layer, x)
    for a, b, c in zip(found, slow, truth, strict=True):
        assert (a - c).abs().max() <= 4 * (b - c).abs().max() + 1e-6 * c.abs().max()


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize("size", [(4, 5), (9, 16)], ids=str)
def test_a_narrow_convolution_is_the_convolution_forward_and_backward(
    size: tuple[int, int], padding_mode: str
) -> None:
    torch.manual_seed(0)
    layer = NarrowConv(8, 3, 7, padding=3, padding_mode=padding_mode)
    plain = nn.Conv2d(8, 3, 7, padding=3, padding_mode=padding_mode)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    found, slow, truth = _with_gradients(layer, x)
    for a, b, c in zip(found, slow, truth, strict=True):
        assert (a - c).abs().max() <= 4 * (b - c).abs().max() + 1e-6 * c.abs().max()


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("is_inference", [True, False])
def test_shuffling_moves_pixels_as_torch_does(
    stride: int, memory: torch.memory_format, is_inference: bool
) -> None:
    x = torch.randn(2, 2 * stride**2, 3 * stride, 5 * stride).contiguous(memory_format=memory)
    with torch.inference_mode(is_inference):
        assert torch.equal(unshuffled(x, stride), F.pixel_unshuffle(x, stride))
        assert torch.equal(shuffled(x, stride), F.pixel_shuffle(x, stride))
        with pytest.raises(RuntimeError, match="divisible"):
            unshuffled(x[..., 1:], stride)
        with pytest.raises(RuntimeError, match="divisible"):
            shuffled(x[:, 1:], stride)


def _with_gradients(layer: nn.Module, x: Tensor) -> list[tuple[Tensor, ...]]:
    """The layer's result and gradients: as it is, by its reference, and that in float64."""
    results = []
    for backend, dtype in (
        (None, torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ):
        choose_backend([layer], backend, x.device)
        leaf = x.to(dtype).requires_grad_()
        # the bias before an instance norm has no gradient but rounding
        names = [n for n, _ in layer.named_parameters() if not n.startswith("conv.bias")]
        parameters = {n: p.detach().to(dtype).requires_grad_() for n, p in layer.named_parameters()}
        out = torch.func.functional_call(layer, parameters, leaf)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        grads = torch.autograd.grad(out, [leaf, *(parameters[n] for n in names)], grad)
        results.append((out.detach().double(), *(g.double() for g in grads)))
    return results


@pytest.mark.parametrize("kind", [Conv1x1, Downsample])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_few_pixels_give_the_bits_that_they_give_among_many(
    kind: type[nn.Conv2d], threads: int
) -> None:
    torch.manual_seed(0)
    layer = kind(24, 40)
    x = torch.randn(1, 24, 2, 20_000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            whole = layer(x)
            for width in range(2, 160, 2):
                few = layer(x[..., :width].contiguous())
                assert torch.equal(few, whole[..., : few.shape[3]]), width
    finally:
        torch.set_num_threads(before)
