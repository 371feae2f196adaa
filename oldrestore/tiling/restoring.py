"""A photo through the whole way in bands of rows: what is kept of it, and the two passes over it.

    survey: pixels -> mask -> fill; keeps the mask as bits, the fill inside holes, and what only the
            whole photo tells: whether it is grey, its grain, its tone, how noisy it is
    render: pixels, mask, fill -> networks -> restraint -> tone -> pixels

The steps are those of ``pipeline.Restorer``, and so are the bits.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.config import CompactConfig
from oldrestore.denoise import Patches, estimate_denoise
from oldrestore.fill import paint_white
from oldrestore.grain import CELL_PX, Grain, GrainSurvey
from oldrestore.image import are_grey, image_of, new_pixels
from oldrestore.networks import Networks
from oldrestore.restoration import Restoration
from oldrestore.restraint import Wishes, hold_back
from oldrestore.tiling.detecting import detected
from oldrestore.tiling.filling import filled_rows
from oldrestore.tiling.layers import LayerByLayer
from oldrestore.tiling.rows import (
    Ledger,
    Rows,
    cell_by_cell,
    cropped,
    extended,
    neighbourhood,
    watched,
)
from oldrestore.tiling.scratch import Store
from oldrestore.tiling.sources import Source
from oldrestore.tiling.through import translated
from oldrestore.tiling.transfer import Transfers
from oldrestore.tone import AppliedTone, ThumbnailSum, ToneCurve, apply_tone, estimate_tone

FILL_IN_MEMORY_BYTES = 2**25  # of the fill inside holes; the rest goes to a scratch file
# rows and columns that go through the last steps at a time: these hold many copies of them
FINISH_PX = (CELL_PX, 64 * CELL_PX)
_FILL_BYTES = 12  # of a filled pixel: three float32

Take = Callable[[int, Tensor], None]  # first row, rows


class MaskBits:
    """A mask of which every pixel takes one bit."""

    def __init__(self, height: int, width: int) -> None:
        self._bits = np.zeros((height, -(-width // 8)), np.uint8)
        self._width = width

    def put(self, top: int, mask: Tensor) -> None:
        """Keep rows (1, 1, h, W) uint8 of 0 and 1."""
        self._bits[top : top + mask.shape[2]] = np.packbits(mask[0, 0].numpy(), axis=1)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) as (1, 1, h, W) uint8."""
        rows = np.unpackbits(self._bits[top:bottom], axis=1, count=self._width)
        return torch.from_numpy(rows)[None, None]


@dataclass
class Survey:
    """What the first pass leaves for the second.

    mask: of damage, None if nothing is taken for it. damaged: pixels of it, of all ``pixels``.
    fill: of the damaged pixels in their order, three float32 each.
    denoise: how much of the networks' change is taken; None where nothing is restored.
    """

    mask: MaskBits | None = None
    damaged: int = 0
    fill: tempfile.SpooledTemporaryFile[bytes] | None = None
    is_grey: bool = True
    grain: Grain | None = None
    curve: ToneCurve | None = None
    tone: AppliedTone | None = None
    denoise: float | None = None
    pixels: int = 0

    def restoration(self, seconds: float) -> Restoration:
        """What to say of the photo, without its pixels."""
        return Restoration(
            image=None,
            mask=None,
            tone=() if self.tone is None else (self.tone,),
            seconds=seconds,
            damaged=None if self.mask is None else self.damaged / self.pixels,
            denoise=() if self.denoise is None else (self.denoise,),
        )


