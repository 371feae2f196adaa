"""From finished runs to the one file that `oldrestore.restore` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oldrestore.checkpoint import write_checkpoint
from oldrestore.config import HR_DILATION_PX, CompactConfig, PaperConfig, restorer_config
from oldrestore.face.enhancer import SIDE_PX
from oldrestore.train.state import Source, read_source

# what restoring needs of the networks of a mapping run; of `paper` all is kept, to train on from
_MAPPING_PARTS = {
    "compact": ("vae_old.encoder.", "mapping.", "vae_clean.decoder."),
    "paper": ("vae_old.", "mapping.", "vae_clean."),
}


def write_release(
    output: Path,
    *,
    mapping: Path | Sequence[Path],
    mask: Path | Sequence[Path] | None = None,
    tone: Path | Sequence[Path] | None = None,
    denoise: Path | Sequence[Path] | None = None,
    about: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write the averaged weights of finished (or running) stages as one checkpoint.

    `compact` networks are written in float16. The published ones are written in float32, both VAEs
    whole, so that the file loses nothing and can be trained on.

    Args:
        output: the safetensors file.
        mapping, mask, tone: run folders, or weights files that hold the network. `compact` needs
            all three; `paper` has no tone head, and may go without a detector.
        denoise: likewise; `compact` may go without, and then takes one share for all photos.
            Of several of any kind, all from one start, the mean of the weights is written.
        about: facts to store with it; the steps of the runs are added.
        defaults: of `restore`, by name, where they differ from the preset's.

    Raises:
        ValueError: a run is missing, holds no state, or is of another preset; or several are to be
            one and do not fit.
    """
    folders = {"mapping": mapping, "mask": mask, "tone": tone, "denoise": denoise}
    sources = {
        name: _mean(name, [paths] if isinstance(paths, Path) else paths)
        for name, paths in folders.items()
        if paths is not None
    }
    kind = _kind(sources)
    tensors: dict[str, Tensor] = {}
    for name, source in sources.items():
        source.name_of(name)
        parts = _MAPPING_PARTS[kind] if name == "mapping" else (f"{name}.",)
        tensors |= {key: value for key, value in source.tensors.items() if key.startswith(parts)}
    config = _config(sources, kind)
    config["defaults"] |= defaults or {}
    checked = restorer_config(config, "config")
    steps = {f"{name}_steps": s.steps for name, s in sources.items() if s.steps is not None}
    write_checkpoint(output, tensors, asdict(checked), {**about, **steps}, half=kind == "compact")


def _mean(name: str, paths: Sequence[Path]) -> Source:
    """The mean of networks of one layout (Wortsman et al., Model soups, ICML 2022)."""
    first, *others = sources = [read_source(path) for path in paths]
    if not others:
        return first
    parts = _MAPPING_PARTS[first.kind] if name == "mapping" else (f"{name}.",)
    keys = {key for key in first.tensors if key.startswith(parts)}
    for other in others:
        same = other.kind == first.kind and other.config.get(name) == first.config.get(name)
        if not same or {key for key in other.tensors if key.startswith(parts)} != keys:
            raise ValueError(
                f"{name}: {other.path} does not fit {first.path}: expected networks of one layout, "
                "for their mean"
            )
    tensors = {
        key: torch.stack([source.tensors[key].double() for source in sources]).mean(0).to(value)
        for key, value in first.tensors.items()
        if key in keys
    }
    return replace(first, tensors=tensors, steps=None)


def write_face_release(output: Path, *, face: Path, about: Mapping[str, Any]) -> None:
    """Write the averaged weights of a face run, in float16, for ``Restorer.load(face_weights=)``.

    Args:
        output: the safetensors file.
        face: run folder of the stage "face".
        about: facts to store with it; the steps of the run are added.

    Raises:
        ValueError: the run is missing, or holds no face network.
    """
    source = read_source(face)
    name = source.name_of("face")
    config = {
        "preset": source.kind,
        "face": source.config["face"],
        "face_side_px": source.config.get("face_side_px", SIDE_PX),
    }
    steps = {} if source.steps is None else {"face_steps": source.steps}
    tensors = {key: v for key, v in source.tensors.items() if key.startswith(f"{name}.")}
    write_checkpoint(output, tensors, config, {**about, **steps})


def _kind(sources: Mapping[str, Source]) -> str:
    """The preset of all of them."""
    kind = sources["mapping"].kind
    for name, source in sources.items():
        if source.kind != kind:
            raise ValueError(
                f"{name}: {source.path} is of preset {source.kind}, the mapping of {kind}"
            )
    lacking = [name for name in ("mask", "tone") if kind == "compact" and name not in sources]
    if lacking:
        raise ValueError(f"{', '.join(lacking)}: networks of preset compact need it; name its run")
    return kind


def _config(sources: Mapping[str, Source], kind: str) -> dict[str, Any]:
    """Layouts and defaults, as the file shall hold them."""
    layouts = {"vae": sources["mapping"].config["vae"]}
    layouts |= {name: source.config[name] for name, source in sources.items()}
    if kind == "compact":
        return asdict(CompactConfig(denoise=None)) | layouts
    plain = PaperConfig(mask=None)
    widened = HR_DILATION_PX if layouts["mapping"]["variant"] == "hr" else 0
    return asdict(replace(plain, defaults=replace(plain.defaults, dilation_px=widened))) | layouts
