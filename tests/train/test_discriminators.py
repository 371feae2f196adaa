import torch

from oldrestore.train.discriminators import MultiscaleDiscriminator, scores


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
