"""The commands under `oldrestore train`: settings of a preset, with any field given as a flag."""

import contextlib
import dataclasses
import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter
from torch import distributed as dist

from oldrestore.config import Defaults
from oldrestore.layers import choose_backend
from oldrestore.train import face as face_stage
from oldrestore.train import mapping as mapping_stage
from oldrestore.train import mask as mask_stage
from oldrestore.train import tone as tone_stage
from oldrestore.train import vae as vae_stage
from oldrestore.train.config import (
    FaceSettings,
    LoopSettings,
    MappingSettings,
    MaskSettings,
    ToneSettings,
    VAESettings,
)
from oldrestore.train.loop import Stage, Trainer
from oldrestore.train.presets import Settings, preset
from oldrestore.train.release import write_face_release, write_release
from oldrestore.train.threshold import choose_threshold

app = App(name="train", help="Train the stages of the triplet, then release them as one file.")


def _overrides(*settings: type[Any], skip: frozenset[str] = frozenset()) -> type[Any]:
    """A dataclass with the fields of all ``settings``, each optional: what a flag may change."""
    kinds: dict[str, list[Any]] = {}
    helps: dict[str, list[str]] = {}
    for one in settings:
        hints, described = typing.get_type_hints(one), _helps(one)
        for field in dataclasses.fields(one):
            if field.name not in skip and field.init:
                kinds.setdefault(field.name, []).append(hints[field.name])
                helps.setdefault(field.name, []).append(described.get(field.name, ""))
    fields: list[tuple[str, Any, Any]] = []
    for name, found in kinds.items():
        kind = _flag_kind(found)
        text = " / ".join(dict.fromkeys(filter(None, helps[name])))
        described_kind = Annotated[kind | None, Parameter(help=text or None)]  # type: ignore[valid-type]  # made at run time
        fields.append((name, described_kind, dataclasses.field(default=None)))
    title = "Or".join(one.__name__ for one in settings)
    made = dataclasses.make_dataclass(f"{title}Flags", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # make_dataclass says "types", which cyclopts takes for a builtin
    return made


def _flag_kind(kinds: Sequence[Any]) -> Any:
    """The type of a flag whose field is of these types in the members of a union of settings."""
    members = [member for kind in kinds for member in (typing.get_args(kind) or (kind,))]
    if all(map(dataclasses.is_dataclass, members)):
        return _overrides(*members)
    # one number here, a list of them there: a flag that takes a list takes one number too
    return next((kind for kind in kinds if typing.get_origin(kind) is tuple), kinds[0])


def _helps(settings: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of the fields: "name, name: text"."""
    entry = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", flags=re.MULTILINE)
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        for names, text in entry.findall(inspect.getdoc(base) or ""):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _given(overrides: Any) -> dict[str, Any]:
    """What was given on the command line, by the name of its field."""
    fields = [] if overrides is None else dataclasses.fields(overrides)
    values = {field.name: getattr(overrides, field.name) for field in fields}
    return {name: value for name, value in values.items() if value is not None}


def _apply(settings: Any, overrides: Any, prefix: str = "") -> Any:
    """``settings`` with what was given on the command line, nested settings too.

    Raises:
        ValueError: the settings of this preset have no such field, or not that many values.
    """
    changes = {}
    for name, value in _given(overrides).items():
        flag = f"{prefix}{name}"
        if not hasattr(settings, name):
            known = ", ".join(field.name for field in dataclasses.fields(settings))
            raise ValueError(
                f"{flag}: this preset has a {type(settings).__name__}, which knows {known}"
            )
        ours = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            changes[name] = _apply(ours, value, f"{flag}.")
        elif isinstance(value, tuple) and not isinstance(ours, tuple):
            if len(value) != 1:
                raise ValueError(f"{flag}: this preset takes one number, got {value}")
            changes[name] = value[0]
        else:
            changes[name] = value
    return dataclasses.replace(settings, **changes)


def _flags(stage: type[LoopSettings], skip: frozenset[str] = frozenset()) -> Any:
    return Annotated[_overrides(stage, skip=skip) | None, Parameter(name="*")]


def _settings(
    stage: type[Settings], name: str, overrides: Any, kind: str | None = None
) -> Settings:
    changed = _apply(preset(stage, name, kind), overrides)
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
    settings = _settings(VAESettings, common.preset, flags, domain)

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
        detector: weights file with the detector of --detected-share.
        backbone: weights of VGG-19 or MobileNetV2 for the perceptual loss.
    """
    settings = _settings(MappingSettings, common.preset, flags, variant)

    def make() -> Stage:
        return mapping_stage.make_stage(
            settings,
            clean=common.clean,
            vae_old=vae_old,
            vae_clean=vae_clean,
            textures=textures,
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
    settings = _settings(MaskSettings, common.preset, flags)
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    found = choose_threshold(detector, settings, clean=common.clean, textures=textures, crops=crops)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def tone(run: Path, *, common: Common, flags: Any = None) -> None:
    """Learn to undo fading.

    Args:
        run: folder of the run; a run that is there is continued.
    """
    settings = _settings(ToneSettings, common.preset, flags)

    def make() -> Stage:
        return tone_stage.make_stage(settings, clean=common.clean, init_from=common.init_from)

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
    settings = _settings(FaceSettings, common.preset, flags)

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
    mapping: Path,
    mask: Path | None = None,
    tone: Path | None = None,
    about: Path | None = None,
    defaults: Any = None,
) -> None:
    """Write what `restore` uses of finished runs as one file of weights.

    Args:
        output: the safetensors file.
        mapping: run folder of the mapping stage; the VAEs come from it too.
        mask: run folder of the detector, or a weights file with one; the published may go without.
        tone: run folder of the tone head, or a weights file with one; published networks have none.
        about: JSON file of facts to store: data and licences, scores.
        defaults: of `restore` with these weights.
    """
    facts = json.loads(about.read_text()) if about is not None else {}
    changed = _given(defaults)
    write_release(output, mapping=mapping, mask=mask, tone=tone, about=facts, defaults=changed)


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
vae.__annotations__["flags"] = _flags(VAESettings, frozenset({"domain"}))
mapping.__annotations__["flags"] = _flags(MappingSettings)
mask.__annotations__["flags"] = threshold.__annotations__["flags"] = _flags(MaskSettings)
tone.__annotations__["flags"] = _flags(ToneSettings)
face.__annotations__["flags"] = _flags(FaceSettings)
release.__annotations__["defaults"] = Annotated[_overrides(Defaults) | None, Parameter(name="*")]
for command in (vae, mapping, mask, threshold, tone, face, release, release_face):
    app.command(command)
