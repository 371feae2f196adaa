"""The operations whose speed decides the package's: one definition, several backends each."""

from __future__ import annotations

from typing import Any

import torch

from oldrestore.ops import bottleneck as _bottleneck
from oldrestore.ops import conv_norm_act as _conv_norm_act
from oldrestore.ops import conv_rows as _conv_rows
from oldrestore.ops import instance_norm_act as _instance_norm_act
from oldrestore.ops import partial_nonlocal as _partial_nonlocal
from oldrestore.ops import patch_attention as _patch_attention
from oldrestore.ops import residual_block as _residual_block
from oldrestore.ops._dispatch import Backend, is_static, set_backend, static_control_flow
from oldrestore.ops._native import forget_packed_weights, freed_memory_kept, map_of_rows
from oldrestore.ops.bottleneck import bottleneck
from oldrestore.ops.conv_norm_act import conv_norm_act
from oldrestore.ops.conv_rows import BAND_ROWS, conv_rows
from oldrestore.ops.instance_norm_act import instance_norm_act
from oldrestore.ops.partial_nonlocal import partial_nonlocal
from oldrestore.ops.patch_attention import patch_attention
from oldrestore.ops.residual_block import residual_block

__all__ = [
    "BAND_ROWS",
    "available",
    "bottleneck",
    "conv_norm_act",
    "conv_rows",
    "describe",
    "fastest",
    "forget_packed_weights",
    "freed_memory_kept",
    "instance_norm_act",
    "is_static",
    "map_of_rows",
    "partial_nonlocal",
    "patch_attention",
    "residual_block",
    "set_backend",
    "static_control_flow",
]

_OPERATIONS = {
    module.OPERATION.name: module.OPERATION
    for module in (
        _bottleneck,
        _conv_norm_act,
        _conv_rows,
        _instance_norm_act,
        _partial_nonlocal,
        _patch_attention,
        _residual_block,
    )
}


def available(name: str, device: torch.device | str = "cpu") -> list[str]:
    """The backends of operation ``name`` that this installation can run on ``device``.

    Fastest first; "reference" is always the last.

    Raises:
        ValueError: there is no operation of that name.
    """
    if name not in _OPERATIONS:
        raise ValueError(f"name: expected one of {', '.join(_OPERATIONS)}; got {name!r}")
    backends = _OPERATIONS[name].backends
    return [b.name for b in backends if b.missing(torch.device(device)) is None]


def fastest(
    name: str, device: torch.device, *operands: Any, backend: str | None = None, **options: Any
) -> str:
    """The backend that operation ``name`` would run these operands by.

    Raises:
        ValueError: ``backend``, if given, cannot run them.
    """
    chosen: Backend = _OPERATIONS[name].choose(backend, device, *operands, **options)
    return chosen.name


def describe(device: torch.device | str = "cpu") -> list[dict[str, str | None]]:
    """What can run on ``device``: one row per operation and backend, fastest first.

    Each row has "operation", "backend" and "missing": why it cannot run, or None if it can.
    """
    device = torch.device(device)
    return [
        {"operation": name, "backend": b.name, "missing": b.missing(device)}
        for name, operation in _OPERATIONS.items()
        for b in operation.backends
    ]
