"""Grain of a photo: measured where it is intact, drawn anew where holes were filled.

A hole that is filled without grain is a smooth patch in a grainy photo. The grain here is a field
of Gaussian noise with the deviation, the spatial correlation and the colour of what lies around.
The noise at a pixel is a function of its place alone, and all is computed in NumPy, in one order:
the same photo and mask give the same bits, whatever the threads, and a part of the field is the
field of the part. How strong it is goes by place and by brightness.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]

BLOCK_PX = 16  # grain is measured in blocks: small enough to find flat ones, large enough for grain
NEIGHBOURHOOD_BLOCKS = 4  # how far around a hole the photo is measured: 64 px
LEAST_INTACT = 0.5  # share of a block's pixels that must be intact for it to count
# of the blocks around, those where the photo itself varies least: the others show texture
QUIET_SHARE = 0.25
LEAST_BLOCKS = 4  # fewer around a hole say too little: then the whole photo speaks
REACH_PX = 3  # of the psf; that of grain as coarse as 1.2 px (deviation) has 98 % within
CELL_PX = 64  # the field is drawn in cells of this side
MOST_NOISE_BLOCKS = 2**13  # kept at a time, 25 MB: of those of a photo of 2 megapixels each one
BRIGHTNESS_STEP = 0.25  # of [-1, 1], at which the strength of grain is told apart
BRIGHTNESS: Array = np.arange(-1, 1 + BRIGHTNESS_STEP, BRIGHTNESS_STEP, dtype=np.float32)
FULL_SCALE = 255.0
# of [-1, 1]: a block of one value is burnt out or painted; it tells how strong the grain is at its
# brightness, but not what the grain is like
FLAT_VARIANCE = 1e-9

# the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a counter -> 64 mixed bits
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIFORMS = 4  # pieces of 16 bits, whose sum is nearly Gaussian


@dataclass(frozen=True)
class Grain:
    """The grain of a photo, in units of the [-1, 1] image range.

    curve: (9,), deviation at brightness -1, -0.75 ... 1: white paper has little, shadows more.
    level: (H / 16, W / 16), rounded up: how many times that, around blocks that a hole touches.
    psf: (7, 7), what white noise is filtered with; of unit energy.
    colours: (3, 3), channels of the grain from three independent ones; of mean energy 1.
    """

    curve: Array
    level: Array
    psf: Array
    colours: Array


def measure_grain(image: Tensor, mask: Tensor) -> Grain:
    """Measure grain in the neighbourhood of holes.

    Blocks of 16 px lose their mean and slope; what remains in the quietest quarter of the blocks
    within 64 px of a hole is taken for grain. How strong it is elsewhere is told by its finest
    diagonal detail, block by block and by brightness.

    Args:
        image: (1, 3, H, W) in [-1, 1].
        mask: (1, 1, H, W) of 0 and 1; 1 = damaged.

    Returns:
        Grain; of level 0 where nothing around is intact enough.
    """
    pixels, holes = image[0].cpu().numpy(), mask[0, 0].cpu().numpy() > 0
    survey = GrainSurvey(*holes.shape)
    for top in range(0, len(holes), CELL_PX):
        first = max(0, top - survey.halo_px)
        around = holes[first : top + CELL_PX + survey.halo_px]
        survey.add(top, pixels[:, top : top + CELL_PX], around, first)
    return survey.grain()


class GrainSurvey:
    """Measures grain as ``measure_grain`` does, from the top down and in bounded memory.

    Rows of blocks are measured one by one, so that bands of any height give the same bits. Of many
    blocks every second, fourth ... is kept to tell what the grain is like.

    Args:
        height, width: of the photo.
    """

    halo_px = NEIGHBOURHOOD_BLOCKS * BLOCK_PX  # rows above and below whose holes must be known

    def __init__(self, height: int, width: int) -> None:
        self._holed = np.zeros((-(-height // BLOCK_PX), -(-width // BLOCK_PX)), bool)
        self._blocks: list[_Measured] = []
        self._noise: list[tuple[int, Array]] = []  # number of the block, (3, 16, 16)
        self._count = 0
        self._every = 1  # so many blocks there are for one whose noise is kept

    def add(self, top: int, image: Array, holes: NDArray[np.bool_], holes_top: int) -> None:
        """Measure some rows, each once and from the top down.

        Args:
            top: of them, a multiple of 16; all but the last rows of a photo come in blocks.
            image: (3, h, W) in [-1, 1].
            holes: (h', W), true = damaged; from ``halo_px`` above to as many below, in the photo.
            holes_top: first row of them, a multiple of 16.
        """
        holed = _blocks(holes[None]).max(axis=(2, 3, 4))  # (rows, columns)
        is_near = _widened(holed, NEIGHBOURHOOD_BLOCKS)
        for y in range(0, image.shape[1], BLOCK_PX):
            row, its_row = (top + y) // BLOCK_PX, (top + y - holes_top) // BLOCK_PX
            self._holed[row] = holed[its_row]
            its_holes = holes[its_row * BLOCK_PX : (its_row + 1) * BLOCK_PX]
            self._add_row(row, image[:, y : y + BLOCK_PX], its_holes, is_near[its_row])

    def _add_row(
        self, row: int, image: Array, holes: NDArray[np.bool_], is_near: NDArray[np.bool_]
    ) -> None:
        intact = _blocks((~holes[None]).astype(np.float32))[0]
        share = intact.mean(axis=(1, 2, 3))
        (columns,) = np.nonzero(is_near & (share >= LEAST_INTACT))
        if not len(columns):
            return
        blocks, intact, share = _blocks(image)[0, columns], intact[columns], share[columns]
        noise = _without_slope(blocks, intact)
        variance = np.square(noise).mean(axis=(1, 2, 3)) / share
        brightness = (blocks * intact).mean(axis=(1, 2, 3)) / share
        fine = _diagonal_variance(noise, intact)
        self._blocks.append(_Measured(row, columns, variance, fine, brightness))
        for index in range(-self._count % self._every, len(columns), self._every):
            # a view would keep the noise of all blocks of the row
            self._noise.append((self._count + index, noise[index].copy()))
        self._count += len(columns)
        if len(self._noise) > MOST_NOISE_BLOCKS:
            self._every *= 2
            self._noise = [(n, block) for n, block in self._noise if n % self._every == 0]

    def grain(self) -> Grain:
        """The grain of the photo, after all of it was added."""
        level = np.zeros(self._holed.shape, np.float32)
        variance = self._joined("variance")
        varies = variance > FLAT_VARIANCE
        if not varies.any():
            nothing = np.zeros((0, BLOCK_PX, BLOCK_PX), np.float32)
            colours = np.eye(3, dtype=np.float32)
            return Grain(np.zeros_like(BRIGHTNESS), level, _psf_of(nothing), colours)
        quiet = varies & (variance <= np.quantile(variance[varies], QUIET_SHARE))
        # texture and edges hardly show in the finest diagonals: they tell how strong the grain is,
        # and the quiet blocks how much of it they hold
        fine, brightness = self._joined("fine"), self._joined("brightness")
        told = fine * (variance[quiet].sum() / fine[quiet].sum().clip(min=FLAT_VARIANCE))
        # compression leaves a smooth backdrop hardly any fine detail, and cloth all of it
        variance = np.minimum(told, variance)
        curve = _curve_of(variance, brightness)
        expected = np.interp(brightness, BRIGHTNESS, curve) ** 2
        known = np.full(self._holed.shape, np.nan, np.float32)
        rows = np.repeat([m.row for m in self._blocks], [len(m.columns) for m in self._blocks])
        known[rows, self._joined("columns")] = np.where(
            varies, variance / expected.clip(min=FLAT_VARIANCE), np.nan
        )
        asked = _widened(self._holed, 1)
        level[asked] = _quiet_levels(known)[asked]
        # so many blocks are kept that some of them are quiet, as a quarter of all are
        noise = np.stack([block for n, block in self._noise if quiet[n]])
        return Grain(curve, level, _psf_of(noise.mean(axis=1)), _colours_of(noise))

    def _joined(self, name: str) -> NDArray[Any]:
        found = [getattr(measured, name) for measured in self._blocks]
        return np.concatenate(found) if found else np.zeros(0, np.float32)


@dataclass(frozen=True)
class _Measured:
    """The blocks near holes of one row of blocks: (n,) each."""

    row: int
    columns: NDArray[np.intp]
    variance: Array
    fine: Array
    brightness: Array


def draw_grain(
    grain: Grain, filled: Tensor, mask: Tensor, start: tuple[int, int] = (0, 0)
) -> Tensor:
    """Noise like the grain, where the mask is.

    Args:
        grain: of the photo that the others belong to.
        filled: (1, 3, H, W) in [-1, 1], its holes filled; its brightness, as 8 bits hold it, says
            how strong the grain is.
        mask: (1, 1, H, W) of 0 and 1.
        start: row and column of the photo at which these start, where they are a part of it.

    Returns:
        (1, 3, H, W) float32 on the mask's device, to be added to an image in [-1, 1]; 0 where the
        mask is 0.
    """
    holes = mask[0, 0].cpu().numpy() > 0
    height, width = holes.shape
    levels_of_8_bits = ((filled[0].mean(dim=0) + 1) * (FULL_SCALE / 2)).round().cpu().numpy()
    brightness = levels_of_8_bits / (FULL_SCALE / 2) - 1
    drawn = np.zeros((3, height, width), np.float32)
    for y in range(0, height, CELL_PX):
        for x in range(0, width, CELL_PX):
            cell = np.s_[y : y + CELL_PX, x : x + CELL_PX]
            if not holes[cell].any():
                continue
            level = _level_at(grain.level, start[0] + y, start[1] + x, holes[cell].shape)
            level = level * np.interp(brightness[cell], BRIGHTNESS, grain.curve).astype(np.float32)
            field = grain_field(grain, start[0] + y, start[1] + x, holes[cell].shape)
            drawn[:, cell[0], cell[1]] = field * (level * holes[cell])
    return torch.from_numpy(drawn)[None].to(mask.device)


def grain_field(grain: Grain, top: int, left: int, size: tuple[int, int]) -> Array:
    """A window of the endless field of grain of deviation 1: (3, *size), from (top, left) on."""
    height, width = size
    rim = 2 * REACH_PX
    white = _white_noise(top - REACH_PX, left - REACH_PX, (height + rim, width + rim))
    filtered = np.zeros((3, height, width), np.float32)
    for row in range(rim + 1):
        for column in range(rim + 1):
            window = white[:, row : row + height, column : column + width]
            filtered += grain.psf[row, column] * window
    mixed = np.zeros_like(filtered)
    for channel in range(3):
        mixed += grain.colours[:, channel, None, None] * filtered[channel]
    return mixed


def _white_noise(top: int, left: int, size: tuple[int, int]) -> Array:
    """Independent values of mean 0 and deviation 1, (3, *size): a function of place alone."""
    rows = np.arange(top, top + size[0]).astype(np.uint64)[None, :, None]
    columns = np.arange(left, left + size[1]).astype(np.uint64)[None, None, :]
    channels = np.arange(3, dtype=np.uint64)[:, None, None]
    # rows and columns are below 2 ** 30, so that no two places have one number
    bits = ((rows << np.uint64(32)) ^ ((columns << np.uint64(2)) + channels)) * _GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    bits ^= bits >> np.uint64(31)
    pieces = [(bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(_UNIFORMS)]
    total = sum(piece.astype(np.int32) for piece in pieces)
    deviation = np.sqrt(_UNIFORMS * (2.0**32 - 1) / 12)
    centred: Array = ((total - _UNIFORMS * 0xFFFF / 2) / deviation).astype(np.float32)
    return centred


def _blocks(values: NDArray[Any]) -> NDArray[Any]:
    """(C, H, W) -> (rows, columns, C, 16, 16); zeros beyond the photo, which count as no part."""
    channels, height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -height % BLOCK_PX), (0, -width % BLOCK_PX)))
    rows, columns = padded.shape[1] // BLOCK_PX, padded.shape[2] // BLOCK_PX
    split = padded.reshape(channels, rows, BLOCK_PX, columns, BLOCK_PX)
    blocks: NDArray[Any] = split.transpose(1, 3, 0, 2, 4)
    return blocks


def _widened(chosen: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Blocks within ``radius`` blocks of the chosen ones, in rows and columns."""
    padded = np.pad(chosen, radius)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2)
    wide: NDArray[np.bool_] = windows.max(axis=(2, 3))
    return wide


