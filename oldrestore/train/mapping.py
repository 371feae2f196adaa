"""Stage "mapping": translate latents of old photos to those of clean ones.

Wan et al., CVPR 2020, section 3.2, eq. 3, trained on synthetic pairs. The target keeps the tone of
the input: fading is the tone head's part.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.degradation import (
    DegradationSettings,
    TextureSet,
    degrade,
    sample_degradation,
)
from oldrestore.fill import fill_holes
from oldrestore.mapping import MappingNetwork
from oldrestore.perceptual import Backbone
from oldrestore.train import losses
from oldrestore.train.config import MappingSettings
from oldrestore.train.data import Batch, PhotoFolders, crop
from oldrestore.train.loop import Player, Stage, load_averaged, read_state
from oldrestore.train.players import (
    Adversary,
    adversary_player,
    image_adversary,
    perceptual_backbone,
)
from oldrestore.vae import VAE, VAEConfig


@dataclass(frozen=True)
class Pairs:
    """Synthetic pairs: a damaged crop, its mask, and what it shall become."""

    clean: PhotoFolders
    degradation: DegradationSettings
    textures: TextureSet | None
    mask_dilation_px: int

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        clean = crop(self.clean.pick(rng), crop_px, rng)
        damage = sample_degradation(
            rng, crop_px, crop_px, settings=self.degradation, textures=self.textures
        )
        pair = degrade(clean, damage, self.textures)
        grown = int(rng.integers(self.mask_dilation_px + 1))
        mask = F.max_pool2d(pair.mask, 2 * grown + 1, 1, grown) if grown else pair.mask
        return {"degraded": pair.image, "mask": mask, "target": pair.target}


class Translation(nn.Module):
    """The mapping's side: reach the clean photo's latent, and its picture."""

    def __init__(
        self,
        vae_old: VAE,
        mapping: MappingNetwork,
        vae_clean: VAE,
        *,
        settings: MappingSettings,
        backbone: Backbone | None,
        critic: Adversary | None,
    ) -> None:
        super().__init__()
        self.vae_old = vae_old
        self.mapping = mapping
        self.vae_clean = vae_clean
        self.settings = settings
        self._judges = (
            backbone,
            critic,
        )  # in a tuple: what only judges is no part of this player

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        backbone, critic = self._judges
        mask, target = batch["mask"], batch["target"]
        filled = fill_holes(batch["degraded"], mask)
        mapped = self.mapping(self.vae_old.encode(filled), mask)
        restored = self.vae_clean.decode(mapped)
        found = {}
        if settings.pixel:
            found["pixel"] = losses.pixel_l1(restored, target, mask, settings.hole_weight)
        if settings.latent:
            with torch.no_grad():
                goal = self.vae_clean.encode(target)
            found["latent"] = losses.latent_l1(mapped, goal)
        if backbone is not None:
            found["perceptual"] = backbone.perceptual_loss(restored, target)
        if critic is not None:  # conditional, as published: the discriminator sees the input too
            found |= critic.deceive(
                torch.cat([filled, restored], dim=1),
                torch.cat([filled, target], dim=1),
                lsgan=settings.lsgan,
                feature_matching=settings.feature_matching,
            )
        return found


def make_stage(
    settings: MappingSettings,
    *,
    clean: Sequence[Path],
    vae_old: Path,
    vae_clean: Path,
    textures: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
) -> Stage:
    """The stage, on the VAEs of two run folders.

    Args:
        clean: folders of clean photos.
        vae_old, vae_clean: run folders of the stages before.
        textures: a folder of damage textures.
        backbone: weights of a perceptual backbone.
        init_from: run folder of a mapping stage to start from (both VAEs included).

    Raises:
        ValueError: a folder is missing, holds nothing readable, or a network does not fit.
    """
    torch.manual_seed(settings.seed)
    vaes = {"vae_old": vae_old, "vae_clean": vae_clean}
    networks = nn.ModuleDict()
    for name, folder in vaes.items():
        vae = VAE(VAEConfig(**_config(folder)["vae"]))
        load_averaged(vae, folder, "vae")
        networks[name] = vae
    networks["mapping"] = MappingNetwork(settings.network)
    if init_from is not None:
        for name, network in networks.items():
            load_averaged(network, init_from, name)
    old, translate, new = (
        networks["vae_old"],
        networks["mapping"],
        networks["vae_clean"],
    )
    assert isinstance(old, VAE)
    assert isinstance(new, VAE)
    assert isinstance(translate, MappingNetwork)
    for vae in (old, new):
        vae.requires_grad_(False)
    if settings.trains == "all":  # what restoring uses: old encoder, mapping, clean decoder
        old.encoder.requires_grad_(True)
        new.decoder.requires_grad_(True)
    critic = None
    if settings.lsgan or settings.feature_matching:
        critic = image_adversary(settings.adversary, 6)
    judge = perceptual_backbone(backbone, settings.perceptual)
    generator = Translation(old, translate, new, settings=settings, backbone=judge, critic=critic)
    weights = {
        name: getattr(settings, name)
        for name in ("pixel", "latent", "lsgan", "feature_matching", "perceptual")
    }
    players = {"mapping": Player(generator, weights, settings.lr)}
    if critic is not None:
        players[critic.name] = adversary_player(critic, settings.adversary.lr)
    pieces = TextureSet.from_folder(textures) if textures is not None else None

    def samples(held_out: bool) -> Pairs:
        smallest = max(settings.crop_px, settings.late_crop_px, 2 * settings.crop_px * held_out)
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=smallest)
        damage = settings.degradation
        if held_out:  # figures of damaged, not faded photos: tone would hide the rest
            damage = replace(damage, p_fading=0.0, p_undamaged=0.0, p_structured=1.0)
        return Pairs(photos, damage, pieces, 0 if held_out else settings.mask_dilation_px)

    return Stage(
        name="mapping",
        config={"vae": asdict(old.config), "mapping": asdict(settings.network)},
        networks=networks,
        players=players,
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=_validate,
        sheet=_sheet,
        columns=4,
    )


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(read_state(folder / "state.pt")["config"])
    return config


def _restore(networks: nn.ModuleDict, degraded: Tensor, mask: Tensor) -> Tensor:
    latent = networks["vae_old"].encode(fill_holes(degraded, mask))  # type: ignore[operator]
    restored: Tensor = networks["vae_clean"].decode(  # type: ignore[operator]
        networks["mapping"](latent, mask)
    )
    return restored


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """PSNR whole and inside holes, beside the mere fill; and of an undamaged photo restored."""
    degraded, mask, target = batch["degraded"], batch["mask"], batch["target"]
    restored = _restore(networks, degraded, mask)
    filled = fill_holes(degraded, mask)

    def in_holes(image: Tensor) -> float:
        squared = ((image.clamp(-1, 1) - target) / 2).square().mean(dim=1, keepdim=True)
        return float(-10 * ((squared * mask).sum() / mask.sum().clamp(min=1)).log10())

    undamaged = _restore(networks, target, torch.zeros_like(mask))
    return {
        "psnr": float(losses.psnr(restored, target).mean()),
        "psnr_filled": float(losses.psnr(filled, target).mean()),
        "psnr_holes": in_holes(restored),
        "psnr_holes_filled": in_holes(filled),
        "psnr_undamaged": float(losses.psnr(undamaged, target).mean()),
    }


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    degraded, mask, target = batch["degraded"], batch["mask"], batch["target"]
    columns = [
        degraded,
        fill_holes(degraded, mask),
        _restore(networks, degraded, mask),
        target,
    ]
    return torch.stack(columns, dim=1).flatten(0, 1)
