"""VAE: image <-> latent; one is `vae_old` (real and synthetic old photos), one `vae_clean`.

Wan et al., CVPR 2020, section 3.1: two variational autoencoders with the same layout turn photos of
three domains into latents of two spaces. At use only the old encoder and the clean decoder run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oldrestore.layers import (
    Conv1x1,
    Conv3x3,
    ConvNormAct,
    Downsample,
    NarrowConv,
    PixelShuffle,
    PixelUnshuffle,
    Upsample,
    init_as_published,
    paper_blocks,
    residual_blocks,
    shuffled,
    unshuffled,
)
from oldrestore.ops import set_backend

STRIDE_PX = 4  # pixels a latent cell is wide
LOGVAR_BIAS_INIT = (
    -6.0
)  # start with small noise: the decoder learns to see before it learns to be robust
LOGVAR_RANGE = (-12.0, 4.0)  # keeps exp() finite in half precision


@dataclass(frozen=True)
class VAEConfig:
    """Layout of both VAEs.

    latent_channels: channels of the latent, at a quarter of the photo's side.
    half_channels, quarter_channels: width at a half and a quarter of the side.
    half_blocks, quarter_blocks: residual blocks at these two scales.
    """

    latent_channels: int = 64
    half_channels: int = 32
    quarter_channels: int = 64
    half_blocks: int = 1
    quarter_blocks: int = 2

    @property
    def context_px(self) -> int:
        """How far a pixel can influence the other side of the encoder, or of the decoder."""
        return 2 * (1 + 2 * self.half_blocks) + STRIDE_PX * 2 * self.quarter_blocks


@dataclass(frozen=True)
class PaperVAEConfig:
    """Layout of both published VAEs: one width throughout.

    latent_channels: of the latent and of every other map.
    blocks: residual blocks at a quarter of the side, in the encoder and in the decoder.
    """

    latent_channels: int = 64
    blocks: int = 4


class Encoder(nn.Module):
    """Image (B, 3, H, W), sides multiples of 4 -> mean of the latent (B, C, H/4, W/4)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        half, quarter = config.half_channels, config.quarter_channels
        self.trunk = nn.Sequential(
            PixelUnshuffle(2),
            Conv3x3(12, half),
            residual_blocks(half, config.half_blocks),
            Downsample(half, quarter),
            residual_blocks(quarter, config.quarter_blocks),
        )
        self.to_mean = Conv1x1(quarter, config.latent_channels)
        # a linear way round the trunk: fine detail needs no learning to survive
        self.skip = Conv1x1(3 * STRIDE_PX**2, config.latent_channels, bias=False)

    def features(self, image: Tensor) -> Tensor:
        """Last features of the trunk, from which mean and spread are read."""
        features: Tensor = self.trunk(image)
        return features

    def mean(self, features: Tensor, image: Tensor) -> Tensor:
        mean: Tensor = self.to_mean(features) + self.skip(unshuffled(image, STRIDE_PX))
        return mean

    def forward(self, image: Tensor) -> Tensor:
        return self.mean(self.features(image), image)


class Decoder(nn.Module):
    """Latent (B, C, H/4, W/4) -> image (B, 3, H, W), not clamped."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        half, quarter = config.half_channels, config.quarter_channels
        self.trunk = nn.Sequential(
            Conv1x1(config.latent_channels, quarter),
            residual_blocks(quarter, config.quarter_blocks),
            Upsample(quarter, half),
            residual_blocks(half, config.half_blocks),
            Conv3x3(half, 12),
            PixelShuffle(2),
        )
        self.skip = Conv1x1(config.latent_channels, 3 * STRIDE_PX**2)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.trunk(latent) + shuffled(self.skip(latent), STRIDE_PX)
        return image


class PaperEncoder(nn.Sequential):
    """The published encoder: image (B, 3, H, W), sides multiples of 4 -> latent (B, C, H/4, W/4).

    Instance norm sees the whole photo, so tiles of a photo are not encoded as the whole is.
    """

    def __init__(self, config: PaperVAEConfig) -> None:
        width = config.latent_channels
        blocks = paper_blocks(width, config.blocks)
        super().__init__(
            ConvNormAct(3, width, 7, padding=3, padding_mode="reflect"),
            ConvNormAct(width, width, 4, stride=2),
            ConvNormAct(width, width, 4, stride=2),
            *blocks,
        )
        init_as_published(self)
        # the scratch variant's attention multiplies rounding a thousandfold: direct convolutions
        # here keep the whole as near the exact result as the published code is, for 1 % of its time
        set_backend(blocks, "reference")


class PaperDecoder(nn.Sequential):
    """The published decoder: latent (B, C, H/4, W/4) -> image (B, 3, H, W) in [-1, 1]."""

    def __init__(self, config: PaperVAEConfig) -> None:
        width = config.latent_channels
        super().__init__(
            *paper_blocks(width, config.blocks),
            ConvNormAct(width, width, 4, stride=2, is_transposed=True),
            ConvNormAct(width, width, 4, stride=2, is_transposed=True),
            NarrowConv(width, 3, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )
        init_as_published(self)


def make_encoder(config: VAEConfig | PaperVAEConfig) -> Encoder | PaperEncoder:
    """The encoder of a layout: image -> mean of the latent."""
    return PaperEncoder(config) if isinstance(config, PaperVAEConfig) else Encoder(config)


def make_decoder(config: VAEConfig | PaperVAEConfig) -> Decoder | PaperDecoder:
    """The decoder of a layout: latent -> image."""
    return PaperDecoder(config) if isinstance(config, PaperVAEConfig) else Decoder(config)


class VAE(nn.Module):
    """Variational autoencoder with a Gaussian prior on its latent.

    The published one has unit variance everywhere; only its mean is learnt.
    """

    def __init__(self, config: VAEConfig | PaperVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.decoder = make_decoder(config)
        self.to_logvar: nn.Conv2d | None = None
        if isinstance(config, PaperVAEConfig):
            return
        self.to_logvar = nn.Conv2d(config.quarter_channels, config.latent_channels, 1)
        nn.init.zeros_(self.to_logvar.weight)
        assert self.to_logvar.bias is not None
        nn.init.constant_(self.to_logvar.bias, LOGVAR_BIAS_INIT)

    def encode(self, image: Tensor) -> Tensor:
        """Mean of the latent, (B, C, H/4, W/4): what restoring uses."""
        latent: Tensor = self.encoder(image)
        return latent

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(latent | image), each (B, C, H/4, W/4)."""
        if self.to_logvar is None:
            mean = self.encode(image)
            return mean, torch.zeros_like(mean)
        assert isinstance(self.encoder, Encoder)
        features = self.encoder.features(image)
        return self.encoder.mean(features, image), self.to_logvar(features).clamp(*LOGVAR_RANGE)

    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, 3, H, W) of a latent; not clamped to [-1, 1]."""
        image: Tensor = self.decoder(latent)
        return image
