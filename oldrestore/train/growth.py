"""Start a network from a shallower one: the residual blocks that it lacks begin as the identity
(Chen et al., Net2Net: Accelerating learning via knowledge transfer, ICLR 2016)."""

from dataclasses import replace
from typing import Any

from torch import nn

from oldrestore.layers import ResidualBlock
from oldrestore.mapping import (
    MappingConfig,
    MappingNetwork,
    PaperMappingConfig,
    PaperMappingNetwork,
)
from oldrestore.mask import DetectorConfig, PaperDetector, PaperDetectorConfig, ScratchDetector
from oldrestore.train.state import Source

Grown = ScratchDetector | PaperDetector | MappingNetwork | PaperMappingNetwork
GrownLayout = DetectorConfig | PaperDetectorConfig | MappingConfig | PaperMappingConfig


def fill_grown(source: Source, network: Grown, name: str, layout: GrownLayout) -> None:
    """Give ``network`` the weights of ``name``, which may have fewer residual blocks, or a refiner.

    Args:
        layout: what ``network`` was built from.

    Raises:
        ValueError: a part is missing, or the layout is another one in more than that.
    """
    fewer = _fewer_blocks(source.config.get(name) or {}, layout)
    if not fewer:
        source.fill(network, name, layout)
        return
    shallower: Any = replace(layout, **fewer)
    start = type(network)(shallower)
    source.fill(start, name, shallower)
    network.load_state_dict(start.state_dict(), strict=False)
    known = dict(start.named_modules())
    for place, module in network.named_modules():
        if isinstance(module, ResidualBlock) and place not in known:
            for parameter in module.conv2.parameters():
                nn.init.zeros_(parameter)


def _fewer_blocks(theirs: dict[str, Any], layout: GrownLayout) -> dict[str, Any]:
    """Their numbers of blocks, if none is more than the layout's; empty: they cannot be grown."""
    if isinstance(layout, DetectorConfig):
        counts = tuple(theirs.get("blocks", ()))
        is_fewer = len(counts) == len(layout.blocks) and all(
            few <= many for few, many in zip(counts, layout.blocks, strict=True)
        )
        # a refiner belongs to the detector it was taught with: it is left behind
        return {"blocks": counts, "refiner": theirs.get("refiner", 0)} if is_fewer else {}
    if isinstance(layout, MappingConfig):
        names = ("blocks", "core_blocks")
        is_fewer = all(theirs.get(name, float("inf")) <= getattr(layout, name) for name in names)
        return {name: theirs[name] for name in names} if is_fewer else {}
    return {}