@dataclass(frozen=True)
class Bands:
    """The passes over one photo.

    source: the photo.
    mask: "auto", None, or the user's own with values 0 and 1, uint8.
    band: rows that are worked on at a time, a multiple of 64.
    scratch: folder of scratch files; None: the system's.
    spare: bytes that whole maps may take, where the networks need such.
    ledger: counts the maps.
    """

    networks: Networks
    source: Source
    mask: Source | str | None
    wishes: Wishes
    band: int
    scratch: str | None = None
    spare: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    @torch.inference_mode()
    def restore(
        self,
        write: Take,
        write_mask: Take | None = None,
        write_probability: Take | None = None,
    ) -> Survey:
        """Both passes: pixels to ``write``, the mask (1, 1, h, W), uint8 of 0 and 1, to another.

        ``write_probability`` gets what the detector found, (1, 1, h, W) in [0, 1], if it looks.
        """
        survey = self.survey(write_mask, write_probability)
        try:
            if self.wishes.strength > 0:
                self.render(survey, write)
            else:
                self._copy(write)
        finally:
            if survey.fill is not None:
                survey.fill.close()
        return survey

    # ---- first pass -----------------------------------------------------------------------------

    def survey(
        self, write_mask: Take | None = None, write_probability: Take | None = None
    ) -> Survey:
        """Find and fill damage, and measure what only the whole photo tells."""
        height, width = self.source.height, self.source.width
        found = Survey(pixels=height * width)
        pixels = self.rows(self.source)
        mask, filled = self.surveyed(pixels, write_probability)
        thumbnail = ThumbnailSum(height) if self._wants_tone else None
        patches = Patches(height, width) if self._wants_patches else None
        grain = GrainSurvey(height, width) if mask and self._wants_grain else None
        halo = GrainSurvey.halo_px
        cursors = [rows.cursor() for rows in (filled, mask, pixels) if rows is not None]
        if mask is not None:
            found.mask = MaskBits(height, width)
            found.fill = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (closed by ``restore``)
                FILL_IN_MEMORY_BYTES, dir=self.scratch
            )
        for top in range(0, height, self.band):
            bottom = min(height, top + self.band)
            image = cursors[0].window(top, bottom)
            some = cursors[-1].window(top, bottom)
            found.is_grey = found.is_grey and bool(are_grey(some))
            if thumbnail is not None:
                thumbnail.add(top, image)
            if patches is not None:
                patches.add(top, image)
            if mask is None or found.mask is None or found.fill is None:
                continue
            first, last = max(0, top - halo), min(height, bottom + halo)
            around = cursors[1].window(first, last, bottom - halo).cpu()
            damage = around[:, :, top - first : bottom - first]
            if write_mask is not None:
                write_mask(top, damage)
            found.mask.put(top, damage)
            holes = damage[0, 0] > 0
            found.damaged += int(holes.sum())
            if self._is_compact:
                values = image[0].permute(1, 2, 0)[holes.to(image.device)]  # (n, 3)
                found.fill.write(values.cpu().numpy().tobytes())
            if grain is not None:
                grain.add(top, image_of(some)[0].cpu().numpy(), around[0, 0].numpy() > 0, first)
        if grain is not None and found.damaged:
            found.grain = grain.grain()
        if thumbnail is not None:
            self._estimate_tone(found, thumbnail.thumbnail())
        if self.wishes.strength > 0:
            found.denoise = self._denoise(patches)
        return found

    @torch.inference_mode()
    def detect(self, write_mask: Take) -> None:
        """Find damage, and no more."""
        mask = self._damage(self.rows(self.source)).cursor()
        transfers = Transfers(self.networks.device)
        for top in range(0, self.source.height, self.band):
            found = mask.window(top, min(self.source.height, top + self.band))
            transfers.down(found, functools.partial(write_mask, top))
        transfers.finish()

    def surveyed(
        self, pixels: Rows, write_probability: Take | None = None
    ) -> tuple[Rows | None, Rows]:
        """The mask, if there is one, and the image with its holes filled."""
        if self.mask is None:
            return None, cell_by_cell([pixels], image_of)
        if self.mask == "auto":
            mask = self._damage(pixels, write_probability)
        else:
            assert isinstance(self.mask, Source)
            mask = self.rows(self.mask)
        if self._is_compact:
            return mask, filled_rows(pixels, mask, image_of)
        return mask, self._painted(mask, pixels)

    def _painted(self, mask: Rows, pixels: Rows) -> Rows:
        """The image with white holes."""
        return cell_by_cell(
            [mask, pixels], lambda damage, some: paint_white(image_of(some), damage)
        )

    def _damage(self, pixels: Rows, write_probability: Take | None = None) -> Rows:
        """What the detector finds, widened: uint8 of 0 and 1."""
        detector, threshold = self.networks.detector, self.wishes.threshold
        radius = self.networks.config.defaults.dilation_px
        assert detector is not None, "callers refuse 'auto' without a detector"
        again = functools.partial(self.rows, self.source)
        dtype, scratch = self.networks.dtype, self.scratch
        probability = detected(detector, pixels, again, image_of, dtype, scratch=scratch)
        if write_probability is not None:
            probability = watched(probability, write_probability)

        def widen(found: Tensor) -> Tensor:
            wide = F.max_pool2d((found > threshold).float(), 2 * radius + 1, 1, padding=radius)
            return wide.narrow(2, radius, found.shape[2] - 2 * radius).to(torch.uint8)

        # a probability of 0 beyond the photo is above no threshold
        return neighbourhood(probability, widen, radius)

    def _estimate_tone(self, found: Survey, small: Tensor) -> None:
        head, defaults = self.networks.tone_head, self.networks.config.defaults
        assert head is not None, "callers refuse a tone without a tone head"
        least = defaults.faded_probability
        small = small.to(self.networks.device)
        found.curve, found.tone = estimate_tone(
            head, small, self.wishes.tone, faded_probability=least
        )

    def _denoise(self, patches: Patches | None) -> float | None:
        """What is asked for, or what patches say."""
        head = self.networks.denoise_head
        if patches is None:
            return self.wishes.denoise
        assert head is not None, "without a head a number is asked for"
        return estimate_denoise(head, patches.patches())

    # ---- second pass ----------------------------------------------------------------------------

    def render(self, survey: Survey, write: Take) -> None:
        """Restore the photo with what the first pass found."""
        height, transfers = self.source.height, Transfers(self.networks.device)
        pixels, mask = self.rows(self.source), self._mask_rows(survey)
        filled = self.filled_again(survey.fill, pixels, mask)
        restored = self.rendered(filled, mask)
        if not self._is_compact:  # which has read all of the photo by now
            pixels, mask = self.rows(self.source), self._mask_rows(survey)
        cursors = [rows.cursor() for rows in (restored, pixels, mask)]
        for top in range(0, height, self.band):
            bottom = min(height, top + self.band)
            parts = [cursor.window(top, bottom) for cursor in cursors]
            transfers.down(self._finish(survey, parts, top), functools.partial(write, top))
        transfers.finish()

    def _copy(self, write: Take) -> None:
        """The photo as it came."""
        for top in range(0, self.source.height, self.band):
            write(top, self.source.read(top, min(self.source.height, top + self.band)))

    def rendered(self, filled: Rows, mask: Rows) -> Rows:
        """What the networks make of the filled image."""
        height, width, dtype = filled.height, filled.width, self.networks.dtype
        cell_px = self.networks.mapping.cell_px
        ready = extended(cell_by_cell([filled], lambda x: x.to(dtype)), cell_px)
        damage = extended(mask, cell_px)
        damage = cell_by_cell([damage], lambda x: x.to(dtype))
        if self._is_compact:
            restored = translated(self.networks, ready, damage)
        else:
            store = Store(self.spare, self.scratch)
            walk = LayerByLayer(store, self.networks.device, dtype)
            restored = walk.translated(self.networks, ready, damage)
        image = cell_by_cell([restored], lambda x: x.float().clamp(-1, 1))
        return cropped(image, height, width)

    def _finish(self, survey: Survey, parts: list[Tensor], top: int) -> Tensor:
        """Rows as they were restored, as they came, and their mask -> as they go."""
        result = torch.empty_like(parts[1])
        for y in range(0, result.shape[2], FINISH_PX[0]):
            for x in range(0, result.shape[3], FINISH_PX[1]):
                window = np.s_[:, :, y : y + FINISH_PX[0], x : x + FINISH_PX[1]]
                some = [part[window] for part in parts]
                result[window] = self._finish_window(survey, *some, start=(top + y, x))
        return result

    def _finish_window(
        self,
        survey: Survey,
        restored: Tensor,
        own: Tensor,
        damage: Tensor,
        *,
        start: tuple[int, int],
    ) -> Tensor:
        """Restraint, tone and strength."""
        image, damage, wishes = image_of(own), damage.float(), self.wishes
        assert survey.denoise is not None, "the first pass found it"
        result = hold_back(image, restored, damage, survey.denoise, grain=survey.grain, start=start)
        is_kept = survey.denoise == 0
        if survey.tone is not None and survey.curve is not None and survey.tone.strength:
            result = apply_tone(result, survey.curve, survey.tone.strength)
            is_kept = False
        result = image.lerp(result, wishes.strength)
        changed = damage if is_kept else torch.ones_like(damage)
        is_grey = torch.full((1, 1, 1, 1), survey.is_grey)
        return new_pixels(own, result, is_grey, changed)

    def filled_again(
        self, fill: tempfile.SpooledTemporaryFile[bytes] | None, pixels: Rows, mask: Rows
    ) -> Rows:
        """The image with the fill that the first pass kept, if it did."""
        if not self._is_compact:
            return self._painted(mask, pixels)
        if fill is not None:
            fill.seek(0)

        def put(damage: Tensor, some: Tensor) -> Tensor:
            image = image_of(some).clone()
            if fill is None:
                return image
            holes = damage[0, 0] > 0
            values = np.frombuffer(fill.read(int(holes.sum()) * _FILL_BYTES), np.float32)
            image[0][:, holes] = torch.from_numpy(values.copy()).view(-1, 3).T.to(image)
            return image

        return cell_by_cell([mask, pixels], put)

    # ---- rows of what is kept -------------------------------------------------------------------

    def rows(self, source: Source) -> Rows:
        """A source on the device."""
        transfers = Transfers(self.networks.device)

        def make(top: int, bottom: int) -> Tensor:
            return transfers.up(source.read(top, bottom))

        return self._new_rows(make)

    def _mask_rows(self, survey: Survey) -> Rows:
        bits, device = survey.mask, self.networks.device

        def make(top: int, bottom: int) -> Tensor:
            if bits is None:
                return torch.zeros(1, 1, bottom - top, self.source.width, dtype=torch.uint8).to(
                    device
                )
            return bits.rows(top, bottom).to(device)

        return self._new_rows(make)

    def _new_rows(self, make: Callable[[int, int], Tensor]) -> Rows:
        height, width = self.source.height, self.source.width
        return Rows(height, width, make, band=self.band, ledger=self.ledger)

    @property
    def _is_compact(self) -> bool:
        return isinstance(self.networks.config, CompactConfig)

    @property
    def _wants_tone(self) -> bool:
        return self.wishes.tone > 0 and self.wishes.strength > 0

    @property
    def _wants_grain(self) -> bool:
        return self.wishes.denoise != 1 and self.wishes.strength > 0

    @property
    def _wants_patches(self) -> bool:
        return self.wishes.denoise is None and self.wishes.strength > 0
