"""The columns of the table, and the damaged photos behind them."""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oldrestore.degradation import DegradationSettings, TextureSet, degrade, sample_degradation
from oldrestore.image import decode

Pixels = NDArray[np.uint8]

FULL_SCALE = 255.0
# damage that is hardly seen: a good camera's noise and a good JPEG
NEARLY_CLEAN_NOISE = 2.0  # standard deviation, of 255
NEARLY_CLEAN_QUALITY = 92

# kinds of damage; the place in this list is part of a sample's seed
INPUTS = ("not-faded", "faded", "nearly-clean", "clean", "large-holes")

LARGE_COVERAGE = (0.05, 0.2)  # share of the pixels in holes, where they are to be large
WIDE_PX = 13  # a hole is wide where a square of this side fits: wider than 12 px


@dataclass(frozen=True)
class Column:
    """One question to a restoration.

    title: for the reader.
    inputs: the kind of damage, of INPUTS.
    keeps_tone: fading belongs to the target; if not, methods that can undo it do so.
    holes_only: compared where the mask is, all photos' pixels in one PSNR.
    wide_only: of holes, only the parts wider than 12 px.
    """

    title: str
    inputs: str
    keeps_tone: bool = True
    holes_only: bool = False
    wide_only: bool = False


COLUMNS = {
    "not-faded": Column("not faded", "not-faded"),
    "faded-kept": Column("faded, tone kept", "faded"),
    "faded-restored": Column("faded, tone restored", "faded", keeps_tone=False),
    "holes": Column("inside holes", "not-faded", holes_only=True),
    "wide-holes": Column("holes wider than 12 px", "large-holes", holes_only=True, wide_only=True),
    "nearly-clean": Column("nearly clean", "nearly-clean"),
    "clean": Column("clean", "clean"),
}


@dataclass(frozen=True)
class Sample:
    """One damaged photo and what it may become; pictures (H, W, 3), mask (H, W) of 0 and 1.

    inputs: the kind of damage, of INPUTS.
    degraded: what is to be restored. mask: where structured damage is.
    kept: the clean photo in the tone of the damaged one. clean: in its own.
    """

    inputs: str
    degraded: Pixels
    mask: Pixels
    kept: Pixels
    clean: Pixels


def draw_sample(
    clean: Pixels, inputs: str, seed: int, index: int, textures: TextureSet | None = None
) -> Sample:
    """Damage a photo; the same for the same arguments.

    Args:
        clean: (H, W, 3), 8 bits.
        inputs: of INPUTS.
        seed, index: of the evaluation, and of the photo in it.
        textures: scans of real damage to draw from, besides the synthetic.
    """
    rng = np.random.default_rng([seed, index, INPUTS.index(inputs)])
    height, width = clean.shape[:2]
    undamaged = np.zeros((height, width), np.uint8)
    if inputs == "clean":
        return Sample(inputs, clean, undamaged, clean, clean)
    if inputs == "nearly-clean":
        return Sample(inputs, _barely_damage(clean, rng), undamaged, clean, clean)
    p_fading = 1.0 if inputs == "faded" else 0.0
    settings = replace(DegradationSettings(), p_undamaged=0.0, p_fading=p_fading)
    if inputs == "large-holes":
        settings = replace(settings, p_structured=1.0, coverage=LARGE_COVERAGE)
    degradation = sample_degradation(rng, height, width, settings=settings, textures=textures)
    found = degrade(decode(clean).image[0], degradation, textures)
    mask = found.mask[0].numpy().astype(np.uint8)
    kept, original = to_pixels(found.target), to_pixels(found.clean)
    return Sample(inputs, to_pixels(found.image), mask, kept, original)


def wide_part(mask: Pixels) -> Pixels:
    """The part of holes (H, W) that a square of 13 px inside them covers (opening)."""
    holes = torch.from_numpy(mask)[None].float()
    reach = WIDE_PX // 2
    # what lies beyond the photo counts as hole
    core = 1 - F.max_pool2d(1 - holes, WIDE_PX, 1, reach)
    part: Pixels = (F.max_pool2d(core, WIDE_PX, 1, reach)[0] * holes[0]).numpy().astype(np.uint8)
    return part


def _barely_damage(clean: Pixels, rng: np.random.Generator) -> Pixels:
    noisy = clean + rng.normal(0, NEARLY_CLEAN_NOISE, clean.shape)
    stream = BytesIO()
    picture = Image.fromarray(noisy.round().clip(0, FULL_SCALE).astype(np.uint8))
    picture.save(stream, "JPEG", quality=NEARLY_CLEAN_QUALITY)
    return np.array(Image.open(stream))


def to_pixels(image: Tensor) -> Pixels:
    """(3, H, W) in [-1, 1] -> (H, W, 3) of 8 bits."""
    value = ((image + 1) * (FULL_SCALE / 2)).round().clamp(0, FULL_SCALE)
    pixels: Pixels = value.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels
