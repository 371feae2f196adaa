"""Stage "mapping": translate latents of old photos to those of clean ones.

Wan et al., CVPR 2020, section 3.2, eq. 3, trained on synthetic pairs. The target keeps the tone of
the input: fading is the tone head's part. The published networks see holes painted white, ours see
them filled; the published quality variant sees no mask at all.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.fill import fill_holes, paint_white
from oldrestore.mapping import MappingNetwork, PaperMappingNetwork, make_mapping
from oldrestore.perceptual import Backbone
from oldrestore.train import losses
from oldrestore.train.config import END_TO_END, MappingSettings
from oldrestore.train.data import Batch
from oldrestore.train.finder import Finder
from oldrestore.train.growth import fill_grown
from oldrestore.train.loop import Player, Stage
from oldrestore.train.pairs import pairs
from oldrestore.train.players import (
    Adversary,
    adversary_player,
    align_latents,
    image_adversary,
    latent_adversary,
    perceptual_backbone,
)
from oldrestore.train.state import Source, kind_of, read_source
from oldrestore.vae import VAE

Translator = MappingNetwork | PaperMappingNetwork
AT_ONCE = 4  # held-out crops: validation shall not need more memory than a step of a small batch
LOSSES = (
    "pixel",
    "latent",
    "plain_latent",
    "lsgan",
    "feature_matching",
    "perceptual",
    "latent_adversary",
    "real_reconstruction",
)


def shown(mapping: Translator, degraded: Tensor, mask: Tensor) -> Tensor:
    """What the old encoder is given of a damaged image, as in restoring."""
    if not mapping.uses_mask:
        return degraded
    fill = paint_white if isinstance(mapping, PaperMappingNetwork) else fill_holes
    return fill(degraded, mask)


class Translation(nn.Module):
    """The mapping's side: reach the clean photo's latent, and its picture."""

    def __init__(
        self,
        vae_old: VAE,
        mapping: Translator,
        vae_clean: VAE,
        *,
        settings: MappingSettings,
        backbone: Backbone | None,
        critic: Adversary | None,
        latent_critic: Adversary | None,
        finder: Finder | None,
    ) -> None:
        super().__init__()
        self.vae_old = vae_old
        self.mapping = mapping
        self.vae_clean = vae_clean
        self.settings = settings
        # in a tuple: what only judges is no part of this player
        self._judges = (backbone, critic, latent_critic, finder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        settings = self.settings
        backbone, critic, latent_critic, finder = self._judges
        degraded, target = batch["degraded"], batch["target"]
        mask = _mask(batch, finder)
        given = shown(self.mapping, degraded, mask)
        mapped = self.mapping(self.vae_old.encode(given), mask)
        restored = self.vae_clean.decode(mapped)
        found = {}
        if settings.pixel:  # damage that the detector missed counts as much as what it found
            found["pixel"] = losses.pixel_l1(
                restored, target, torch.maximum(mask, batch["mask"]), settings.hole_weight
            )
        if settings.latent or settings.plain_latent:
            with torch.no_grad():
                goal = self.vae_clean.encode(target)
        if settings.latent:
            found["latent"] = losses.latent_l1(mapped, goal)
        if settings.plain_latent:
            found["plain_latent"] = F.l1_loss(mapped, goal)
        if backbone is not None:
            found["perceptual"] = backbone.perceptual_loss(restored, target)
        if critic is not None:  # conditional, as published: the discriminator sees the input too
            found |= critic.deceive(
                torch.cat([given, restored], dim=1),
                torch.cat([given, target], dim=1),
                lsgan=settings.lsgan,
                feature_matching=settings.feature_matching,
            )
        if "real" in batch:
            found |= self._of_real_photos(batch, latent_critic)
        return found

    def _of_real_photos(self, batch: Batch, critic: Adversary | None) -> dict[str, Tensor]:
        """What holds the old encoder to eq. 1 and 2 while it is trained for synthetic pairs."""
        real, found = self.vae_old.encode(batch["real"]), {}
        if self.settings.real_reconstruction:
            restored = self.vae_old.decode(real)
            found["real_reconstruction"] = (restored - batch["real"]).abs().mean()
        if critic is not None:
            with torch.no_grad():  # with its holes, as the real ones are
                synthetic = self.vae_old.encode(batch["degraded"])
            found["latent_adversary"] = align_latents(critic, real, synthetic)
        return found


def _mask(batch: Batch, finder: Finder | None) -> Tensor:
    """The true masks, and of the samples drawn for it the detector's."""
    if finder is None:
        return batch["mask"]
    is_detected = batch["is_detected"]
    mask = batch["mask"].clone()
    if is_detected.any():
        mask[is_detected] = finder(batch["degraded"][is_detected])
    return mask


