import pytest
import torch
from torch import nn

from oldrestore.mapping import MappingConfig, MappingNetwork

SMALL = MappingConfig(
    latent_channels=4,
    channels=6,
    blocks=1,
    core_channels=8,
    core_blocks=1,
    attention_channels=4,
    attention_block=2,
    attention_halo=2,
)


@pytest.fixture
def mapping() -> MappingNetwork:
    torch.manual_seed(0)
    return MappingNetwork(SMALL).eval()


@pytest.fixture
def trained(mapping: MappingNetwork) -> MappingNetwork:
    nn.init.normal_(mapping.tail.weight, std=0.2)
    return mapping


def _mask(size: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., 20:30, 10:50] = 1
    return mask


def test_a_fresh_mapping_is_the_identity(mapping: MappingNetwork) -> None:
    latent = torch.randn(1, 4, 16, 16)
    assert torch.equal(mapping(latent, _mask(64)), latent)


def test_the_nonlocal_block_can_be_switched_off(trained: MappingNetwork) -> None:
    latent = torch.randn(1, 4, 16, 16)
    fused = trained(latent, _mask(64))
    trained.use_nonlocal = False
    assert not torch.equal(trained(latent, _mask(64)), fused)


def test_the_mask_is_seen_where_there_is_no_attention(trained: MappingNetwork) -> None:
    trained.use_nonlocal = False
    latent = torch.randn(1, 4, 16, 16)
    assert not torch.equal(trained(latent, _mask(64)), trained(latent, torch.zeros(1, 1, 64, 64)))


def test_nothing_beyond_the_context_matters(trained: MappingNetwork) -> None:
    side = 64
    latent = torch.randn(1, 4, 2, side)
    mask = (torch.rand(1, 1, 8, 4 * side) < 0.3).float()
    other = latent.clone()
    other[..., 0] += 1
    changed = (trained(latent, mask) != trained(other, mask)).any(dim=1)[0].nonzero()[:, 1].max()
    assert 4 * changed <= SMALL.context_px + SMALL.align_px
    assert 4 * changed > SMALL.context_px // 2


def test_tiles_start_at_the_attentions_grid() -> None:
    assert MappingConfig().align_px == 64
