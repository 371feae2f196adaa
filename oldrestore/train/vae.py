"""Stage "vae": learn the latent space of one domain.

Wan et al., CVPR 2020, section 3.1, eq. 1 and 2. The old domain is fed real and synthetic old photos
half and half; a discriminator tells their latents apart and the encoder is pushed, on real photos
only, to make that impossible.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from oldrestore.degradation import TextureSet, degrade, sample_degradation
from oldrestore.perceptual import Backbone
from oldrestore.train import losses
from oldrestore.train.config import VAESettings
from oldrestore.train.data import Batch, PhotoFolders, crop, smallest_px
from oldrestore.train.loop import Player, Stage, noise_like
from oldrestore.train.players import (
    Adversary,
    adversary_player,
    align_latents,
    image_adversary,
    latent_adversary,
    perceptual_backbone,
)
from oldrestore.train.state import kind_of, read_source
from oldrestore.vae import VAE

LOSSES = ("reconstruction", "kl", "lsgan", "feature_matching", "perceptual", "latent_adversary")


@dataclass(frozen=True)
class CleanCrops:
    """Domain Y: crops of clean photos."""

    clean: PhotoFolders
    smallest_scale: float

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        photo = self.clean.pick(rng)
        return {"image": crop(photo, crop_px, rng, smallest_scale=self.smallest_scale)}


@dataclass(frozen=True)
class OldCrops:
    """Domains R and X in turn: a real old photo, then a synthetic one."""

    clean: PhotoFolders
    old: PhotoFolders
    settings: VAESettings
    textures: TextureSet | None

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:
        is_real = index % 2 == 0
        if is_real:  # as it is: shrinking would take away the damage that is to be learnt
            image = crop(self.old.pick(rng), crop_px, rng, smallest_scale=1.0)
        else:
            scale = self.settings.smallest_scale
            clean = crop(self.clean.pick(rng), crop_px, rng, smallest_scale=scale)
            damage = sample_degradation(
                rng,
                crop_px,
                crop_px,
                settings=self.settings.degradation,
                textures=self.textures,
            )
            image = degrade(clean, damage, self.textures).image
        return {"image": image, "is_real": torch.tensor(is_real)}


class Autoencoding(nn.Module):
    """The VAE's side: reconstruct, stay near the prior, please the discriminators."""

    def __init__(
        self,
        vae: VAE,
        settings: VAESettings,
        backbone: Backbone | None,
        image_critic: Adversary | None,
        latent_critic: Adversary | None,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.settings = settings
        # in a tuple: what only judges is no part of this player
        self._judges = (backbone, image_critic, latent_critic)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        backbone, image_critic, latent_critic = self._judges
        image = batch["image"]
        mean, logvar = self.vae.posterior(image)
        latent = mean + noise_like(mean, batch["seed"]) * (0.5 * logvar).exp()
        restored = self.vae.decode(latent)
        found = {}
        if settings.reconstruction:
            found["reconstruction"] = (restored - image).abs().mean()
        if settings.kl:
            found["kl"] = losses.kl_to_prior(mean, logvar)
        if backbone is not None:
            found["perceptual"] = backbone.perceptual_loss(restored, image)
        if image_critic is not None:
            found |= image_critic.deceive(
                restored,
                image,
                lsgan=settings.lsgan,
                feature_matching=settings.feature_matching,
            )
        if latent_critic is not None:
            real, synthetic = mean[batch["is_real"]], mean[~batch["is_real"]]
            found["latent_adversary"] = align_latents(latent_critic, real, synthetic)
        return found


def make_stage(
    settings: VAESettings,
    *,
    clean: Sequence[Path],
    old: Sequence[Path] = (),
    textures: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
) -> Stage:
    """The stage of one domain.

    Args:
        clean, old: folders of photos; ``old`` is needed for the old domain alone.
        textures: a folder of damage textures.
        backbone: weights of a perceptual backbone.
        init_from: what to start from. The run folder of another VAE: the old one of `compact`
            starts as the clean one, so that both latent spaces agree and the mapping can start as
            the identity. Or the run folder of a mapping or a weights file: its VAE of this domain.

    Raises:
        ValueError: a folder is missing or holds nothing readable, or a network does not fit.
    """
    torch.manual_seed(settings.seed)
    vae = VAE(settings.network)
    if init_from is not None:
        source = read_source(init_from)
        source.fill(vae, source.name_of("vae", f"vae_{settings.domain}"), settings.network)
    is_old = settings.domain == "old"
    if is_old:
        _check_old(old, settings.batch)
    judge = perceptual_backbone(backbone, settings.perceptual)

    def samples(held_out: bool) -> CleanCrops | OldCrops:
        smallest = smallest_px(settings, held_out=held_out)
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=smallest)
        if not is_old:
            return CleanCrops(photos, settings.smallest_scale)
        real = PhotoFolders(old, held_out=held_out, smallest_px=smallest)
        pieces = TextureSet.from_folder(textures) if textures is not None else None
        return OldCrops(photos, real, settings, pieces)

    return Stage(
        name=f"vae_{settings.domain}",
        config={"preset": kind_of(settings.network), "vae": asdict(settings.network)},
        networks=nn.ModuleDict({"vae": vae}),
        players=_players(settings, vae, judge),
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=_validate,
        sheet=_sheet,
        columns=2,
        judges=[] if judge is None else [judge],
    )


def _players(settings: VAESettings, vae: VAE, judge: Backbone | None) -> dict[str, Player]:
    """The VAE, then the discriminators of images and of latents, where their losses are on."""
    image_critic = latent_critic = None
    if settings.lsgan or settings.feature_matching:
        image_critic = image_adversary(settings.adversary, 3)
    if settings.domain == "old" and settings.latent_adversary:
        latent_critic = latent_adversary(settings.adversary, settings.network.latent_channels)
    generator = Autoencoding(vae, settings, judge, image_critic, latent_critic)
    weights = {name: getattr(settings, name) for name in LOSSES}
    players = {"vae": Player(generator, weights, settings.lr)}
    for critic in (image_critic, latent_critic):
        if critic is not None:
            players[critic.name] = adversary_player(critic, settings.adversary.lr)
    return players


def _check_old(old: Sequence[Path], batch: int) -> None:
    """There are real old photos, and every process has as many of them as of synthetic ones."""
    if not old:
        raise ValueError("old: the old domain needs at least one folder of real old photos")
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if batch % (2 * processes):
        raise ValueError(
            f"batch: the old domain takes half real, half synthetic in each of {processes} "
            f"processes: expected a multiple of {2 * processes}, got {batch}"
        )


def _reconstruct(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    vae = networks["vae"]
    assert isinstance(vae, VAE)
    return vae.decode(vae.encode(batch["image"]))


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """PSNR of the reconstruction, of real and synthetic photos apart."""
    quality = losses.psnr(_reconstruct(networks, batch), batch["image"])
    figures = {"psnr": float(quality.mean())}
    if "is_real" in batch:
        figures["psnr_real"] = float(quality[batch["is_real"]].mean())
    return figures


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    return torch.stack([batch["image"], _reconstruct(networks, batch)], dim=1).flatten(0, 1)