def make_stage(
    settings: MappingSettings,
    *,
    clean: Sequence[Path],
    vae_old: Path | None = None,
    vae_clean: Path | None = None,
    textures: Path | None = None,
    old: Sequence[Path] = (),
    detector: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
) -> Stage:
    """The stage, on two trained VAEs.

    Args:
        clean: folders of clean photos.
        old: folders of real old photos, of which latents are kept among those of synthetic ones;
            needed if, and only if, such a loss is on.
        vae_old, vae_clean: run folders of the stages before, or weights files; may be left out if
            ``init_from`` is given. Trained end to end, there are none.
        textures: a folder of damage textures.
        detector: a weights file with the detector whose masks ``detected_share`` is about.
        backbone: weights of a perceptual backbone.
        init_from: run folder of a mapping stage, or weights file, to start from, with the VAEs
            that are not given. Its mapping may have fewer residual blocks.

    Raises:
        ValueError: a folder is missing, holds nothing readable, or a network does not fit.
    """
    torch.manual_seed(settings.seed)
    networks = _networks(settings, vae_old, vae_clean, init_from)
    judge = perceptual_backbone(backbone, settings.perceptual)
    drawn = functools.partial(pairs, settings, clean=clean, old=old, textures=textures)
    finder = _finder(settings, detector)

    vae = networks["vae_old"]
    assert isinstance(vae, VAE)
    kind = kind_of(settings.network)
    return Stage(
        name="mapping",
        config={"preset": kind, "vae": asdict(vae.config), "mapping": asdict(settings.network)},
        networks=networks,
        players=_players(settings, networks, judge, finder),
        samples=drawn(held_out=False),
        validation=drawn(held_out=True),
        validate=functools.partial(_validate, finder=finder),
        sheet=_sheet,
        columns=4,
        judges=[module for module in (judge, finder) if module is not None],
    )


def _finder(settings: MappingSettings, detector: Path | None) -> Finder | None:
    """The detector whose masks some samples have, if any shall.

    Raises:
        ValueError: they shall, and there is none.
    """
    if not settings.detected_share:
        return None
    if detector is None:
        raise ValueError(
            "detector: a share of the samples is to have a detector's masks: name a weights file "
            "with --detector, or set detected_share to 0"
        )
    return Finder(detector)


def _players(
    settings: MappingSettings,
    networks: nn.ModuleDict,
    judge: Backbone | None,
    finder: Finder | None,
) -> dict[str, Player]:
    """The mapping, with what is trained beside it, then the discriminator if its loss is on."""
    old, mapping, new = (networks[name] for name in ("vae_old", "mapping", "vae_clean"))
    assert isinstance(old, VAE)
    assert isinstance(mapping, Translator)
    assert isinstance(new, VAE)
    for vae in (old, new):
        vae.requires_grad_(False)
    if settings.trains != "mapping":  # what restoring uses: old encoder, mapping, clean decoder
        old.encoder.requires_grad_(True)
        new.decoder.requires_grad_(True)
    critic = latent_critic = None
    if settings.lsgan or settings.feature_matching:
        critic = image_adversary(settings.adversary, 6)
    if settings.latent_adversary:
        latent_critic = latent_adversary(settings.adversary, settings.network.latent_channels)
    if settings.real_reconstruction:
        old.decoder.requires_grad_(True)
    generator = Translation(
        old,
        mapping,
        new,
        settings=settings,
        backbone=judge,
        critic=critic,
        latent_critic=latent_critic,
        finder=finder,
    )
    weights = {name: getattr(settings, name) for name in LOSSES}
    players = {"mapping": Player(generator, weights, settings.lr)}
    for adversary in (critic, latent_critic):
        if adversary is not None:
            players[adversary.name] = adversary_player(adversary, settings.adversary.lr)
    return players


def _networks(
    settings: MappingSettings, vae_old: Path | None, vae_clean: Path | None, init_from: Path | None
) -> nn.ModuleDict:
    """Both VAEs and the mapping, each from where it is said to come from, or all untrained.

    Raises:
        ValueError: a VAE comes from nowhere, or a network does not fit.
    """
    start = None if init_from is None else read_source(init_from)
    # what the losses leave unused may be missing: a weights file need not hold it
    is_encoded = settings.latent > 0 or settings.plain_latent > 0
    unused = {
        "vae_old": ("to_logvar",) if settings.real_reconstruction else ("decoder", "to_logvar"),
        "vae_clean": ("to_logvar",) if is_encoded else ("encoder", "to_logvar"),
    }
    networks = nn.ModuleDict()
    if settings.trains == END_TO_END:
        _check_fresh(settings, {"vae_old": vae_old, "vae_clean": vae_clean, "init_from": init_from})
        networks = nn.ModuleDict({name: VAE(settings.vae) for name in ("vae_old", "vae_clean")})
    for name, path in (("vae_old", vae_old), ("vae_clean", vae_clean)):
        if name in networks:
            continue
        source = start if path is None else read_source(path)
        if source is None:
            raise ValueError(
                f"{name}: not given: name the run folder of this VAE, or with --init-from a run "
                "folder or weights file that holds both VAEs and a mapping"
            )
        networks[name] = _vae(source, name, unused[name], settings)
    mapping = networks["mapping"] = make_mapping(settings.network)
    if start is not None:
        fill_grown(start, mapping, start.name_of("mapping"), settings.network)
    mapping.use_nonlocal = settings.use_nonlocal
    if not settings.use_nonlocal:
        _silence_nonlocal(mapping)
    return networks


