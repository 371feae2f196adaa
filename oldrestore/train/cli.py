"""The commands under `oldrestore train`: settings of a preset, with any field given as a flag."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter
from torch import distributed as dist

from oldrestore.config import Defaults
from oldrestore.layers import choose_backend
from oldrestore.networks import DEFAULT_WEIGHTS
from oldrestore.train import denoise as denoise_stage
from oldrestore.train import face as face_stage
from oldrestore.train import mapping as mapping_stage
from oldrestore.train import mask as mask_stage
from oldrestore.train import tone as tone_stage
from oldrestore.train import vae as vae_stage
from oldrestore.train.config import (
    DenoiseSettings,
    FaceSettings,
    LoopSettings,
    MappingSettings,
    MaskSettings,
    ToneSettings,
    VAESettings,
)
from oldrestore.train.flags import flags_of, given, overrides_of, settings_of
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.refiner import refine
from oldrestore.train.release import write_face_release, write_release
from oldrestore.train.threshold import choose_threshold

app = App(name="train", help="Train the stages of the triplet, then release them as one file.")


@contextlib.contextmanager
def _processes(device: str | None) -> Iterator[torch.device]:
    """This process's device; joins the others that `torchrun` started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{local}"
        torch.cuda.set_device(local)
    if world > 1:
        dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        yield torch.device(name)
    finally:
        if world > 1:
            dist.destroy_process_group()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every stage is given.

    Parameters
    ----------
    clean:
        Folders of clean photos, drawn from equally often.
    preset:
        "compact" (the networks that are shipped) or "paper" (the published ones); "tiny" and
        "paper-tiny" are the same made small, to try things out.
    init_from:
        Run folder or weights file whose networks to start from, to train them on.
    device:
        "cpu", "cuda", ...; the GPU if there is one.
    threads:
        Of the networks on a CPU.
    backend:
        Of the operations ("oldrestore info" lists them); "auto" takes the fastest.
    """

    clean: list[Path]
    preset: str = "compact"
    init_from: Path | None = None
    device: str | None = None
    threads: int | None = None
    backend: str = "auto"

    def train(self, run: Path, settings: LoopSettings, make: Callable[[], Stage]) -> None:
        """Start the run in its folder, or continue it."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with _processes(self.device) as device:
            stage = make()
            if self.backend != "auto":
                choose_backend(stage.networks.values(), self.backend, device)
            Trainer(stage, settings, run, device).run()


