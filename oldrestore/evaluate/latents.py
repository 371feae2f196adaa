"""The latent gap: how far latents of real old photos lie from those of synthetic ones.

The VAE of old photos shall not tell real damage from drawn damage, for what is learnt on the one
must hold for the other (Wan et al., CVPR 2020, section 3.1). The distance is the sliced Wasserstein
distance (Rabin et al., 2011; Bonneel et al., 2015) between sets of latent vectors:

    SW(A, B)^2 = mean over directions d of the mean over quantiles of (q(A . d) - q(B . d))^2

in units of the latents' own spread, so that VAEs can be compared.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oldrestore.checkpoint import load_strictly
from oldrestore.degradation import DegradationSettings, TextureSet, degrade, sample_degradation
from oldrestore.evaluate.photos import numbered_photos
from oldrestore.evaluate.samples import to_pixels
from oldrestore.evaluate.statistics import resampled
from oldrestore.evaluate.tables import Table
from oldrestore.image import decode
from oldrestore.photo_file import PhotoError
from oldrestore.train.state import read_source
from oldrestore.vae import Encoder, PaperEncoder, make_encoder

DIRECTIONS = 128
VECTORS = 64  # latent vectors taken of each photo
QUANTILES = 200
RESAMPLES = 100  # of photos, for the interval: a distance is dearer than a mean
CROP_PX = 256  # the middle of each photo
SMALLEST_SPREAD = 1e-6  # of a channel: one that never changes shall not divide by nought

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Gap:
    """Of one VAE: real to synthetic, its 95 % interval, and one half of the real to the other."""

    gap: float
    low: float
    high: float
    floor: float


@dataclass(frozen=True)
class LatentResults:
    """The gap of each VAE, by name, the first being what the others are compared with."""

    gaps: dict[str, Gap]
    real: int
    synthetic: int

    def tables(self) -> list[Table]:
        """One table."""
        first = next(iter(self.gaps.values())).gap
        rows = [
            [
                name,
                f"{found.gap:.3f} [{found.low:.3f}, {found.high:.3f}]",
                f"{found.floor:.3f}",
                f"{found.gap / first:.2f}",
            ]
            for name, found in self.gaps.items()
        ]
        caption = (
            "sliced Wasserstein distance of latents, in their standard deviations [95 % interval]; "
            f"{self.real} real photos, {self.synthetic} synthetic"
        )
        head = ("VAE", "real to synthetic", "real to real", "times the first")
        return [Table("latent gap", head, rows, caption)]

    def as_json(self) -> dict[str, Any]:
        """Everything, in what JSON can hold."""
        return asdict(self)


def evaluate_latents(
    vaes: Mapping[str, Path],
    old: Path,
    clean: Path,
    *,
    seed: int = 0,
    textures: TextureSet | None = None,
    limit: int | None = None,
) -> LatentResults:
    """Encode real and synthetic old photos by each VAE.

    Args:
        vaes: by name, run folders of the stage "vae", or weights files.
        old: folder of real old photos. clean: of photos that damage is drawn on.
        seed: of the damage.
        textures: scans of real damage to draw from too.
        limit: only so many photos of each folder.

    Raises:
        ValueError: a folder has fewer than two readable photos, or a file holds no VAE.
    """
    real = _crops(old, limit)
    drawn = []
    settings = DegradationSettings(p_undamaged=0.0)
    for index, crop in _crops(clean, limit).items():
        rng = np.random.default_rng([seed, index])
        damage = sample_degradation(rng, *crop.shape[1:], settings=settings, textures=textures)
        drawn.append(degrade(crop, damage, textures).image)
    if min(len(real), len(drawn)) < 2:
        raise ValueError(f"{old}, {clean}: expected two photos or more in each")
    gaps = {}
    for name, path in vaes.items():
        encoder = _encoder(path)
        gaps[name] = gap_between(
            np.stack([_vectors(encoder, image) for image in real.values()]),
            np.stack([_vectors(encoder, image) for image in drawn]),
        )
    return LatentResults(gaps, len(real), len(drawn))


def gap_between(real: Numbers, synthetic: Numbers) -> Gap:
    """The gap of latent vectors, each (photos, vectors, channels)."""
    channels = real.shape[2]
    directions = np.random.default_rng(0).standard_normal((channels, DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    # each group's own spread: what a gap adds to it shall not count
    spread = np.sqrt((real.var(axis=(0, 1)) + synthetic.var(axis=(0, 1))) / 2)
    centre = real.mean(axis=(0, 1))
    scaled = ((x - centre) / spread.clip(min=SMALLEST_SPREAD) for x in (real, synthetic))
    # (directions, photos, vectors), in single precision: sorted many times
    ours, theirs = (
        np.einsum("pvc,cd->dpv", x, directions).astype(np.float32, order="C") for x in scaled
    )
    picks, other_picks = resampled(len(real)), resampled(len(synthetic))[::-1]
    found = [_sliced(ours[:, picks[i]], theirs[:, other_picks[i]]) for i in range(RESAMPLES)]
    low, high = np.quantile(found, [0.025, 0.975])
    floor = _sliced(ours[:, ::2], ours[:, 1::2])
    return Gap(_sliced(ours, theirs), float(low), float(high), floor)


def _sliced(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Sliced Wasserstein distance of projected vectors, (directions, photos, vectors) both."""
    of_a, of_b = _quantiles(a), _quantiles(b)
    return float(np.sqrt(np.square(of_a - of_b).mean()))


def _quantiles(projected: NDArray[np.float32]) -> Numbers:
    """(directions, photos, vectors) -> (directions, 200)."""
    values = np.sort(projected.reshape(len(projected), -1), axis=1)
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES * values.shape[1] - 0.5
    places = places.clip(0, values.shape[1] - 1)
    lower = np.floor(places).astype(np.intp)
    upper = np.minimum(lower + 1, values.shape[1] - 1)
    found: Numbers = values[:, lower] + (values[:, upper] - values[:, lower]) * (places - lower)
    return found


def _crops(folder: Path, limit: int | None) -> dict[int, torch.Tensor]:
    """The middle of each readable photo, (3, h, w) in [-1, 1], by its number."""
    found = {}
    for index, path in numbered_photos(folder, limit):
        try:
            image = decode(path).image[0]
        except PhotoError:
            continue
        top, left = (max(0, (side - CROP_PX) // 2) for side in image.shape[1:])
        found[index] = image[:, top : top + CROP_PX, left : left + CROP_PX].contiguous()
    return found


def _encoder(path: Path) -> Encoder | PaperEncoder:
    """The encoder of the VAE in a run folder or weights file: of old photos, where it has two."""
    source = read_source(path)
    name = source.name_of("vae_old", "vae", "vae_clean")
    encoder = make_encoder(source.vae_layout()).eval().requires_grad_(False)
    load_strictly(encoder, source.tensors, f"{name}.encoder", path)
    return encoder


@torch.inference_mode()
def _vectors(encoder: Encoder | PaperEncoder, image: torch.Tensor) -> Numbers:
    """Latent vectors of an image, evenly spread over it: (64, C)."""
    pixels = torch.from_numpy(to_pixels(image)).permute(2, 0, 1)[None] / 127.5 - 1
    height, width = (side // 4 * 4 for side in pixels.shape[2:])
    latent = encoder(pixels[..., :height, :width])[0].flatten(1).double().numpy()
    places = np.linspace(0, latent.shape[1] - 1, VECTORS).round().astype(np.intp)
    vectors: Numbers = latent[:, places].T
    return vectors
