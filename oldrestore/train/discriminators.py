"""Discriminators of the adversarial losses: of image patches at several scales, of latents."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from oldrestore.layers import init_as_published

LAYERS = 3  # strided convolutions, as in PatchGAN (Isola et al., 2017)
WIDEST = 8  # the width grows to this many times the first layer's
SLOPE = 0.2  # of the leaky ReLUs below zero


class PatchDiscriminator(nn.Module):
    """PatchGAN with 4x4 convolutions -> features of each layer, the last being the scores.

    Padding 2, instance norm from the second convolution on, leaky ReLU 0.2, and weights drawn from
    N(0, 0.02), as published.
    """

    def __init__(self, channels_in: int, channels: int, *, spectral_norm: bool = False) -> None:
        super().__init__()

        def conv(width_in: int, width_out: int, stride: int) -> nn.Module:
            made = nn.Conv2d(width_in, width_out, 4, stride, 2)
            init_as_published(made)
            # after the draw: the released code drew over what spectral norm derives from the
            # weights, and so left the weights themselves as torch had made them
            return with_spectral_norm(made) if spectral_norm else made

        widths = [channels * min(2**i, WIDEST) for i in range(LAYERS + 1)]
        layers = [nn.Sequential(conv(channels_in, widths[0], 2), nn.LeakyReLU(SLOPE))]
        for i, (width_in, width) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < LAYERS - 1 else 1
            norm = nn.InstanceNorm2d(width)
            layers.append(nn.Sequential(conv(width_in, width, stride), norm, nn.LeakyReLU(SLOPE)))
        self.layers = nn.ModuleList([*layers, conv(widths[-1], 1, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features


class MultiscaleDiscriminator(nn.Module):
    """The same discriminator layout at the image's scale, half of it, ... (pix2pixHD)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        scales: int,
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(channels_in, channels, spectral_norm=spectral_norm)
            for _ in range(scales)
        )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        features = []
        for i, discriminator in enumerate(self.scales):
            if i:
                x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            features.append(discriminator(x))
        return features


def scores(features: list[list[Tensor]]) -> list[Tensor]:
    """The score maps among a multi-scale discriminator's features."""
    return [at_scale[-1] for at_scale in features]
