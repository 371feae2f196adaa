"""Training data: folders of photos -> batches of crops, the same for a seed however it is run.

Sample ``index`` of a run is a function of (seed, index) alone, so a resumed run, a run with more
loading processes and a run on more devices all see the same crops.
"""

import functools
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from oldrestore.train.config import LoopSettings

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
HELD_OUT = 0.04  # share of photo families kept for validation
VALIDATION_CROP_PX = 256  # at most; twice the side of the crops to train on
CACHE_BYTES = 1_500_000_000  # decoded photos kept in memory, per loading process
PREFETCH = 4  # batches ahead, per loading process
# "name__crop", "plate-b", "plate-g", "frame_00012": pictures of one scene stay in one split
_FAMILY = re.compile(r"(__crop|-[bgr]|[-_]f?\d{1,5})+$")

# what Pillow raises of files that are no photos, or no longer whole
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
TRIES = 100  # photos drawn in a row that turn out unreadable, before a run gives up

Batch = dict[str, Tensor]


def family(path: Path) -> str:
    """The scene a file belongs to, from its name."""
    return _FAMILY.sub("", path.stem)


def is_held_out(path: Path) -> bool:
    """Whether a photo is for validation: by a hash of its family, so independent of the others."""
    return zlib.crc32(family(path).encode()) % 1000 < 1000 * HELD_OUT


class PhotoFolders:
    """The readable photos of some folders; each folder is drawn equally often.

    Args:
        folders: searched with their subfolders.
        held_out: only the photos kept for validation, or only the others.
        smallest_px: photos with a shorter side are enlarged to it.

    Raises:
        ValueError: a folder is missing, or has no readable photo.
    """

    def __init__(self, folders: Sequence[Path], *, held_out: bool, smallest_px: int) -> None:
        self.smallest_px = smallest_px
        self.unreadable: list[Path] = []
        self.groups = [self._readable(Path(folder), held_out) for folder in folders]
        self._cache: dict[Path, np.ndarray] = {}
        self._cached_bytes = 0

    def _readable(self, folder: Path, held_out: bool) -> list[Path]:
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of photos, found none there")
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        bad = {path for path in found if _fault(path, path.stat().st_mtime_ns) is not None}
        self.unreadable += sorted(bad)
        good = [path for path in found if path not in bad]
        if len(good) < len(found):
            log.warning("%s: %d of %d photos skipped", folder, len(found) - len(good), len(found))
        if not good:
            raise ValueError(
                f"{folder}: no readable photo in it ({len(found)} tried); "
                f"expected files ending in {', '.join(sorted(SUFFIXES))}"
            )
        split = [path for path in good if is_held_out(path) == held_out]
        return split or good  # a handful of photos may have none held out

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def pick(self, rng: Generator) -> np.ndarray:
        """One photo, (H, W, 3) uint8; one that has become unreadable is named once and passed over.

        Raises:
            ValueError: no photo of the folder can be read any more.
        """
        group = self.groups[rng.integers(len(self.groups))]
        for _ in range(TRIES):
            path = group[rng.integers(len(group))]
            try:
                return self._decode(path)
            except UNREADABLE as error:
                if path not in self.unreadable:
                    self.unreadable.append(path)
                    log.warning("skipped %s: %s", path, error)
        raise ValueError(
            f"{group[0].parent}: {TRIES} photos drawn in a row could not be read any more; "
            "is the disk still there?"
        )

    def _decode(self, path: Path) -> np.ndarray:
        if path in self._cache:
            return self._cache[path]
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
        short = min(rgb.size)
        if short < self.smallest_px:
            scale = self.smallest_px / short
            size = (max(self.smallest_px, round(side * scale)) for side in rgb.size)
            rgb = rgb.resize(tuple(size), Image.Resampling.BICUBIC)
        pixels = np.asarray(rgb)
        if self._cached_bytes + pixels.nbytes <= CACHE_BYTES:
            self._cache[path] = pixels
            self._cached_bytes += pixels.nbytes
        return pixels


