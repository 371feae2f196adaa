"""``oldrestore info``: what is installed, which weights are used, what runs the operations."""

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL
import torch
from cyclopts import Parameter

import oldrestore
from oldrestore import ops
from oldrestore.checkpoint import read_checkpoint
from oldrestore.cli.terminal import DONE
from oldrestore.face.stage import face_weights_of
from oldrestore.networks import DEFAULT_WEIGHTS


def info(
    *,
    weights: Path | None = None,
    device: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say what is installed, which weights are used, and what runs the operations.

    Args:
        weights: Weights file; the one shipped if none is given.
        device: To ask for; "auto" takes the GPU if there is one.
        as_json: Print JSON.
    """
    path = weights or DEFAULT_WEIGHTS
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        about: dict[str, Any] | str = read_checkpoint(path).about
    except (OSError, ValueError) as error:
        about = str(error)
    facts = {
        "oldrestore": oldrestore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "weights": str(path),
        "about the weights": about,
        "faces": _faces(),
        "operations": ops.describe(device),
    }
    if as_json:
        print(json.dumps(facts))
        return DONE
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            print("\n".join(f"    {key}: {entry}" for key, entry in value.items()))
        elif isinstance(value, list):
            print(f"{name}, fastest first:")
            for row in value:
                state = f"not active: {row['missing']}" if row["missing"] else "active"
                print(f"    {row['operation']} {row['backend']}: {state}")
        else:
            print(f"{name}: {value}")
    return DONE


def _faces() -> str:
    """Whether faces are enhanced unless told otherwise; if not, what is missing."""
    try:
        return f"on, with {face_weights_of('on', None)}"
    except ValueError as error:
        return f"off; {str(error).removeprefix('faces: ')}"
