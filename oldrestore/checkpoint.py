"""One self-describing safetensors file a model: write it, read it strictly.

The file's header holds three texts: ``format``; ``config``, JSON, what the networks are built from;
``about``, JSON, what a user should know: data and their licences, steps, scores. Weights lie in
half precision on disk and are used in float32. Nothing here reads pickles, which can run code.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

FORMAT = "oldrestore/1"
# first bytes of what torch.save writes: a zip archive, or a bare pickle of protocol 2 or later
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds: plain JSON values, and tensors by name in the precision of the file."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    about: dict[str, Any]


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    half: bool = True,
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: the file; its folder exists. What is there is replaced in the last step.
        tensors: by name, on any device.
        config, about: whatever JSON can hold.
        half: store floating point in 16 bits.

    Raises:
        ValueError: a tensor is not finite, or too large for 16 bits.
        OSError: the file cannot be written; nothing is left behind.
    """
    stored = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu()
        if half and value.is_floating_point():
            value = value.half()
        if not value.isfinite().all():
            raise ValueError(f"{name}: not finite{' in 16 bits' if half else ''}, not written")
        stored[name] = value.clone(memory_format=torch.contiguous_format)
    header = {
        "format": FORMAT,
        "config": json.dumps(config),
        "about": json.dumps(about),
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(to_bytes(stored, header))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint. Runs no code from the file, whatever it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pickle, damaged, or not of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        if _is_pickle(path):
            raise ValueError(
                f"{path}: is a pickle (torch.save), which could run code; "
                "expected a .safetensors file written by oldrestore"
            ) from error
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        found = header.get("format", "no format")
        raise ValueError(f"{path}: expected format {FORMAT!r} in its header, got {found!r}")
    return Checkpoint(_json(header, "config", path), tensors, _json(header, "about", path))


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors starts with eight bytes of length, which can begin as a pickle does, and then JSON
    is_bare = start.startswith(PICKLE_START) and len(start) == 9 and not start.endswith(b"{")
    return is_bare or start.startswith(ZIP_START)


def _json(header: Mapping[str, str], name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(header.get(name, ""))
    except ValueError as error:
        raise ValueError(f"{path}: {name} in its header is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {name} in its header: expected a JSON object, got {value!r}")
    return value


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str,
    path: str | os.PathLike[str],
) -> None:
    """Fill ``module`` with the tensors whose names start with ``prefix`` and a dot.

    Raises:
        ValueError: a key is missing, extra, misshapen or not finite: names the first, and ``path``.
    """
    expected = {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    given = {name: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
    for name in expected:
        if name not in given:
            raise ValueError(f"{path}: missing key {name}")
    for name, value in given.items():
        if name not in expected:
            raise ValueError(f"{path}: unknown key {name}")
        if value.shape != expected[name].shape:
            wanted, got = tuple(expected[name].shape), tuple(value.shape)
            raise ValueError(f"{path}: {name}: expected shape {wanted}, got {got}")
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name}: holds values that are not finite")
    module.load_state_dict({name[len(prefix) + 1 :]: value for name, value in given.items()})


def config_from_json(cls: type[T], values: Any, name: str) -> T:
    """Build a dataclass from what ``dataclasses.asdict`` and JSON made of one, nested or not.

    Args:
        cls: the dataclass; its fields are bool, int, float, str, tuples of these, or dataclasses.
        values: the parsed JSON.
        name: what to call it in messages.

    Raises:
        ValueError: a field is missing, unknown or of another type: names the first.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name}: expected a JSON object, got {values!r}")
    hints = get_type_hints(cls)
    for field in hints:
        if field not in values:
            raise ValueError(f"{name}: missing field {field!r}")
    for field in values:
        if field not in hints:
            raise ValueError(f"{name}: unknown field {field!r}")
    return cls(**{key: _typed(hint, values[key], f"{name}.{key}") for key, hint in hints.items()})


def _typed(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the type ``hint``, which JSON may have widened."""
    if type(None) in get_args(hint):  # X | None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
        return None if value is None else _typed(hint, value, name)
    if dataclasses.is_dataclass(hint):
        return config_from_json(typing.cast("type[Any]", hint), value, name)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(hint)[0], item, name) for item in value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
