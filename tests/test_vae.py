import pytest
import torch

from oldrestore.vae import VAE, VAEConfig

SMALL = VAEConfig(latent_channels=8, half_channels=6, quarter_channels=10)


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(SMALL).eval()


def test_the_latent_is_a_quarter_of_the_side(vae: VAE) -> None:
    latent = vae.encode(torch.zeros(2, 3, 24, 40))
    assert latent.shape == (2, 8, 6, 10)
    assert vae.decode(latent).shape == (2, 3, 24, 40)


def test_encoding_gives_the_mean_of_the_posterior(vae: VAE) -> None:
    image = torch.rand(1, 3, 16, 16)
    mean, logvar = vae.posterior(image)
    assert torch.equal(vae.encode(image), mean)
    assert logvar.shape == mean.shape


def test_a_fresh_vae_is_nearly_certain(vae: VAE) -> None:
    _, logvar = vae.posterior(torch.rand(1, 3, 16, 16))
    assert logvar.unique().tolist() == [-6.0]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_nothing_beyond_the_context_matters(vae: VAE, part: str) -> None:
    size, context = 96, SMALL.context_px
    image = torch.rand(1, 3, size, size)
    if part == "encoder":
        scale, function, x = 4, vae.encode, image
    else:
        scale, function, x = 1, vae.decode, vae.encode(image)
    other = x.clone()
    other[..., 0, 0] += 1  # a pixel, or a latent cell
    changed = (function(x) != function(other)).any(dim=1)[0].nonzero().max() * scale
    assert changed <= context + 4
    assert changed > context // 2
