"""Stage "tone": learn the curve that undoes fading, from small copies of whole photos."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.degradation import DegradationSettings, degrade, sample_degradation
from oldrestore.tone import ToneHead, apply_tone, is_toned, thumbnail
from oldrestore.train import losses
from oldrestore.train.config import ToneSettings
from oldrestore.train.data import Batch, PhotoFolders, crop
from oldrestore.train.loop import Player, Stage
from oldrestore.train.state import kind_of, read_source

# a photo counts as faded when its mean colour error exceeds this, of the range [-1, 1]
FADED_ERROR = 0.03


@dataclass(frozen=True)
class FadedThumbnails:
    """Small copies of a faded photo and of the same photo with its tone."""

    clean: PhotoFolders
    degradation: DegradationSettings

    def draw(self, rng: np.random.Generator, crop_px: int, index: int) -> Batch:  # noqa: ARG002
        clean = crop(self.clean.pick(rng), crop_px, rng, smallest_scale=0.0)
        damage = sample_degradation(rng, crop_px, crop_px, settings=self.degradation)
        pair = degrade(clean, damage)
        return {
            "degraded": thumbnail(pair.image[None])[0],
            "target": thumbnail(pair.clean[None])[0],
            "faded": ((pair.target - pair.clean).abs().mean() > FADED_ERROR).float()[None],
        }


class ToneUndoing(nn.Module):
    """The tone head's side, the only one."""

    def __init__(self, head: ToneHead, settings: ToneSettings) -> None:
        super().__init__()
        self.head = head
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        corrected, faded, toned = correct(self.head, batch["degraded"])
        found = {}
        if self.settings.pixel:
            found["pixel"] = losses.tone_log_error(corrected, batch["target"], toned)
        if self.settings.faded:
            with torch.autocast(
                faded.device.type, enabled=False
            ):  # of a probability: needs float32
                found["faded"] = F.binary_cross_entropy(faded.float(), batch["faded"])
        return found


def correct(head: ToneHead, degraded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thumbnails corrected at full strength, (B, 1) probability of fading, (B, 1) toned or not."""
    toned = is_toned(degraded)
    curve = head(degraded)
    return apply_tone(degraded, curve.common(toned)), curve.faded, toned


def make_stage(
    settings: ToneSettings, *, clean: Sequence[Path], init_from: Path | None = None
) -> Stage:
    """The stage.

    Args:
        clean: folders of clean photos.
        init_from: run folder of another tone head, or a weights file with one, to start from.

    Raises:
        ValueError: a folder is missing or holds nothing readable, or the network does not fit.
    """
    torch.manual_seed(settings.seed)
    head = ToneHead(settings.network)
    if init_from is not None:
        source = read_source(init_from)
        source.fill(head, source.name_of("tone"), settings.network)

    def samples(held_out: bool) -> FadedThumbnails:
        photos = PhotoFolders(clean, held_out=held_out, smallest_px=2 * settings.crop_px)
        return FadedThumbnails(photos, settings.degradation)

    weights = {"pixel": settings.pixel, "faded": settings.faded}
    return Stage(
        name="tone",
        config={"preset": kind_of(settings.network), "tone": asdict(settings.network)},
        networks=nn.ModuleDict({"tone": head}),
        players={"tone": Player(ToneUndoing(head, settings), weights, settings.lr)},
        samples=samples(held_out=False),
        validation=samples(held_out=True),
        validate=_validate,
        sheet=_sheet,
        columns=3,
    )


def _corrected(networks: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
    head = networks["tone"]
    assert isinstance(head, ToneHead)
    corrected, faded, _ = correct(head, batch["degraded"])
    return torch.where(faded[..., None, None] > 0.5, corrected, batch["degraded"]), faded


def _validate(networks: nn.ModuleDict, batch: Batch) -> dict[str, float]:
    """PSNR before and after, of faded and of not faded photos; how often fading is told right."""
    corrected, faded = _corrected(networks, batch)
    before = losses.psnr(batch["degraded"], batch["target"])
    after = losses.psnr(corrected, batch["target"])
    is_faded = batch["faded"][:, 0] > 0.5
    return {
        "faded_before": float(before[is_faded].mean()),
        "faded_after": float(after[is_faded].mean()),
        "unfaded_before": float(before[~is_faded].mean()),
        "unfaded_after": float(after[~is_faded].mean()),
        "told_right": float(((faded[:, 0] > 0.5) == is_faded).float().mean()),
    }


def _sheet(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    columns = [batch["degraded"], _corrected(networks, batch)[0], batch["target"]]
    return torch.stack(columns, dim=1).flatten(0, 1)
