"""The rows of the table: ways to restore a damaged photo, from nothing to the whole pipeline."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from oldrestore.config import DENOISE
from oldrestore.evaluate.samples import Pixels, Sample
from oldrestore.fill import fill_holes
from oldrestore.image import decode, encode
from oldrestore.pipeline import Restorer
from oldrestore.restraint import hold_back

ROWS = {
    "input": "degraded input",
    "fill": "hole fill only",
    "telea-nlm": "Telea + non-local means",
    "telea-nlm-autocontrast": "Telea + non-local means + auto-contrast",
    "ours": "ours, true mask",
    "ours-whole": "ours, true mask, `denoise=1`",
    "ours-holes": 'ours, true mask, `outside_mask="keep"`',
    "ours-detected": "ours, detected mask",
    "ours-local": "ours, true mask, no nonlocal block",
    "ours-default": "ours as `restore(photo)`: detected mask, default tone",
}
TELEA_RADIUS_PX = 3
NON_LOCAL_MEANS_H = 6.0  # strength for luma and chroma; windows are OpenCV's 7 and 21 px
AUTOCONTRAST_CUTOFF = 0.5  # per cent of pixels ignored at each end


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


def needs_restorer(row: str) -> bool:
    """Whether a row of ROWS is about our networks."""
    return row.startswith("ours")


def make_methods(rows: Sequence[str], restorer: Restorer | None) -> dict[str, Method]:
    """What is behind the rows.

    Raises:
        ValueError: a row is none of ROWS, or needs a restorer and there is none.
        ModuleNotFoundError: a row needs OpenCV and it is not installed.
    """
    for row in rows:
        if row not in ROWS:
            raise ValueError(f"rows: expected some of {', '.join(ROWS)}, got {row!r}")
    if restorer is None:
        if any(map(needs_restorer, rows)):
            raise ValueError("restorer: the rows about ours need one, got None")
        ours: dict[str, Method] = {}
    else:
        network = _Ours(restorer)
        ours = {
            "ours": network.with_true_mask,
            "ours-whole": network.with_all_change,
            "ours-holes": network.of_holes_alone,
            "ours-detected": network.with_detected_mask,
            "ours-local": network.without_nonlocal,
            "ours-default": network.by_default,
        }
    classical: dict[str, Method] = {
        "input": _tone_blind(lambda sample: sample.degraded),
        "fill": _tone_blind(_fill),
    }
    if any(row.startswith("telea") for row in rows):
        denoise = _telea_and_non_local_means()
        classical |= {"telea-nlm": denoise, "telea-nlm-autocontrast": _stretched(denoise)}
    methods = classical | ours
    return {row: methods[row] for row in rows}


def _tone_blind(restore: Callable[[Sample], Pixels]) -> Method:
    """A method that knows nothing of fading."""

    def method(sample: Sample) -> Output:
        start = time.perf_counter()
        kept = restore(sample)
        return Output(kept, lambda _=1.0: kept, time.perf_counter() - start)

    return method


def _fill(sample: Sample) -> Pixels:
    photo = decode(sample.degraded)
    filled: Pixels = encode(photo, fill_holes(photo.image, _mask_tensor(sample)))
    return filled


def _telea_and_non_local_means() -> Method:
    """Inpainting of Telea (2004), denoising of Buades, Coll and Morel (2005), both OpenCV's.

    The last sample's output is kept: two rows build on it.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "OpenCV is needed for the rows telea-nlm and telea-nlm-autocontrast: "
            "pip install 'oldrestore[train]', or choose other rows"
        ) from error
    cv2.setNumThreads(torch.get_num_threads())
    last: list[tuple[Sample, Output]] = []

    def restore(sample: Sample) -> Pixels:
        bgr = np.ascontiguousarray(sample.degraded[:, :, ::-1])
        filled = cv2.inpaint(bgr, sample.mask, TELEA_RADIUS_PX, cv2.INPAINT_TELEA)
        h = NON_LOCAL_MEANS_H
        denoised = cv2.fastNlMeansDenoisingColored(filled, None, h, h)
        return np.ascontiguousarray(denoised[:, :, ::-1], dtype=np.uint8)

    def method(sample: Sample) -> Output:
        if not (last and last[0][0] is sample):
            last[:] = [(sample, _tone_blind(restore)(sample))]
        return last[0][1]

    return method