def _without_slope(blocks: Array, intact: Array) -> Array:
    """Blocks (n, C, 16, 16) less the plane through their intact (n, 1, 16, 16) part; else 0."""
    ramp = np.linspace(-1, 1, BLOCK_PX, dtype=np.float32)
    down, across = np.meshgrid(ramp, ramp, indexing="ij")
    planes = np.stack([np.ones_like(down), down, across])  # (3, 16, 16)
    gram = np.einsum("nhw,ihw,jhw->nij", intact[:, 0], planes, planes)
    moments = np.einsum("nchw,ihw->nic", blocks * intact, planes)
    fitted = np.einsum("nic,ihw->nchw", np.linalg.solve(gram, moments), planes)
    noise: Array = (blocks - fitted) * intact
    return noise


def _diagonal_variance(noise: Array, intact: Array) -> Array:
    """Of the finest diagonal Haar coefficients of blocks (n, C, 16, 16): (n,), where intact."""

    def diagonal(x: Array, sign: int) -> Array:
        upper, lower = x[:, :, ::2], x[:, :, 1::2]
        return upper[..., ::2] + sign * (upper[..., 1::2] + lower[..., ::2]) + lower[..., 1::2]

    whole = diagonal(intact, 1) == 4
    size = (np.abs(diagonal(noise, -1)) / 2 * whole).mean(axis=(1, 2, 3))
    share = whole.mean(axis=(1, 2, 3))
    # mean |x| of a normal x is its deviation times the root of 2 / pi
    variance: Array = np.square(size / share.clip(min=LEAST_INTACT / 2)) * (np.pi / 2)
    return variance.astype(np.float32)