def vae(
    run: Path,
    *,
    common: Common,
    domain: Literal["clean", "old"] = "clean",
    old: list[Path] | None = None,
    textures: Path | None = None,
    backbone: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn the latent space of a domain.

    Args:
        run: folder of the run; a run that is there is continued.
        domain: "clean" or "old".
        old: folders of real old photos, for the old domain.
        textures: folder of damage textures (grey pictures, white = damage).
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
    """
    settings = settings_of(VAESettings, common.preset, flags, domain)

    def make() -> Stage:
        return vae_stage.make_stage(
            settings,
            clean=common.clean,
            old=old or [],
            textures=textures,
            backbone=backbone,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def mapping(
    run: Path,
    *,
    common: Common,
    variant: Literal["scratch", "hr", "quality"] | None = None,
    vae_old: Path | None = None,
    vae_clean: Path | None = None,
    textures: Path | None = None,
    old: list[Path] | None = None,
    detector: Path | None = None,
    backbone: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn to translate latents of old photos to those of clean ones.

    Args:
        run: folder of the run; a run that is there is continued.
        variant: of the preset paper: "scratch" (if not given), "hr" or "quality", as published.
        vae_old: run folder of the old domain's VAE, or a weights file; else that of --init-from.
        vae_clean: the same for the clean domain.
        textures: folder of damage textures (grey pictures, white = damage).
        old: folders of real old photos, for --latent-adversary and --real-reconstruction.
        detector: weights file with the detector of --detected-share.
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
    """
    settings = settings_of(MappingSettings, common.preset, flags, variant)

    def make() -> Stage:
        return mapping_stage.make_stage(
            settings,
            clean=common.clean,
            vae_old=vae_old,
            vae_clean=vae_clean,
            textures=textures,
            old=old or [],
            detector=detector,
            backbone=backbone,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def mask(
    run: Path,
    *,
    common: Common,
    old: list[Path] | None = None,
    textures: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn to find scratches, spots and tears.

    Args:
        run: folder of the run; a run that is there is continued.
        old: folders of real old photos, as further ground to lay damage on.
        textures: folder of damage textures (grey pictures, white = damage).
    """
    settings = settings_of(MaskSettings, common.preset, flags)

    def make() -> Stage:
        return mask_stage.make_stage(
            settings,
            clean=common.clean,
            old=old or [],
            textures=textures,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def refiner(
    output: Path,
    *,
    common: Common,
    backbone: Path,
    old: list[Path] | None = None,
    textures: Path | None = None,
    crops: int = 3600,
    batches: int = 4000,
    width: int = 192,
    flags: Any = None,
) -> None:
    """Give a detector a refiner, which sees the photo through MobileNetV2; prints JSON.

    Args:
        output: the weights file to write: that of --init-from, or the one shipped, with a refiner.
        backbone: weights of MobileNetV2.
        old: folders of real old photos, as further ground to lay damage on.
        textures: folder of damage textures, as in training the detector.
        crops: how many to learn from.
        batches: of cells, how many to learn from.
        width: of the refiner's hidden layers.
    """
    settings = settings_of(MaskSettings, common.preset, flags)
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    found = refine(
        output,
        settings,
        weights=common.init_from or DEFAULT_WEIGHTS,
        backbone=backbone,
        clean=common.clean,
        old=old or [],
        textures=textures,
        crops=crops,
        steps=batches,
        width=width,
    )
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def threshold(
    detector: Path,
    *,
    common: Common,
    textures: Path | None = None,
    crops: int = 600,
    flags: Any = None,
) -> None:
    """Choose a detector's threshold on what was held out of its training; prints JSON.

    Args:
        detector: run folder of the stage mask, or a weights file.
        textures: folder of damage textures, as in training.
        crops: how many crops to judge by.
    """
    settings = settings_of(MaskSettings, common.preset, flags)
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    found = choose_threshold(detector, settings, clean=common.clean, textures=textures, crops=crops)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def tone(run: Path, *, common: Common, flags: Any = None) -> None:
    """Learn to undo fading.

    Args:
        run: folder of the run; a run that is there is continued.
    """
    settings = settings_of(ToneSettings, common.preset, flags)

    def make() -> Stage:
        return tone_stage.make_stage(settings, clean=common.clean, init_from=common.init_from)

    common.train(run, settings, make)


def denoise(
    run: Path,
    *,
    common: Common,
    weights: Path | None = None,
    textures: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn how much of the networks' change a photo needs.

    Args:
        run: folder of the run; a run that is there is continued.
        weights: weights file that restores the damaged crops; the one shipped if none is given.
        textures: folder of damage textures (grey pictures, white = damage).
    """
    settings = settings_of(DenoiseSettings, common.preset, flags)

    def make() -> Stage:
        return denoise_stage.make_stage(
            settings,
            clean=common.clean,
            weights=weights,
            textures=textures,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def face(
    run: Path,
    *,
    common: Common,
    weights: Path | None = None,
    backbone: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn to sharpen restored faces; needs the extra "faces", to find them in the portraits.

    Args:
        run: folder of the run; a run that is there is continued.
        weights: weights file that restores the damaged portraits; the one shipped if none is given.
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
    """
    settings = settings_of(FaceSettings, common.preset, flags)

    def make() -> Stage:
        return face_stage.make_stage(
            settings,
            clean=common.clean,
            weights=weights,
            backbone=backbone,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def release(
    output: Path,
    *,
    mapping: list[Path],
    mask: list[Path] | None = None,
    tone: list[Path] | None = None,
    denoise: list[Path] | None = None,
    about: Path | None = None,
    defaults: Any = None,
) -> None:
    """Write what `restore` uses of finished runs as one file of weights.

    Args:
        output: the safetensors file.
        mapping: run folder of the mapping stage; the VAEs come from it too.
        mask: run folder of the detector, or a weights file with one; the published may go without.
        tone: run folder of the tone head, or a weights file with one; published networks have none.
        denoise: the same of the head that says how much of the change a photo needs; may be left
            out. Of several of one kind, trained on from one start, the mean of the weights is
            written, which is often better than either.
        about: JSON file of facts to store: data and licences, scores.
        defaults: of `restore` with these weights.
    """
    facts = json.loads(about.read_text()) if about is not None else {}
    changed = given(defaults)
    write_release(
        output,
        mapping=mapping,
        mask=mask,
        tone=tone,
        denoise=denoise,
        about=facts,
        defaults=changed,
    )


def release_face(output: Path, *, face: Path, about: Path | None = None) -> None:
    """Write a finished face run as a file for --face-weights.

    Args:
        output: the safetensors file.
        face: run folder of the stage face.
        about: JSON file of facts to store: data and licences, scores.
    """
    facts = json.loads(about.read_text()) if about is not None else {}
    write_face_release(output, face=face, about=facts)


# cyclopts reads the flags off the annotations; those of the settings are made from their fields
vae.__annotations__["flags"] = flags_of(VAESettings, frozenset({"domain"}))
mapping.__annotations__["flags"] = flags_of(MappingSettings)
mask.__annotations__["flags"] = threshold.__annotations__["flags"] = flags_of(MaskSettings)
refiner.__annotations__["flags"] = flags_of(MaskSettings)
tone.__annotations__["flags"] = flags_of(ToneSettings)
denoise.__annotations__["flags"] = flags_of(DenoiseSettings)
face.__annotations__["flags"] = flags_of(FaceSettings)
release.__annotations__["defaults"] = Annotated[overrides_of(Defaults) | None, Parameter(name="*")]
for command in (vae, mapping, mask, refiner, threshold, tone, denoise, face, release, release_face):
    app.command(command)
