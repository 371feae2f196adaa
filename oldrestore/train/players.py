"""What the stages' players share: frozen rivals, the discriminator's side, the perceptual term."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from oldrestore.perceptual import Backbone, load_backbone
from oldrestore.train import losses
from oldrestore.train.config import AdversarySettings
from oldrestore.train.data import Batch
from oldrestore.train.discriminators import MultiscaleDiscriminator, scores
from oldrestore.train.loop import Player


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through ``module`` but none is kept for its parameters."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


class Adversary(nn.Module):
    """A discriminator's side of the game: tell ``real`` from ``fake``.

    ``judged`` is filled by the generator's step just before: both sides look at the same pictures.
    """

    def __init__(self, name: str, discriminator: MultiscaleDiscriminator) -> None:
        super().__init__()
        self.name = name
        self.discriminator = discriminator
        self.judged: tuple[Tensor, Tensor] | None = None  # fake, real; both detached

    def forward(self, _batch: Batch) -> dict[str, Tensor]:
        assert self.judged is not None
        fake, real = self.judged
        self.judged = None
        loss = losses.lsgan(scores(self.discriminator(fake)), is_real=False)
        loss = loss + losses.lsgan(scores(self.discriminator(real)), is_real=True)
        return {self.name: 0.5 * loss}

    def deceive(
        self, fake: Tensor, real: Tensor, *, lsgan: float, feature_matching: float
    ) -> dict[str, Tensor]:
        """The generator's losses against this discriminator, which remembers the pictures."""
        self.judged = (fake.detach(), real.detach())
        found = {}
        with frozen(self.discriminator):
            features = self.discriminator(fake)
            if lsgan:
                found["lsgan"] = losses.lsgan(scores(features), is_real=True)
            if feature_matching:
                found["feature_matching"] = losses.feature_matching(
                    features, self.discriminator(real)
                )
        return found


def image_adversary(settings: AdversarySettings, channels_in: int) -> Adversary:
    """The discriminator of images, as the settings say."""
    return Adversary(
        "discriminator",
        MultiscaleDiscriminator(
            channels_in,
            settings.channels,
            settings.scales,
            spectral_norm=settings.spectral_norm,
        ),
    )


def latent_adversary(settings: AdversarySettings, channels: int) -> Adversary:
    """The discriminator that tells latents of real old photos from those of synthetic ones."""
    return Adversary(
        "latent_discriminator", MultiscaleDiscriminator(channels, settings.channels, 1)
    )


def align_latents(critic: Adversary, real: Tensor, synthetic: Tensor) -> Tensor:
    """The encoder's loss against it (Wan et al., eq. 2).

    One-sided: latents of synthetic photos are the goal, only those of real ones are moved.
    """
    return critic.deceive(real, synthetic, lsgan=1.0, feature_matching=0.0)["lsgan"]


def adversary_player(adversary: Adversary, lr: float) -> Player:
    """The discriminator's player."""
    return Player(adversary, {adversary.name: 1.0}, lr)


def perceptual_backbone(path: Path | None, weight: float) -> Backbone | None:
    """The backbone of the perceptual loss, if the loss is on.

    Raises:
        ValueError: the loss has a weight and no backbone was given.
    """
    if not weight:
        return None
    if path is None:
        raise ValueError(
            f"backbone: the perceptual loss has the weight {weight:g} and compares by an ImageNet "
            "network, of which none comes with this package: give a file of VGG-19 (as published) "
            "or MobileNetV2 with --backbone, or switch the loss off with --perceptual 0"
        )
    return load_backbone(path)
