"""MappingNetwork: latent of the old photo and its mask -> latent of the clean photo.

Wan et al., CVPR 2020, section 3.2 and 3.3: residual blocks mend local defects, the partial nonlocal
block fills structured damage from the undamaged rest, fused by the mask.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.attention import GlobalNonlocal, PartialNonlocal, PatchAttention
from oldrestore.layers import (
    Conv3x3,
    ConvNormAct,
    Downsample,
    Upsample,
    init_as_published,
    paper_blocks,
    residual_blocks,
    unshuffled,
)
from oldrestore.ops import set_backend

STRIDE_PX = 4  # pixels a latent cell is wide
CELL_PX = 8  # pixels a cell of the compact nonlocal block is wide
VARIANTS = ("quality", "scratch", "hr")
PATCH_SIZES = (8, 4, 2)  # of the HR variant, coarse to fine, in latent cells


@dataclass(frozen=True)
class MappingConfig:
    """Layout of the mapping network.

    latent_channels: channels of the latents, as in both VAEs.
    channels, blocks: width and residual blocks at a quarter of the side, before and after the core.
    core_channels, core_blocks: the same at an eighth, before and after the nonlocal block.
    attention_channels: width of queries and keys.
    attention_block, attention_halo: neighbourhood of the nonlocal block, in cells of 8 px.
    """

    latent_channels: int = 64
    channels: int = 96
    blocks: int = 2
    core_channels: int = 128
    core_blocks: int = 2
    attention_channels: int = 32
    attention_block: int = 8
    attention_halo: int = 8

    @property
    def align_px(self) -> int:
        """Tiles start at multiples of this: the nonlocal block's grid."""
        return CELL_PX * self.attention_block

    @property
    def context_px(self) -> int:
        """How far a latent cell can influence the output, in pixels."""
        convolutions = STRIDE_PX * (2 + 4 * self.blocks) + CELL_PX * 4 * self.core_blocks
        return convolutions + CELL_PX * (self.attention_block - 1 + self.attention_halo)


class MappingNetwork(nn.Module):
    """latent (B, C, H/4, W/4), mask (B, 1, H, W) -> latent; H and W multiples of 8.

    ``use_nonlocal`` switches the partial nonlocal block off, to measure what it is worth.
    """

    cell_px = CELL_PX  # photos are padded to multiples of it
    uses_mask = True

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        self.use_nonlocal = True
        width, core = config.channels, config.core_channels
        mask_channels = STRIDE_PX**2
        self.head = Conv3x3(config.latent_channels + mask_channels, width)
        self.before = residual_blocks(width, config.blocks)
        self.down = Downsample(width, core)
        self.core_before = residual_blocks(core, config.core_blocks)
        self.nonlocal_block = PartialNonlocal(
            core,
            config.attention_channels,
            block=config.attention_block,
            halo=config.attention_halo,
        )
        self.core_after = residual_blocks(core, config.core_blocks)
        self.up = Upsample(core, width)
        self.after = residual_blocks(width, config.blocks)
        self.tail = Conv3x3(width, config.latent_channels)
        # both latent spaces start aligned (one VAE starts as the other): start as the identity
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    def forward(self, latent: Tensor, mask: Tensor) -> Tensor:
        local = self.head(torch.cat([latent, unshuffled(mask, STRIDE_PX)], dim=1))
        local = self.before(local)
        core = self.core_before(self.down(local))
        if self.use_nonlocal:
            core = self.nonlocal_block(core, F.max_pool2d(mask, CELL_PX))
        local = local + self.up(self.core_after(core))
        mapped: Tensor = latent + self.tail(self.after(local))
        return mapped


@dataclass(frozen=True)
class PaperMappingConfig:
    """Layout of the published mapping networks.

    variant: "quality" (no damage but blur, noise and the like), "scratch" (the partial nonlocal
        block over the whole photo) or "hr" (patch attention, for large photos).
    latent_channels: channels of the latents; doubled by each of the head's convolutions ...
    channels: ... up to this.
    blocks: residual blocks of the trunk; the HR variant has a third of them between any two
        attentions, and at both ends.
    """

    variant: str = "scratch"
    latent_channels: int = 64
    channels: int = 512
    blocks: int = 6

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant: expected one of {', '.join(VARIANTS)}, got {self.variant!r}"
            )


class PaperMappingNetwork(nn.Module):
    """The published mapping: latent (B, C, H/4, W/4), mask (B, 1, H, W) -> latent.

    The quality variant looks at no mask. ``use_nonlocal`` leaves the scratch variant's block out,
    or gives the HR variant's attentions an empty mask, to measure what they are worth.
    """

    cell_px = STRIDE_PX

    def __init__(self, config: PaperMappingConfig) -> None:
        super().__init__()
        self.config = config
        self.uses_mask = config.variant != "quality"
        self.use_nonlocal = True
        widths = [min(config.latent_channels << i, config.channels) for i in range(5)]
        self.head = nn.Sequential(*(ConvNormAct(a, b) for a, b in itertools.pairwise(widths)))
        self.trunk = nn.ModuleList(_trunk(config))
        *widths, latent_channels = reversed(widths)
        self.tail = nn.Sequential(
            *(ConvNormAct(a, b) for a, b in itertools.pairwise(widths)),
            Conv3x3(widths[-1], latent_channels),
        )
        init_as_published(self)
        if config.variant == "scratch":
            # what the attention looks at must be exact, see PaperEncoder; the result is no farther
            # from it if the last two, nearly all of the head's work, are fused
            set_backend(self.head[:-2], "reference")

    def forward(self, latent: Tensor, mask: Tensor) -> Tensor:
        mask = mask if self.use_nonlocal else torch.zeros_like(mask)
        features = self.head(latent)
        for layer in self.trunk:
            looks_afar = isinstance(layer, (GlobalNonlocal, PatchAttention))
            features = layer(features, mask) if looks_afar else layer(features)
        mapped: Tensor = self.tail(features)
        return mapped


def _trunk(config: PaperMappingConfig) -> list[nn.Module]:
    """What lies between head and tail, all at full width."""
    if config.variant == "quality":
        return [*paper_blocks(config.channels, config.blocks)]
    if config.variant == "scratch":
        return [GlobalNonlocal(config.channels), *paper_blocks(config.channels, config.blocks)]
    third = config.blocks // len(PATCH_SIZES)
    layers: list[nn.Module] = [*paper_blocks(config.channels, third)]
    for size in PATCH_SIZES:
        layers += [PatchAttention(config.channels, size), *paper_blocks(config.channels, third)]
    return layers


def make_mapping(
    config: MappingConfig | PaperMappingConfig,
) -> MappingNetwork | PaperMappingNetwork:
    """The mapping network of a layout."""
    if isinstance(config, PaperMappingConfig):
        return PaperMappingNetwork(config)
    return MappingNetwork(config)
