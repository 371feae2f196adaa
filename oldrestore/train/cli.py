"""The commands under `oldrestore train`: settings of a preset, with any field given as a flag."""

import contextlib
import dataclasses
import json
import os
import typing
from collections.abc import Callable, Iterator
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
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(settings):
        if field.name in skip or not field.init:
            continue
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            kind = _overrides(kind)
        fields.append((field.name, kind | None, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(
        f"{settings.__name__}Flags", fields, frozen=True, kw_only=True
    )
    made.__module__ = __name__  # make_dataclass says "types", which cyclopts takes for a builtin
    return made


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


def _run(
    make: Callable[[], Stage],
    settings: LoopSettings,
    folder: Path,
    device: str | None,
    threads: int | None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    with _processes(device) as on:
        Trainer(make(), settings, folder, on).run()


def vae(
    run: Path,
    *,
    clean: list[Path],
    old: list[Path] | None = None,
    domain: str = "clean",
    preset: str = "compact",
    textures: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    flags: Any = None,
) -> None:
    """Learn the latent space of a domain.

    Args:
        run: folder of the run; a run that is there is continued.
        clean: folders of clean photos, drawn from equally often.
        old: folders of real old photos, for the old domain.
        domain: "clean" or "old".
        preset: "tiny" or "compact".
        textures: folder of damage textures (grey pictures, white = damage).
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
        init_from: run folder of another VAE to start from.
        device: "cpu", "cuda", ...; the GPU if there is one.
        threads: of the networks on a CPU.
    """
    settings = _settings(VAESettings, preset, flags, domain=domain)

    def make() -> Stage:
        return vae_stage.make_stage(
            settings,
            clean=clean,
            old=old or [],
            textures=textures,
            backbone=backbone,
            init_from=init_from,
        )

    _run(make, settings, run, device, threads)


def mapping(
    run: Path,
    *,
    clean: list[Path],
    vae_old: Path,
    vae_clean: Path,
    preset: str = "compact",
    textures: Path | None = None,
    backbone: Path | None = None,
    init_from: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    flags: Any = None,
) -> None:
    """Learn to translate latents of old photos to those of clean ones.

    Args:
        run: folder of the run; a run that is there is continued.
        clean: folders of clean photos, drawn from equally often.
        vae_old: run folder of the old domain's VAE.
        vae_clean: run folder of the clean domain's VAE.
        preset: "tiny" or "compact".
        textures: folder of damage textures (grey pictures, white = damage).
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
        init_from: run folder of another mapping to start from, its VAEs included.
        device: "cpu", "cuda", ...; the GPU if there is one.
        threads: of the networks on a CPU.
    """
    settings = _settings(MappingSettings, preset, flags)

    def make() -> Stage:
        return mapping_stage.make_stage(
            settings,
            clean=clean,
            vae_old=vae_old,
            vae_clean=vae_clean,
            textures=textures,
            backbone=backbone,
            init_from=init_from,
        )

    _run(make, settings, run, device, threads)


def mask(
    run: Path,
    *,
    clean: list[Path],
    old: list[Path] | None = None,
    preset: str = "compact",
    textures: Path | None = None,
    init_from: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    flags: Any = None,
) -> None:
    """Learn to find scratches, spots and tears.

    Args:
        run: folder of the run; a run that is there is continued.
        clean: folders of clean photos, drawn from equally often.
        old: folders of real old photos, as further ground to lay damage on.
        preset: "tiny" or "compact".
        textures: folder of damage textures (grey pictures, white = damage).
        init_from: run folder of another detector to start from.
        device: "cpu", "cuda", ...; the GPU if there is one.
        threads: of the networks on a CPU.
    """
    settings = _settings(MaskSettings, preset, flags)

    def make() -> Stage:
        return mask_stage.make_stage(
            settings, clean=clean, old=old or [], textures=textures, init_from=init_from
        )

    _run(make, settings, run, device, threads)


def tone(
    run: Path,
    *,
    clean: list[Path],
    preset: str = "compact",
    init_from: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    flags: Any = None,
) -> None:
    """Learn to undo fading.

    Args:
        run: folder of the run; a run that is there is continued.
        clean: folders of clean photos, drawn from equally often.
        preset: "tiny" or "compact".
        init_from: run folder of another tone head to start from.
        device: "cpu", "cuda", ...; the GPU if there is one.
        threads: of the networks on a CPU.
    """
    settings = _settings(ToneSettings, preset, flags)

    def make() -> Stage:
        return tone_stage.make_stage(settings, clean=clean, init_from=init_from)

    _run(make, settings, run, device, threads)


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
