"""The nonlocal blocks, held against their equations."""

import torch
from torch import Tensor

from oldrestore.attention import GlobalNonlocal, PartialNonlocal


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


def test_every_parameter_of_the_nonlocal_block_learns() -> None:
    block = _block()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 3] = 1
    block(torch.randn(1, 12, 8, 8), mask).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        if name != "phi.bias":  # moves all keys alike, which a softmax does not see
            assert parameter.grad.abs().sum() > 0, name


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
