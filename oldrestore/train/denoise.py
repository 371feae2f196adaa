"""Stage "denoise": learn how much of the networks' change a photo needs, from patches of it.

A crop is damaged and restored by given weights. With the share w of the change taken, the mean
square error outside holes is a parabola in w, of which three numbers are kept. The head is to
choose w where its logarithm is least, so that sound and hopeless photos count alike.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from oldrestore.degradation import TextureSet, degrade, sample_degradation
from oldrestore.denoise import PATCH_PX, START, DenoiseHead
from oldrestore.pipeline import Restorer
from oldrestore.train.config import DenoiseSettings
from oldrestore.train.data import Batch, PhotoFolders, crop
from oldrestore.train.loop import Player, Stage
from oldrestore.train.state import kind_of, read_source

# of [-1, 1], squared: at 44 dB, where an error is no longer seen. Were it lower, the head would
# rather leave damaged photos alone than touch a sound one at all.
ERROR_FLOOR = 1.6e-4


@dataclass(frozen=True)
class RestoredCrops:
    """Patches of damaged crops, and what restoring does to each crop's error.

    Of ``settings.samples`` crops each is made once and kept, as the restoration costs more than a
    step of training.
    """

    clean: PhotoFolders
    settings: DenoiseSettings
    restorer: Restorer
    textures: TextureSet | None
    _made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def draw(self, rng: Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        slot = int(rng.integers(self.settings.samples))
        if slot not in self._made:
            self._made[slot] = self._make(np.random.default_rng([self.settings.seed, slot]))
        pixels, parabola = self._made[slot]
        return {"patches": _patches(pixels.float() / 127.5 - 1), "parabola": parabola}

    def _make(self, rng: Generator) -> tuple[Tensor, Tensor]:
        """A damaged crop (3, S, S) uint8, its holes filled, and its ``parabola_of``."""
        side, settings = self.settings.crop_px, self.settings
        is_native = rng.random() < settings.native_share
        scale = 1.0 if is_native else settings.smallest_scale
        clean = crop(self.clean.pick(rng), side, rng, smallest_scale=scale)
        damage = sample_degradation(
            rng, side, side, settings=settings.degradation, textures=self.textures
        )
        pair = degrade(clean, damage, self.textures)
        image = (((pair.image + 1) * 127.5).round() / 127.5 - 1)[None]  # as files hold it
        mask = pair.mask[None]
        filled = self.restorer.fill(image, mask)
        restored = self.restorer.translate(filled, mask)
        bytes_of_it = ((filled[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return bytes_of_it, parabola_of(image, restored, pair.target[None], mask)


def parabola_of(image: Tensor, restored: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What the error is for each share taken: (3,) a, b, c of a + 2 b w + c w^2.

    It is the mean of (image + w (restored - image) - target)^2 where the mask (1, 1, H, W) is 0;
    the others are (1, 3, H, W) in [-1, 1].
    """
    sound = (mask == 0).expand_as(image)
    before, change = (image - target)[sound].double(), (restored - image)[sound].double()
    terms = [(before * before).mean(), (before * change).mean(), (change * change).mean()]
    return torch.stack(terms).nan_to_num().float()  # nothing is left of a crop that is all hole


def error_at(parabola: Tensor, share: Tensor) -> Tensor:
    """The mean square error of parabolas (B, 3) at shares (B,)."""
    a, b, c = parabola.unbind(dim=1)
    return (a + 2 * b * share + c * share * share).clamp(min=0)


def best_share(parabola: Tensor) -> Tensor:
    """The shares (B,) with the least error."""
    _, b, c = parabola.unbind(dim=1)
    return (-b / c.clamp(min=1e-12)).clamp(0, 1)


class DenoiseChoosing(nn.Module):
    """The head's side, the only one."""

    def __init__(self, head: DenoiseHead, settings: DenoiseSettings) -> None:
        super().__init__()
        self.head = head
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if not self.settings.error:
            return {}
        error = error_at(batch["parabola"], self.head(batch["patches"]).float())
        return {"error": (error + ERROR_FLOOR).log().mean()}


def make_stage(
    settings: DenoiseSettings,
    *,
    clean: Sequence[Path],
    weights: Path | None = None,
    textures: Path | None = None,
    init_from: Path | None = None,
) -> Stage:
    """The stage.

    Args:
        clean: folders of clean photos.
        weights: weights file that restores the damaged crops; None: the one shipped.
        textures: folder of damage textures; None = only synthetic damage.
        init_from: run folder of another such head, or a weights file with one, to start from.

    Raises:
        ValueError: a folder is missing or holds nothing readable, the network does not fit, or the
            crops hold no whole patches.
    """
    torch.manual_seed(settings.seed)
    if settings.crop_px % PATCH_PX or settings.late_crop_px not in (0, settings.crop_px):
        raise ValueError(
            f"crop_px: expected a multiple of {PATCH_PX}, the same throughout, "
            f"got {settings.crop_px}, {settings.late_crop_px}"
        )
    head = DenoiseHead(settings.network)
    if init_from is not None:
        source = read_source(init_from)
        source.fill(head, source.name_of("denoise"), settings.network)
    restorer = Restorer.load(weights, "cpu", faces="off")
    texture_set = None if textures is None else TextureSet.from_folder(textures)

    def samples(held_out: bool) -> RestoredCrops:
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=settings.crop_px)
        return RestoredCrops(photos, settings, restorer, texture_set)

    return Stage(
        name="denoise",
        config={"preset": kind_of(settings.network), "denoise": asdict(settings.network)},
        networks=nn.ModuleDict({"denoise": head}),
        players={
            "denoise": Player(
                DenoiseChoosing(head, settings), {"error": settings.error}, settings.lr
            )
        },
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=_validate,
        sheet=_sheet,
        columns=(settings.crop_px // PATCH_PX) ** 2,
        validation_crops=256,
    )


def _patches(image: Tensor) -> Tensor:
    """A crop (3, S, S) as its patches (N, 3, 64, 64)."""
    tiles = image.unfold(1, PATCH_PX, PATCH_PX).unfold(2, PATCH_PX, PATCH_PX)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """Mean PSNR, at most 44 dB, with one share for all, with the head's, and with the best."""
    parabola = batch["parabola"]
    chosen, best = networks["denoise"](batch["patches"]), best_share(parabola)

    def psnr(share: Tensor) -> float:
        error = error_at(parabola, share) + ERROR_FLOOR
        return float(-10 * (error / 4).log10().mean())

    return {
        "psnr_fixed": psnr(torch.full_like(chosen, START)),
        "psnr_chosen": psnr(chosen),
        "psnr_best": psnr(best),
        "share_off": float((chosen - best).abs().mean()),
    }


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    """The crops' patches, those that are to be changed most first."""
    order = networks["denoise"](batch["patches"]).argsort(descending=True)
    return batch["patches"][order].flatten(0, 1)
