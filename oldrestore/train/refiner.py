"""Teach a refiner to tell what a scratch detector rightly suspects from what it wrongly does.

What is suspect in a crop looks alike, and a batch of a few crops says little. So cells are gathered
first, some hundred of each of some thousand crops, with all that the refiner sees of them; then it
learns from batches of cells of all crops. Detector and MobileNetV2 stay as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.checkpoint import config_from_json, read_checkpoint, write_checkpoint
from oldrestore.config import restorer_config
from oldrestore.degradation import TextureSet
from oldrestore.detection import TOLERANCE_PX, grow
from oldrestore.layers import unshuffled
from oldrestore.mask import DetectorConfig, ScratchDetector, agreed
from oldrestore.perceptual import load_backbone
from oldrestore.refiner import CELL, SUSPICION, Refiner, Trunk, over_cells, twice
from oldrestore.train.config import MaskSettings
from oldrestore.train.data import Batch, batches
from oldrestore.train.mask import LabelledDamage, damaged_crops, film_like, ordinary
from oldrestore.train.state import read_source

AT_ONCE = 2  # crops whose features are in memory together
CELLS_A_CROP = 800
BATCH = 2048  # cells
LR = 2e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.4
LEAST_STD = 0.05  # of a feature: what hardly changes is not blown up


@dataclass(frozen=True)
class Cells:
    """What is known of n suspect cells of 2 x 2 pixels.

    seen: (n, C) float16, what the refiner sees. logits: (n, 4), of both views. labels: (n, 4), 1
    where damage shows. weights: (n, 4), how much a pixel counts, 0 where it teaches nothing.
    """

    seen: Tensor
    logits: Tensor
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.seen)

    def put(self, start: int, some: "Cells") -> None:
        """Write ``some`` over these from ``start`` on."""
        for name, values in vars(some).items():
            getattr(self, name)[start : start + len(some)] = values

    def first(self, count: int) -> "Cells":
        """The first ones."""
        return Cells(*(values[:count] for values in vars(self).values()))


def refine(
    output: Path,
    settings: MaskSettings,
    *,
    weights: Path,
    backbone: Path,
    clean: Sequence[Path],
    old: Sequence[Path] = (),
    textures: Path | None = None,
    crops: int,
    steps: int,
    width: int,
) -> dict[str, Any]:
    """Write a weights file whose detector has a new refiner.

    Args:
        output: the file.
        settings: whose damage, crops and seed are taken. Every third crop each has damage as its
            settings say, ordinary damage, and a film's.
        weights: file to refine the detector of; everything else is taken from it too.
        backbone: MobileNetV2's weights, see ``perceptual.load_backbone``.
        clean, old, textures: as in training the detector.
        crops: how many to gather cells of.
        steps: how many batches of cells to learn from.
        width: of the refiner's hidden layers.

    Returns:
        "cells", and the mean loss on them "before" and "after".

    Raises:
        ValueError: a file or folder is not what it should be, or nothing suspect was found.
        FileNotFoundError: there is no such file.
    """
    for name, value in (("crops", crops), ("batches", steps), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not output.absolute().parent.is_dir():  # said now, not after half an hour
        raise ValueError(f"{output}: its folder does not exist")
    source = read_source(weights)
    if source.kind != "compact" or "defaults" not in source.config:
        raise ValueError(f"weights: {weights}: expected a weights file of compact")
    layout = config_from_json(DetectorConfig, source.config["mask"], f"{weights}: config.mask")
    plain = ScratchDetector(replace(layout, refiner=0)).eval().requires_grad_(False)
    plain.load_state_dict(
        {
            key.removeprefix("mask."): value
            for key, value in source.tensors.items()
            if key.startswith("mask.") and not key.startswith("mask.refiner.")
        }
    )
    multiple = replace(layout, refiner=width).align_px
    if settings.crop_px % multiple:
        raise ValueError(f"crop_px: expected a multiple of {multiple}, got {settings.crop_px}")
    torch.manual_seed(settings.seed)
    refiner = Refiner(width).eval()
    load_trunk(refiner.trunk, backbone)
    pieces = None if textures is None else TextureSet.from_folder(textures)
    samples = damaged_crops(settings, clean, pieces, old=old)
    mixes = (settings.degradation, ordinary(settings), film_like(settings))
    samples = replace(samples, degradations=mixes)
    gathered = gather(plain, refiner, samples, settings, crops)
    report = learn(refiner, gathered, steps=steps, seed=settings.seed)
    _write(output, weights, refiner, width)
    return report


def load_trunk(trunk: Trunk, path: Path) -> None:
    """Give it the weights from a file of the whole MobileNetV2; see ``load_backbone``.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is of another network.
    """
    first, *blocks = load_backbone(path, "mobilenet_v2").trunk
    stem = next(first.children())
    assert isinstance(stem, nn.Conv2d)
    assert stem.bias is not None
    state = {"stem.1.weight": over_cells(stem.weight), "stem.1.bias": stem.bias}
    for index, (mine, theirs) in enumerate(zip(trunk.blocks, blocks, strict=False)):
        names = [name for name, x in mine.named_children() if isinstance(x, nn.Conv2d)]
        convolutions = [x for x in theirs.modules() if isinstance(x, nn.Conv2d)]
        for name, source in zip(names, convolutions, strict=True):
            assert source.bias is not None
            state[f"blocks.{index}.{name}.weight"] = source.weight
            state[f"blocks.{index}.{name}.bias"] = source.bias
    trunk.load_state_dict(state)


@torch.inference_mode()
def gather(
    detector: ScratchDetector,
    refiner: Refiner,
    samples: LabelledDamage,
    settings: MaskSettings,
    crops: int,
) -> Cells:
    """Suspect cells of as many crops.

    Raises:
        ValueError: there are none.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = batches(samples, replace(settings, batch=AT_ONCE, steps=-(-crops // AT_ONCE)))
    # room for all from the start: small parts kept among large maps would leave gaps between those
    widths = (sum(refiner.trunk.widths) + refiner.see.in_channels, CELL, CELL, CELL)
    most = -(-crops // AT_ONCE) * AT_ONCE * CELLS_A_CROP
    gathered = Cells(
        torch.empty(most, widths[0], dtype=torch.float16),
        *(torch.empty(most, width) for width in widths[1:]),
    )
    count = 0
    for batch in drawn:
        for part in _suspects(detector, refiner, batch, settings, generator):
            gathered.put(count, part)
            count += len(part)
    if not count:
        raise ValueError(f"crops: nothing suspect in {crops} of them; take more, or more damage")
    return gathered.first(count)


def _suspects(
    detector: ScratchDetector,
    refiner: Refiner,
    batch: Batch,
    settings: MaskSettings,
    generator: torch.Generator,
) -> Iterator[Cells]:
    image = batch["degraded"]
    logits, of_mirrored = (detector.at_two_scales(x) for x in (image, image.flip(-1)))
    both = agreed(logits, of_mirrored)
    shows = batch["label"] > 0
    sound = grow(torch.maximum(batch["label"], batch["damaged"]), TOLERANCE_PX) == 0
    is_old = batch["is_old"]
    if is_old.any():  # of their own damage nobody knows
        own = detector.probability(batch["ground"][is_old]) > settings.own_damage
        sound[is_old] &= ~own
    teaches = (both > SUSPICION) & (shows | sound)  # not what is next to damage
    maps = refiner.trunk(image)
    for index in range(len(maps)):
        for _ in range(index):
            maps[index] = twice(maps[index])
    maps.append(unshuffled(refiner.shown(logits, of_mirrored.half()), 2))
    seen = torch.cat(maps, dim=1)
    for one in range(len(image)):
        logits_of, labels, counts = (
            unshuffled(x[one, None].float(), 2)[0].flatten(1).T for x in (both, shows, teaches)
        )
        features = seen[one].flatten(1)
        for some, weights in _chosen(labels * counts, counts, generator):
            yield Cells(features[:, some].T.half(), logits_of[some], labels[some], weights)


def _chosen(
    shows: Tensor, counts: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cells with damage, and cells without: their places, and the weights (n, 4) of their pixels.

    The square root of how many each stands for: large damage counts for more than small, but no
    single crop for very much.
    """
    is_damaged = shows.any(dim=1)
    for kind in (is_damaged, counts.any(dim=1) & ~is_damaged):
        places = kind.nonzero()[:, 0]
        some = places[torch.randperm(len(places), generator=generator)[: CELLS_A_CROP // 2]]
        yield some, counts[some] * (len(places) / max(len(some), 1)) ** 0.5


def learn(refiner: Refiner, cells: Cells, *, steps: int, seed: int) -> dict[str, Any]:
    """Fit all of the refiner but its trunk to cells, by binary cross-entropy.

    Returns:
        "cells", and the mean loss on them "before" and "after".
    """
    mean, std = _moments(cells.seen)
    width = refiner.hidden.in_channels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        last = nn.Linear(width, CELL)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = [nn.Linear(len(mean), width), nn.ReLU(), nn.Dropout(DROPOUT)]
        network = nn.Sequential(*first, nn.Linear(width, width), nn.ReLU(), last)
        before = _loss(network, cells, mean, std)
        optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
        for _ in range(steps):
            chosen = torch.randint(len(cells), (BATCH,))
            change = network((cells.seen[chosen].float() - mean) / std)
            loss = _cross_entropy(change, cells, chosen)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        network.eval()
        after = _loss(network, cells, mean, std)
    _put(network, refiner, mean, std)
    return {"cells": len(cells), "before": before, "after": after}


def _cross_entropy(change: Tensor, cells: Cells, chosen: Tensor | slice) -> Tensor:
    weights = cells.weights[chosen]
    return F.binary_cross_entropy_with_logits(
        cells.logits[chosen] + change, cells.labels[chosen], weights, reduction="sum"
    ) / weights.sum().clamp(min=1)


@torch.no_grad()
def _loss(network: nn.Sequential, cells: Cells, mean: Tensor, std: Tensor) -> float:
    """The mean loss over all cells."""
    total = 0.0
    for start in range(0, len(cells), BATCH):
        chosen = slice(start, start + BATCH)
        change = network((cells.seen[chosen].float() - mean) / std)
        total += float(_cross_entropy(change, cells, chosen)) * float(cells.weights[chosen].sum())
    return total / float(cells.weights.sum())


def _moments(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature, (C,)."""
    sums, squares = (torch.zeros(seen.shape[1], dtype=torch.float64) for _ in range(2))
    for some in torch.split(seen, BATCH):
        sums += some.double().sum(dim=0)
        squares += some.double().square().sum(dim=0)
    mean = sums / len(seen)
    std = (squares / len(seen) - mean.square()).clamp(min=LEAST_STD**2).sqrt()
    return mean.float(), std.float()


@torch.no_grad()
def _put(network: nn.Sequential, refiner: Refiner, mean: Tensor, std: Tensor) -> None:
    """What was learnt of standardised features, as the refiner's layers."""
    first, second, last = (layer for layer in network if isinstance(layer, nn.Linear))
    weight = first.weight / std
    layers = [layer for layer in (*refiner.take, refiner.see) if isinstance(layer, nn.Conv2d)]
    parts = torch.split(weight, [layer.in_channels for layer in layers], dim=1)
    for layer, part in zip(layers, parts, strict=True):
        assert layer.bias is not None
        layer.weight.copy_(part[:, :, None, None])
        layer.bias.zero_()
    assert refiner.see.bias is not None
    refiner.see.bias.copy_(first.bias - weight @ mean)
    for conv, linear in ((refiner.hidden, second), (refiner.tail, last)):
        assert conv.bias is not None
        conv.weight.copy_(linear.weight[:, :, None, None])
        conv.bias.copy_(linear.bias)


def _write(output: Path, weights: Path, refiner: Refiner, width: int) -> None:
    """The weights file with the refiner in it."""
    checkpoint = read_checkpoint(weights)
    config = asdict(restorer_config(checkpoint.config, f"{weights}: config"))
    config["mask"]["refiner"] = width
    kept = {k: v for k, v in checkpoint.tensors.items() if not k.startswith("mask.refiner.")}
    new = {f"mask.refiner.{key}": value for key, value in refiner.state_dict().items()}
    write_checkpoint(output, kept | new, config, checkpoint.about, half=True)