@functools.cache
def _fault(path: Path, _changed_ns: int) -> str | None:
    """Why a photo cannot be read; found out, and told, once for each state of the file."""
    try:
        with Image.open(path) as photo:
            photo.draft("RGB", (64, 64))  # of a JPEG decodes an eighth: reads all, fast
            photo.load()
    except UNREADABLE as error:
        log.warning("skipped %s: %s", path, error)
        return str(error)
    return None


def crop(
    pixels: np.ndarray,
    size_px: int,
    rng: Generator,
    *,
    smallest_scale: float,
) -> Tensor:
    """A random square of a photo, flipped half the time -> (3, size, size) in [-1, 1].

    Args:
        pixels: (H, W, 3) uint8, both sides at least ``size_px``.
        smallest_scale: a larger square is taken and shrunk, by a random scale of at least this, or
            of what the photo allows; 1 = the photo's own pixels.
    """
    height, width = pixels.shape[:2]
    scale = rng.uniform(min(1, max(smallest_scale, size_px / min(height, width))), 1)
    side = min(round(size_px / scale), height, width)
    top, left = (int(rng.integers(room + 1)) for room in (height - side, width - side))
    square = pixels[top : top + side, left : left + side]
    if side != size_px:
        square = np.asarray(
            Image.fromarray(square).resize((size_px, size_px), Image.Resampling.BICUBIC)
        )
    if rng.random() < 0.5:
        square = square[:, ::-1]
    chw = np.ascontiguousarray(square.transpose(2, 0, 1))
    return torch.from_numpy(chw).float() / 127.5 - 1


class Samples(Protocol):
    """What a stage trains on: one sample from a generator, as named tensors without batch axis."""

    def draw(self, rng: Generator, crop_px: int, index: int) -> Batch: ...


@dataclass(frozen=True)
class _Indexed(Dataset[Batch]):
    """A stage's samples by their number in the run."""

    samples: Samples
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        index, crop_px = key
        sample = self.samples.draw(np.random.default_rng([self.seed, index]), crop_px, index)
        return {**sample, "seed": torch.tensor(self.seed * 1_000_003 + index)}


@dataclass(frozen=True)
class _Steps(Sampler[list[tuple[int, int]]]):
    """The sample numbers of each step from ``first`` on, this process's part of them."""

    settings: LoopSettings
    first: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.settings.batch // self.world
        for step in range(self.first, self.settings.steps):
            start = step * self.settings.batch + self.rank * share
            size = crop_at(self.settings, step)
            yield [(index, size) for index in range(start, start + share)]


def crop_at(settings: LoopSettings, step: int) -> int:
    """Side of the crops at a step: larger ones come late, when they pay."""
    is_late = step >= settings.steps * (1 - settings.late_share)
    return settings.late_crop_px if is_late and settings.late_crop_px else settings.crop_px


def validation_crop_px(settings: LoopSettings) -> int:
    """Side of the held-out crops."""
    return min(VALIDATION_CROP_PX, 2 * settings.crop_px)


def smallest_px(settings: LoopSettings, *, held_out: bool) -> int:
    """The shorter side that photos need: that of the largest crop ever taken of them."""
    if held_out:
        return validation_crop_px(settings)
    return max(settings.crop_px, settings.late_crop_px)


def batches(
    samples: Samples,
    settings: LoopSettings,
    *,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """The batches of a run from step ``first`` on, prepared ahead in other processes.

    Raises:
        ValueError: the batch does not divide over the processes.
    """
    if settings.batch % world:
        raise ValueError(f"batch: {settings.batch} does not divide over {world} processes")
    loader = DataLoader(
        _Indexed(samples, settings.seed),
        batch_sampler=_Steps(settings, first, rank, world),
        num_workers=settings.workers,
        prefetch_factor=PREFETCH if settings.workers else None,
        worker_init_fn=_one_thread if settings.workers else None,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # the cores belong to the network


def fixed_batch(samples: Samples, count: int, crop_px: int) -> Batch:
    """The validation batch: the same samples at every step of every run."""
    dataset = _Indexed(samples, seed=0)
    drawn = [dataset[index, crop_px] for index in range(count)]
    return {name: torch.stack([sample[name] for sample in drawn]) for name in drawn[0]}
