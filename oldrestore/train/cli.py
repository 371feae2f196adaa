"""The commands under `oldrestore train`: settings of a preset, with any field given as a flag."""

import contextlib
import dataclasses
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from torch import distributed as dist

from oldrestore.config import Defaults
from oldrestore.train import mapping as mapping_stage
from oldrestore.train import mask as mask_stage
from oldrestore.train import tone as tone_stage
from oldrestore.train import vae as vae_stage
from oldrestore.train.config import (
    LoopSettings,
    MappingSettings,
    MaskSettings,
    Settings,
    ToneSettings,
    VAESettings,
    preset,
)
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.release import write_release

app = App(name="train", help="Train the stages of the triplet, then release them as one file.")


def _overrides(settings: type[Any], skip: frozenset[str] = frozenset()) -> type[Any]:
    """A dataclass with the fields of ``settings``, each optional: what a flag may change."""
    hints = typing.get_type_hints(settings)
    helps = _helps(settings)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(settings):
        if field.name in skip or not field.init:
            continue
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            kind = _overrides(kind)
        described = Annotated[kind | None, Parameter(help=helps.get(field.name))]  # type: ignore[valid-type]  # made at run time
        fields.append((field.name, described, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(
        f"{settings.__name__}Flags", fields, frozen=True, kw_only=True
    )
    made.__module__ = __name__  # make_dataclass says "types", which cyclopts takes for a builtin
    return made


def _helps(settings: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of the fields: "name, name: text"."""
    entry = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", flags=re.MULTILINE)
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        for names, text in entry.findall(inspect.getdoc(base) or ""):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _apply(settings: Any, overrides: Any) -> Any:
    """``settings`` with what was given on the command line, nested settings too."""
    changes = {}
    for field in dataclasses.fields(overrides):
        value = getattr(overrides, field.name)
        if value is None:
            continue
        ours = getattr(settings, field.name)
        changes[field.name] = _apply(ours, value) if dataclasses.is_dataclass(value) else value
    return dataclasses.replace(settings, **changes)


def _flags(stage: type[LoopSettings], skip: frozenset[str] = frozenset()) -> Any:
    return Annotated[_overrides(stage, skip) | None, Parameter(name="*")]


def _settings(stage: type[Settings], name: str, overrides: Any, **given: Any) -> Settings:
    settings = dataclasses.replace(preset(stage, name), **given)
    changed = settings if overrides is None else _apply(settings, overrides)
    assert isinstance(changed, stage)
    return changed


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
        "tiny" or "compact".
    init_from:
        Run folder of the same stage to start from.
    device:
        "cpu", "cuda", ...; the GPU if there is one.
    threads:
        Of the networks on a CPU.
    """

    clean: list[Path]
    preset: str = "compact"
    init_from: Path | None = None
    device: str | None = None
    threads: int | None = None

    def train(self, run: Path, settings: LoopSettings, make: Callable[[], Stage]) -> None:
        """Start the run in its folder, or continue it."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with _processes(self.device) as device:
            Trainer(make(), settings, run, device).run()


def vae(
    run: Path,
    *,
    common: Common,
    domain: str = "clean",
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
    settings = _settings(VAESettings, common.preset, flags, domain=domain)

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
    vae_old: Path,
    vae_clean: Path,
    textures: Path | None = None,
    backbone: Path | None = None,
    flags: Any = None,
) -> None:
    """Learn to translate latents of old photos to those of clean ones.

    Args:
        run: folder of the run; a run that is there is continued.
        vae_old: run folder of the old domain's VAE.
        vae_clean: run folder of the clean domain's VAE.
        textures: folder of damage textures (grey pictures, white = damage).
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
    """
    settings = _settings(MappingSettings, common.preset, flags)

    def make() -> Stage:
        return mapping_stage.make_stage(
            settings,
            clean=common.clean,
            vae_old=vae_old,
            vae_clean=vae_clean,
            textures=textures,
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
    settings = _settings(MaskSettings, common.preset, flags)

    def make() -> Stage:
        return mask_stage.make_stage(
            settings,
            clean=common.clean,
            old=old or [],
            textures=textures,
            init_from=common.init_from,
        )

    common.train(run, settings, make)


def tone(run: Path, *, common: Common, flags: Any = None) -> None:
    """Learn to undo fading.

    Args:
        run: folder of the run; a run that is there is continued.
    """
    settings = _settings(ToneSettings, common.preset, flags)

    def make() -> Stage:
        return tone_stage.make_stage(settings, clean=common.clean, init_from=common.init_from)

    common.train(run, settings, make)


def release(
    output: Path,
    *,
    mapping: Path,
    mask: Path,
    tone: Path,
    about: Path | None = None,
    defaults: Annotated[Defaults | None, Parameter(name="*")] = None,
) -> None:
    """Write what `restore` uses of finished runs as one file of weights.

    Args:
        output: the safetensors file.
        mapping: run folder of the mapping stage; the VAEs come from it too.
        mask: run folder of the detector.
        tone: run folder of the tone head.
        about: JSON file of facts to store: data and licences, scores.
        defaults: of `restore` with these weights.
    """
    facts = json.loads(about.read_text()) if about is not None else {}
    write_release(output, mapping=mapping, mask=mask, tone=tone, about=facts, defaults=defaults)


# cyclopts reads the flags off the annotations; those of the settings are made from their fields
vae.__annotations__["flags"] = _flags(VAESettings, frozenset({"domain"}))
mapping.__annotations__["flags"] = _flags(MappingSettings)
mask.__annotations__["flags"] = _flags(MaskSettings)
tone.__annotations__["flags"] = _flags(ToneSettings)
for command in (vae, mapping, mask, tone, release):
    app.command(command)
