"""What stages leave behind and start from: the state of a run, or a weights file."""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oldrestore.checkpoint import config_from_json, load_strictly, read_checkpoint
from oldrestore.config import restorer_config
from oldrestore.degradation import DegradationSettings
from oldrestore.denoise import DenoiseConfig
from oldrestore.face.enhancer import FaceConfig
from oldrestore.mapping import MappingConfig, PaperMappingConfig
from oldrestore.mask import DetectorConfig, PaperDetectorConfig
from oldrestore.tone import ToneConfig
from oldrestore.train.config import LoopSettings
from oldrestore.vae import PaperVAEConfig, VAEConfig

STATE_FORMAT = 1
STATE_FILE = "state.pt"
# settings that a resumed run may change: how long, and what is written when
MAY_CHANGE = frozenset(
    {
        "steps",
        "late_share",
        "workers",
        "log_every",
        "validate_every",
        "sheet_every",
        "save_minutes",
    }
)

PaperLayout = PaperVAEConfig | PaperMappingConfig | PaperDetectorConfig
OwnLayout = VAEConfig | MappingConfig | DetectorConfig | ToneConfig | DenoiseConfig | FaceConfig
Layout = OwnLayout | PaperLayout


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state a stage saved.

    Raises:
        ValueError: the file is not such a state.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no training state there; train this stage first") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not a training state: {error}") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise ValueError(f"{path}: not a training state of format {STATE_FORMAT}")
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is left alone.
    """
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a name without content
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        part.unlink(missing_ok=True)
        raise OSError(f"{path}: step {state['step']} could not be saved: {error}") from error


def check_settings(theirs: Mapping[str, Any], settings: LoopSettings, folder: Path) -> None:
    """A run goes on with the settings it had, but for those of ``MAY_CHANGE``.

    Args:
        theirs: as they stand in its state. A setting that the run did not have yet was as its
            default now is; one of the degradation, as it is for evaluation; a part of the detector,
            as it is in the default.
        settings: that it shall go on with.
        folder: of the run, for messages.

    Raises:
        ValueError: they differ; names the first.
    """
    ours = _as_json(settings)
    filled = _as_json(type(settings)()) | dict(theirs)
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, DegradationSettings | DetectorConfig):
            filled[field.name] = _as_json(type(value)()) | filled[field.name]
    for name in ours:
        if name not in MAY_CHANGE and filled[name] != ours[name]:
            raise ValueError(
                f"{folder}: holds a run with {name}={filled[name]}, not {ours[name]}; "
                f"give the same settings to continue it, or another folder to start anew"
            )


def _as_json(settings: Any) -> dict[str, Any]:
    """What reading the written settings gives back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


def kind_of(layout: Layout) -> str:
    """Whose networks have such a layout: "paper" or "compact"."""
    return "paper" if isinstance(layout, PaperLayout) else "compact"


@dataclass(frozen=True)
class Source:
    """Trained networks: of a run folder, their averaged weights, or of a weights file.

    path: the folder or file.
    kind: "paper" or "compact": whose networks they are.
    config: layouts of the networks, as they stand in a weights file.
    tensors: by name; names start with that of their network.
    steps: of the run that trained them last; None for a weights file.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    steps: int | None

    def holds(self, name: str) -> bool:
        """Whether there is anything of the network or part ``name``."""
        return any(key.startswith(f"{name}.") for key in self.tensors)

    def name_of(self, *names: str) -> str:
        """The first of ``names`` that it holds.

        Raises:
            ValueError: it holds none.
        """
        for name in names:
            if self.holds(name):
                return name
        there = ", ".join(sorted({key.split(".")[0] for key in self.tensors}))
        raise ValueError(f"{self.path}: expected a network {' or '.join(names)}, holds {there}")

    def vae_layout(self) -> VAEConfig | PaperVAEConfig:
        """The layout of its VAEs.

        Raises:
            ValueError: it holds no VAE.
        """
        values, name = self.config.get("vae"), f"{self.path}: config.vae"
        if self.kind == "paper":
            return config_from_json(PaperVAEConfig, values, name)
        return config_from_json(VAEConfig, values, name)

    def fill(self, network: nn.Module, name: str, layout: Layout, *unused: str) -> None:
        """Give ``network`` the weights of ``name``.

        Args:
            layout: what ``network`` was built from.
            unused: parts that the stage does not need; ``network`` loses those that are not here.

        Raises:
            ValueError: a part is missing, or the layout is another one; the message says what.
        """
        self._check_layout(name, layout)
        missing = [part for part, _ in network.named_children() if not self.holds(f"{name}.{part}")]
        for part in set(missing) & set(unused):
            setattr(network, part, None)
        lacking = ", ".join(f"{name}.{part}" for part in missing if part not in unused)
        if lacking:
            raise ValueError(
                f"{self.path}: lacks {lacking}, which this stage needs; a weights file may hold no "
                "more than restoring takes, so start from the run folder that it came from"
            )
        load_strictly(network, self.tensors, name, self.path)

    def _check_layout(self, name: str, layout: Layout) -> None:
        """What is here was built as the settings say."""
        if kind_of(layout) != self.kind:
            raise ValueError(
                f"{self.path}: holds networks of preset {self.kind}, not {kind_of(layout)}; "
                "give the preset that they were trained at"
            )
        theirs = self.config.get("vae" if name.startswith("vae") else name) or {}
        if isinstance(layout, DetectorConfig):  # runs from before there were refiners have none
            theirs = {"refiner": 0, **theirs}
        for field, ours in json.loads(json.dumps(asdict(layout))).items():
            if theirs.get(field) != ours:
                raise ValueError(
                    f"{self.path}: network {name} does not fit: {field} is {theirs.get(field)} "
                    f"there, {ours} in the settings (--network.{field.replace('_', '-')})"
                )


def read_source(path: Path) -> Source:
    """The networks of a run folder, or of a weights file.

    Raises:
        ValueError: it is neither.
        FileNotFoundError: there is no such weights file.
    """
    if path.suffix != ".safetensors" and not path.is_file():
        state = read_state(path / STATE_FILE)
        config = json.loads(state["config"])
        kind = config.get("preset", "compact")  # runs from before there were others say nothing
        return Source(path, kind, config, state["averaged"], state["step"])
    checkpoint = read_checkpoint(path)
    layouts = checkpoint.config
    if "face" not in layouts:  # a face network lies in a file of its own
        layouts = json.loads(json.dumps(asdict(restorer_config(layouts, f"{path}: config"))))
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in checkpoint.tensors.items()}
    return Source(path, layouts.get("preset", "compact"), layouts, tensors, None)
