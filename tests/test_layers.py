import pytest
import torch
from torch import Tensor, nn

from oldrestore.layers import (
    ConvNormAct,
    GlobalNonlocal,
    NarrowConv,
    PartialNonlocal,
    ResidualBlock,
    choose_backend,
)


def _block(seed: int = 0) -> PartialNonlocal:
    torch.manual_seed(seed)
    return PartialNonlocal(12, 5, block=4, halo=3)


def _direct(block: PartialNonlocal, features: Tensor, mask: Tensor) -> Tensor:
    """The block's equation, cell by cell."""
    theta, phi, mu = (f(features) for f in (block.theta, block.phi, block.mu))
    _, _, height, width = features.shape
    received = torch.zeros_like(mu)
    for y in range(height):
        for x in range(width):
            top, left = y // block.block * block.block, x // block.block * block.block
            rows = slice(max(0, top - block.halo), top + block.block + block.halo)
            columns = slice(max(0, left - block.halo), left + block.block + block.halo)
            keys = phi[0, :, rows, columns].flatten(1)
            values = mu[0, :, rows, columns].flatten(1)
            intact = mask[0, 0, rows, columns].flatten() < 1
            if intact.any():
                scale = block.theta.out_channels**-0.5
                weights = (theta[0, :, y, x] @ keys[:, intact] * scale).softmax(dim=0)
                received[0, :, y, x] = values[:, intact] @ weights
    return features + mask * block.nu(received)


def test_the_nonlocal_block_is_its_equation() -> None:
    block = _block().double()
    for height, width in ((4, 4), (9, 14), (1, 7)):
        features = torch.randn(1, 12, height, width, dtype=torch.float64)
        mask = (torch.rand(1, 1, height, width, dtype=torch.float64) < 0.4).double()
        expected = _direct(block, features, mask)
        assert torch.allclose(block(features, mask), expected, rtol=1e-10, atol=1e-12)


def test_undamaged_cells_are_untouched() -> None:
    features = torch.randn(2, 12, 10, 13)
    mask = (torch.rand(2, 1, 10, 13) < 0.3).float()
    fused = _block()(features, mask)
    intact = (mask == 0).expand_as(features)
    assert torch.equal(fused[intact], features[intact])


def test_an_empty_mask_changes_nothing() -> None:
    features = torch.randn(2, 12, 8, 8)
    assert torch.equal(_block()(features, torch.zeros(2, 1, 8, 8)), features)


def test_damaged_cells_are_no_source() -> None:
    block = _block()
    features = torch.randn(1, 12, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:4, 2:4] = 1
    other = features.clone()
    other[..., 3, 3] += 5  # one damaged cell: only it may change
    changed = (block(features, mask) != block(other, mask)).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[3, 3]]


def test_nothing_undamaged_in_reach_gives_no_nan() -> None:
    features = torch.randn(1, 12, 8, 8, requires_grad=True)
    fused = _block()(features, torch.ones(1, 1, 8, 8))
    fused.square().sum().backward()
    assert fused.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_the_batch_does_not_mix() -> None:
    block = _block()
    features, mask = torch.randn(3, 12, 9, 9), (torch.rand(3, 1, 9, 9) < 0.5).float()
    together = block(features, mask)
    for i in range(3):
        alone = block(features[i : i + 1], mask[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_a_fresh_residual_block_is_near_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 16, 16)
    change = ResidualBlock(32)(x) - x
    assert 0 < change.std() < 0.3


def test_every_parameter_of_the_nonlocal_block_learns() -> None:
    block = _block()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 3] = 1
    block(torch.randn(1, 12, 8, 8), mask).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        if name != "phi.bias":  # moves all keys alike, which a softmax does not see
            assert parameter.grad.abs().sum() > 0, name


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


def test_the_global_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block = GlobalNonlocal(6, blocks=1).double()
    features = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    mask = (torch.rand(2, 1, 5, 7, dtype=torch.float64) < 0.3).double()
    theta, phi, mu = (f(features).flatten(2) for f in (block.theta, block.phi, block.mu))
    logits = theta.transpose(1, 2) @ phi + torch.log1p(-mask.flatten(2))
    received = (mu @ logits.softmax(dim=2).transpose(1, 2)).view_as(features)
    expected = (1 - mask) * features + mask * block.blocks(block.nu(received))
    torch.testing.assert_close(block(features, mask), expected, rtol=1e-10, atol=1e-10)
    intact = (mask == 0).expand_as(features)
    assert torch.equal(block(features, mask)[intact], features[intact])
