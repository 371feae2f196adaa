import pytest
import torch

from oldrestore.train.discriminators import MultiscaleDiscriminator, PatchDiscriminator, scores


def test_each_scale_gives_the_features_of_every_layer() -> None:
    discriminator = MultiscaleDiscriminator(3, 8, scales=2)
    features = discriminator(torch.randn(2, 3, 64, 64))
    assert [len(at_scale) for at_scale in features] == [5, 5]
    assert [f.shape[1] for f in features[0]] == [8, 16, 32, 64, 1]
    # 4x4 convolutions with padding 2: 64 -> 33 -> 17 -> 9, then two of stride 1
    assert [f.shape[-1] for f in features[0]] == [33, 17, 9, 10, 11]
    assert [s.shape[-1] for s in scores(features)] == [11, 7]


def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    discriminator = MultiscaleDiscriminator(6, 8, scales=1, spectral_norm=True)
    for _ in range(30):  # each pass in training sharpens the estimate of the norm
        discriminator(torch.randn(1, 6, 32, 32))
    discriminator.eval()
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 5
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.flatten(1), ord=2)
        assert abs(norm.item() - 1) < 0.05


@pytest.mark.parametrize(
    ("channels_in", "scales", "parameters"),
    [(3, 2, 5_529_474), (64, 1, 2_827_201), (6, 2, 5_535_618)],
    ids=["images", "latents", "image pairs"],
)
def test_published_discriminators_have_their_size(
    channels_in: int, scales: int, parameters: int
) -> None:
    with torch.device("meta"):
        discriminator = MultiscaleDiscriminator(channels_in, 64, scales)
    assert sum(p.numel() for p in discriminator.parameters()) == parameters


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_weights_are_drawn_as_published_with_spectral_norm_too(spectral_norm: bool) -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(6, 16, spectral_norm=spectral_norm)
    name = "parametrizations.weight.original" if spectral_norm else "weight"
    drawn = [p for key, p in discriminator.named_parameters() if key.endswith(name)]
    assert len(drawn) == 5
    for weight in drawn:
        # the deviation of n draws is uncertain by 1 / sqrt(2 n) of itself: four times that
        allowed = 4 * 0.02 / (2 * weight.numel()) ** 0.5
        assert abs(weight.std().item() - 0.02) < allowed