def _stretched(method: Method) -> Method:
    """Another method's picture, its levels stretched to the whole range."""

    def stretch(sample: Sample) -> Output:
        before = method(sample)

        def autocontrast(_: Sample) -> Pixels:
            picture = Image.fromarray(before.kept)
            return np.array(ImageOps.autocontrast(picture, AUTOCONTRAST_CUTOFF))

        after = _tone_blind(autocontrast)(sample)
        return replace(after, seconds=before.seconds + after.seconds)

    return stretch


@dataclass(frozen=True)
class _Translation:
    """mask: of holes. filled: what the networks saw. image: what they gave. seconds: of both."""

    mask: Tensor
    filled: Tensor
    image: Tensor
    seconds: float


class _Ours:
    """Our networks. Rows that come to the same, as without any hole they do, are computed once."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        self._sample: Sample | None = None
        self._known: dict[tuple[bytes, bool], _Translation] = {}

    def with_true_mask(self, sample: Sample) -> Output:
        return self._output(sample, self._translate(sample, _mask_tensor(sample)))

    def with_all_change(self, sample: Sample) -> Output:
        return self._output(sample, self._translate(sample, _mask_tensor(sample)), denoise=1.0)

    def of_holes_alone(self, sample: Sample) -> Output:
        found = self._translate(sample, _mask_tensor(sample))
        output = self._output(sample, found, denoise=0.0)
        return replace(output, undo_fading=lambda _=1.0: output.kept)

    def without_nonlocal(self, sample: Sample) -> Output:
        mask = _mask_tensor(sample)
        return self._output(sample, self._translate(sample, mask, use_nonlocal=False))

    def with_detected_mask(self, sample: Sample) -> Output:
        mask, seconds = self._detect(sample)
        return self._output(sample, self._translate(sample, mask), seconds=seconds)

    def by_default(self, sample: Sample) -> Output:
        """As ``Restorer.restore`` does without options."""
        mask, seconds = self._detect(sample)
        output = self._output(sample, self._translate(sample, mask), seconds=seconds)
        start = time.perf_counter()
        pixels = output.undo_fading(self._restorer.config.defaults.tone_strength)
        return Output(pixels, lambda _=1.0: pixels, output.seconds + time.perf_counter() - start)

    def _output(
        self,
        sample: Sample,
        found: _Translation,
        *,
        denoise: float | None = None,
        seconds: float = 0.0,
    ) -> Output:
        start = time.perf_counter()
        restorer = self._restorer
        denoise = DENOISE[restorer.config.preset] if denoise is None else denoise
        photo = decode(sample.degraded)
        image = photo.image.to(restorer.device)
        restored = hold_back(image, found.image, found.mask, denoise)
        kept: Pixels = encode(photo, restored)
        seconds += found.seconds + time.perf_counter() - start

        def undo_fading(strength: float = 1.0) -> Pixels:
            if strength == 0 or restorer.tone_head is None:
                return kept
            pixels: Pixels = encode(
                photo, restorer.undo_fading(restored, found.filled, strength)[0]
            )
            return pixels

        return Output(kept, undo_fading, seconds)

    def _detect(self, sample: Sample) -> tuple[Tensor, float]:
        start = time.perf_counter()
        image = decode(sample.degraded).image
        if not self._restorer.mapping.uses_mask:
            return image.new_zeros(1, 1, *image.shape[2:]), 0.0
        mask = self._restorer.detect_tensor(image, self._restorer.config.defaults.threshold)
        return mask, time.perf_counter() - start

    def _translate(
        self, sample: Sample, mask: Tensor, *, use_nonlocal: bool = True
    ) -> _Translation:
        if sample is not self._sample:
            self._sample = sample
            self._known.clear()
        # the nonlocal block has nothing to do where nothing is damaged
        key = mask.cpu().numpy().tobytes(), use_nonlocal and bool(mask.any())
        if key not in self._known:
            start = time.perf_counter()
            image = decode(sample.degraded).image.to(self._restorer.device)
            mask = mask.to(self._restorer.device)
            filled = self._restorer.fill(image, mask)
            restored = self._restorer.translate(filled, mask, use_nonlocal=use_nonlocal)
            self._known[key] = _Translation(mask, filled, restored, time.perf_counter() - start)
        return self._known[key]


def _mask_tensor(sample: Sample) -> Tensor:
    return torch.from_numpy(sample.mask)[None, None].float()
