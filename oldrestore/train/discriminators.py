"""Discriminators of the adversarial losses: of image patches at several scales, of latents."""

import itertools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

LAYERS = 3  # strided convolutions, as in PatchGAN (Isola et al., 2017)
WIDEST = 8  # the width grows to this many times the first layer's


class PatchDiscriminator(nn.Module):
    """PatchGAN with 4x4 convolutions -> features of each layer, the last being the scores.

    Padding 2, instance norm from the second convolution on, leaky ReLU 0.2, as published.
    """

    def __init__(self, channels_in: int, channels: int, *, spectral_norm: bool = False) -> None:
        super().__init__()
        wrap: Callable[[nn.Conv2d], nn.Module] = (
            with_spectral_norm if spectral_norm else lambda conv: conv
        )
        widths = [channels * min(2**i, WIDEST) for i in range(LAYERS + 1)]
        layers: list[nn.Module] = [
            nn.Sequential(wrap(nn.Conv2d(channels_in, widths[0], 4, 2, 2)), nn.LeakyReLU(0.2))
        ]
        for i, (width_in, width) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < LAYERS - 1 else 1
            layers.append(
                nn.Sequential(
                    wrap(nn.Conv2d(width_in, width, 4, stride, 2)),
                    nn.InstanceNorm2d(width),
                    nn.LeakyReLU(0.2),
                )
            )
        layers.append(wrap(nn.Conv2d(widths[-1], 1, 4, 1, 2)))
        self.layers = nn.ModuleList(layers)

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
