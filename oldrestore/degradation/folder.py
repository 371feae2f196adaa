"""Pairs for training and measuring from a folder of clean photos."""

from __future__ import annotations

import json
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from oldrestore.degradation.chain import Degraded, degrade
from oldrestore.degradation.sampling import sample_degradation
from oldrestore.degradation.settings import DegradationSettings
from oldrestore.degradation.textures import TextureSet
from oldrestore.image import decode
from oldrestore.photo_file import READ_SUFFIXES, PhotoError, save

LOG_NAME = "degradations.jsonl"

_FULL_SCALE = 255.0

_DEFAULT = DegradationSettings()


@dataclass(frozen=True)
class FolderReport:
    """What `degrade_folder` did.

    written: pairs in the destination.
    skipped: for each photo that could not be read, why; the message names it.
    """

    written: int
    skipped: tuple[str, ...]


def degrade_folder(
    source: Path,
    destination: Path,
    *,
    seed: int = 0,
    count_per_photo: int = 1,
    settings: DegradationSettings = _DEFAULT,
    textures: TextureSet | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FolderReport:
    """Damage every photo of a folder and of the folders in it.

    Writes ``degraded/NAME.png``, ``clean/NAME.png`` (the target of restoration: the tone of the
    degraded one, without its damage) and ``mask/NAME.png`` (white = damaged), and one line for
    each in ``degradations.jsonl``: name, source and the degradation. NAME is the photo's path in
    the source; it keeps the suffix where two photos differ in nothing else, and ends in ``-1``,
    ``-2``, ... if there are several for a photo. What a photo gets depends on the seed, its path
    and the settings, not on the other photos.

    Args:
        source: folder of photos; other files in it are passed over, unreadable photos skipped.
        destination: folder, made if need be; files of the same names are replaced.
        count_per_photo: degradations drawn for each photo.
        textures: textures of real damage to draw from.
        on_progress: called after every photo with the number done and the number of photos.

    Raises:
        ValueError: ``source`` is no folder or holds no photo, or ``count_per_photo`` is below 1.
        PhotoError: the destination cannot be written. Whatever is there then is complete, and the
            log names it, if it could be written.
    """
    if count_per_photo < 1:
        raise ValueError(f"count_per_photo: expected at least 1, got {count_per_photo}")
    names = _names(source, destination)
    written: dict[str, str] = {}
    skipped: list[str] = []
    try:
        for done, (file, name) in enumerate(names.items(), 1):
            relative = file.relative_to(source).as_posix()
            try:
                clean = decode(file).image[0].contiguous()
            except PhotoError as error:
                skipped.append(str(error))
            else:
                for number in range(count_per_photo):
                    rng = np.random.default_rng([seed, zlib.crc32(relative.encode()), number])
                    degradation = sample_degradation(
                        rng, *clean.shape[1:], settings=settings, textures=textures
                    )
                    pair = name if count_per_photo == 1 else f"{name}-{number + 1}"
                    _write_pair(destination, pair, degrade(clean, degradation, textures))
                    entry = {"name": pair, "source": relative}
                    written[pair] = json.dumps({**entry, "degradation": degradation.to_dict()})
            if on_progress is not None:
                on_progress(done, len(names))
    finally:  # also after a failure: the log names exactly the pairs that are there
        if written:
            _write_log(destination / LOG_NAME, written.values())
    return FolderReport(len(written), tuple(skipped))


def _names(source: Path, destination: Path) -> dict[Path, str]:
    """The photos of a folder, sorted, and the names of their pairs."""
    if not source.is_dir():
        raise ValueError(f"source: expected a folder, got {source}")
    files = [
        file
        for file in sorted(source.rglob("*"))
        if file.suffix.lower() in READ_SUFFIXES and not file.is_relative_to(destination)
    ]
    if not files:
        raise ValueError(f"source: found no photo ({' '.join(READ_SUFFIXES)}) in {source}")
    stems = {file: file.relative_to(source).with_suffix("").as_posix() for file in files}
    counts = Counter(stems.values())
    return {
        file: stem if counts[stem] == 1 else file.relative_to(source).as_posix()
        for file, stem in stems.items()
    }


def _write_pair(destination: Path, name: str, degraded: Degraded) -> None:
    """All three files, or none."""
    pictures = {
        "degraded": _picture(degraded.image),
        "clean": _picture(degraded.target),
        "mask": Image.fromarray((degraded.mask[0].numpy() * 255).astype(np.uint8)),
    }
    paths = {kind: destination / kind / f"{name}.png" for kind in pictures}
    try:
        for kind, path in paths.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise PhotoError(f"{path}: cannot be written: {error.strerror}") from error
            save(pictures[kind], path)
    except PhotoError:
        for path in paths.values():
            if path.is_file():
                path.unlink()
        raise


def _picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as RGB of 8 bits."""
    levels = ((image + 1) * (_FULL_SCALE / 2)).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _write_log(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
