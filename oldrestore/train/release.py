"""From finished runs to the one file that `oldrestore.restore` reads."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from oldrestore.checkpoint import config_from_json, write_checkpoint
from oldrestore.config import Defaults, CompactConfig
from oldrestore.train.loop import read_state

# of the averaged networks of a mapping run, what restoring needs
_MAPPING_PARTS = ("vae_old.encoder.", "mapping.", "vae_clean.decoder.")


def write_release(
    output: Path,
    *,
    mapping: Path,
    mask: Path,
    tone: Path,
    about: dict[str, Any],
    defaults: Defaults | None = None,
) -> None:
    """Write the averaged weights of finished (or running) stages as one checkpoint.

    Args:
        output: the safetensors file; float16.
        mapping, mask, tone: run folders.
        about: facts to store with it; the steps of the runs are added.
        defaults: of `restore`.

    Raises:
        ValueError: a run folder holds no state.
    """
    runs = {"mapping": mapping, "mask": mask, "tone": tone}
    states = {name: read_state(folder / "state.pt") for name, folder in runs.items()}
    tensors: dict[str, Tensor] = {
        key: value
        for key, value in states["mapping"]["averaged"].items()
        if key.startswith(_MAPPING_PARTS)
    }
    for name in ("mask", "tone"):
        tensors |= states[name]["averaged"]
    layouts: dict[str, Any] = asdict(CompactConfig(defaults=defaults or Defaults()))
    for state in states.values():
        layouts |= json.loads(state["config"])
    config = config_from_json(CompactConfig, layouts, "config")
    steps = {f"{name}_steps": state["step"] for name, state in states.items()}
    write_checkpoint(output, tensors, asdict(config), {**about, **steps})