def _check_fresh(settings: MappingSettings, given: Mapping[str, Path | None]) -> None:
    """End to end, nothing is given and the layouts go together.

    Raises:
        ValueError: they do not, or something is.
    """
    for name, path in given.items():
        if path is not None:
            raise ValueError(f"{name}: trained {END_TO_END}, all starts from random numbers")
    vae, mapping = settings.vae, settings.network
    if (kind_of(vae), vae.latent_channels) != (kind_of(mapping), mapping.latent_channels):
        raise ValueError(
            f"vae: of preset {kind_of(vae)} with {vae.latent_channels} channels; the mapping is of "
            f"{kind_of(mapping)} with {mapping.latent_channels}"
        )


def _silence_nonlocal(mapping: Translator) -> None:
    """Let the block add nothing, for good: what is released restores as it was trained.

    Raises:
        ValueError: this network has no such block.
    """
    if not isinstance(mapping, MappingNetwork):
        raise ValueError("use_nonlocal: only the mapping of compact can be trained without it")
    mapping.nonlocal_block.requires_grad_(False)
    for parameter in mapping.nonlocal_block.nu.parameters():
        nn.init.zeros_(parameter)


def _vae(source: Source, name: str, unused: Sequence[str], settings: MappingSettings) -> VAE:
    """A VAE that goes with the mapping."""
    layout, ours = source.vae_layout(), settings.network
    if (source.kind, layout.latent_channels) != (kind_of(ours), ours.latent_channels):
        raise ValueError(
            f"{source.path}: its VAE is of preset {source.kind} and has {layout.latent_channels} "
            f"channels; the mapping is of {kind_of(ours)} and has {ours.latent_channels}"
        )
    vae = VAE(layout)
    source.fill(vae, source.name_of(name, "vae"), layout, *unused)
    return vae


def _restore(networks: nn.ModuleDict, degraded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the networks are shown of damaged images, and what they make of it."""
    old, mapping, new = (networks[name] for name in ("vae_old", "mapping", "vae_clean"))
    assert isinstance(old, VAE)
    assert isinstance(mapping, Translator)
    assert isinstance(new, VAE)
    given = shown(mapping, degraded, mask)
    restored = [
        new.decode(mapping(old.encode(few), its_mask))
        for few, its_mask in zip(
            torch.split(given, AT_ONCE), torch.split(mask, AT_ONCE), strict=True
        )
    ]
    return given, torch.cat(restored)


def _validate(
    networks: nn.ModuleDict, batch: Batch, finder: Finder | None = None
) -> dict[str, float]:
    """PSNR whole and, where there are any, inside holes, beside that of what the networks are
    shown; of an undamaged photo restored; and with a detector's masks, if there is one."""
    degraded, mask, target = batch["degraded"], batch["mask"], batch["target"]
    given, restored = _restore(networks, degraded, mask)
    _, undamaged = _restore(networks, target, torch.zeros_like(mask))
    figures = {
        "psnr": float(losses.psnr(restored, target).mean()),
        "psnr_filled": float(losses.psnr(given, target).mean()),
        "psnr_undamaged": float(losses.psnr(undamaged, target).mean()),
    }

    if finder is not None:
        _, found = _restore(networks, degraded, finder(degraded))
        figures["psnr_detected"] = float(losses.psnr(found, target).mean())

    def in_holes(image: Tensor) -> float:
        squared = ((image.clamp(-1, 1) - target) / 2).square().mean(dim=1, keepdim=True)
        return float(-10 * ((squared * mask).sum() / mask.sum()).log10())

    if mask.any():
        figures |= {"psnr_holes": in_holes(restored), "psnr_holes_filled": in_holes(given)}
    return figures


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    degraded, target = batch["degraded"], batch["target"]
    columns = [degraded, *_restore(networks, degraded, batch["mask"]), target]
    return torch.stack(columns, dim=1).flatten(0, 1)