def _curve_of(variance: Array, brightness: Array) -> Array:
    """Deviation by brightness (9,): of the quiet blocks near each, where there are enough."""
    found = np.full(len(BRIGHTNESS), np.nan)
    for place, middle in enumerate(BRIGHTNESS):
        near = variance[np.abs(brightness - middle) <= BRIGHTNESS_STEP]
        if len(near) >= LEAST_BLOCKS:
            found[place] = np.sqrt(np.quantile(near, QUIET_SHARE))
    if np.isnan(found).all():
        found[:] = np.sqrt(np.quantile(variance, QUIET_SHARE))
    known = ~np.isnan(found)
    curve: Array = np.interp(BRIGHTNESS, BRIGHTNESS[known], found[known]).astype(np.float32)
    return curve


def _quiet_levels(variance: Array) -> Array:
    """Deviation in the quiet blocks around each; of all if few around are known (not NaN)."""
    reach = NEIGHBOURHOOD_BLOCKS
    padded = np.pad(variance, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    everywhere = np.nanquantile(variance, QUIET_SHARE)
    levels = np.empty_like(variance)
    for row, its_windows in enumerate(windows):  # all at once would be 81 copies of the map
        around = np.sort(its_windows.reshape(len(its_windows), -1), axis=1)  # NaN comes last
        known = (~np.isnan(around)).sum(axis=1)
        place = (QUIET_SHARE * (known - 1).clip(min=0)).round().astype(np.intp)
        quiet = np.take_along_axis(around, place[:, None], axis=1)[:, 0]
        levels[row] = np.sqrt(np.where(known < LEAST_BLOCKS, everywhere, quiet))
    return levels


def _psf_of(noise: Array) -> Array:
    """What white noise is filtered with to be correlated as the blocks (n, 16, 16) are.

    Its spectrum is the root of theirs (Wiener-Khinchin), its energy 1.
    """
    reach, side = REACH_PX, 2 * REACH_PX + 1
    correlation = np.zeros((side, side))
    for down in range(side):
        for across in range(side):
            y, x = abs(down - reach), abs(across - reach)
            first = noise[:, : BLOCK_PX - y, : BLOCK_PX - x]
            if (down < reach) == (across < reach):
                second = noise[:, y:, x:]
            else:
                first, second = noise[:, y:, : BLOCK_PX - x], noise[:, : BLOCK_PX - y, x:]
            correlation[down, across] = (first * second).sum(dtype=np.float64)
            correlation[down, across] /= (BLOCK_PX - y) * (BLOCK_PX - x)
    if correlation[reach, reach] == 0:
        correlation[reach, reach] = 1.0
    wide = np.zeros((BLOCK_PX, BLOCK_PX))
    wide[:side, :side] = correlation
    spectrum = np.fft.fft2(np.roll(wide, (-reach, -reach), (0, 1))).real
    psf = np.roll(np.fft.ifft2(np.sqrt(spectrum.clip(min=0))).real, (reach, reach), (0, 1))
    psf = psf[:side, :side]
    unit: Array = (psf / np.sqrt(np.square(psf).sum())).astype(np.float32)
    return unit


def _colours_of(noise: Array) -> Array:
    """The symmetric root of the channels' covariance in blocks (n, 3, 16, 16), of mean energy 1."""
    covariance = np.einsum("nihw,njhw->ij", noise, noise, dtype=np.float64)
    values, vectors = np.linalg.eigh(covariance / (np.trace(covariance) / 3))
    root: Array = ((vectors * np.sqrt(values.clip(min=0))) @ vectors.T).astype(np.float32)
    return root


def _level_at(level: Array, top: int, left: int, size: tuple[int, int]) -> Array:
    """The levels at pixels, between the middles of blocks: (*size) from (top, left) on."""
    rows, row_parts = _between(top, size[0], level.shape[0])
    columns, column_parts = _between(left, size[1], level.shape[1])
    upper, lower = level[rows], level[np.minimum(rows + 1, level.shape[0] - 1)]
    along = upper + (lower - upper) * row_parts[:, None]
    right = along[:, np.minimum(columns + 1, level.shape[1] - 1)]
    found: Array = along[:, columns] + (right - along[:, columns]) * column_parts
    return found


def _between(start: int, count: int, blocks: int) -> tuple[NDArray[np.int64], Array]:
    """For each of ``count`` pixels, the block whose middle lies before it, and how far behind."""
    place = (np.arange(start, start + count, dtype=np.float32) + 0.5) / BLOCK_PX - 0.5
    place = place.clip(0, blocks - 1)
    before = np.floor(place).astype(np.int64)
    return before, (place - before).astype(np.float32)
