"""What a measurement of restorations found: every photo's scores, and the tables of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oldrestore.evaluate.methods import ROWS
from oldrestore.evaluate.samples import COLUMNS
from oldrestore.evaluate.scores import IDENTICAL_DB, Score
from oldrestore.evaluate.statistics import Numbers, Summary, summary_of_mean, summary_of_pool
from oldrestore.evaluate.tables import Table


@dataclass(frozen=True)
class Timing:
    """How long one row took for one damaged photo, its kind of damage being ``inputs``."""

    photo: str
    row: str
    inputs: str
    seconds: float
    megapixels: float


@dataclass(frozen=True)
class Cell:
    """A row in a column, over its photos; inside holes the PSNR of all photos' pixels together."""

    psnr: Summary | None
    ssim: Summary | None
    distance: Summary | None
    photos: int


@dataclass(frozen=True)
class Results:
    """A measurement of restorations.

    config: what was measured: seed, photos, rows, columns, weights, threads.
    versions: of what it was measured with.
    inputs_sha256: of all damaged photos: equal numbers can be compared photo by photo.
    skipped: photos that could not be read, and why.
    """

    config: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs_sha256: str
    skipped: Mapping[str, str]
    scores: tuple[Score, ...]
    timings: tuple[Timing, ...]

    def cell(self, row: str, column: str) -> Cell:
        """A row in a column.

        Raises:
            ValueError: it was not measured.
        """
        used = self._used(row, column)
        if COLUMNS[column].holes_only:
            psnr = None
            if used:
                psnr = summary_of_pool(_parts(used), _pooled_psnr, _psnrs(used))
            return Cell(psnr, None, None, len(used))
        return Cell(
            summary_of_mean([score.psnr for score in used]),
            summary_of_mean([score.ssim for score in used]),
            summary_of_mean([score.distance for score in used]),
            len(used),
        )

    def gain(self, row: str, over: str, column: str) -> Cell:
        """How much better one row is than another, photo by photo.

        PSNR and SSIM as differences; the distance as the share of the other's that is gone. Inside
        holes the difference of the PSNRs of all pixels together.

        Raises:
            ValueError: one of them was not measured.
        """
        ours, theirs = self._used(row, column), self._used(over, column)
        if COLUMNS[column].holes_only:
            psnr = None
            if ours:
                both = np.hstack([_parts(ours), _parts(theirs)])
                each = _psnrs(ours) - _psnrs(theirs)
                psnr = summary_of_pool(both, _pooled_gain, each)
            return Cell(psnr, None, None, len(ours))
        pairs = list(zip(ours, theirs, strict=True))
        return Cell(
            summary_of_mean([_less(a.psnr, b.psnr) for a, b in pairs]),
            summary_of_mean([_less(a.ssim, b.ssim) for a, b in pairs]),
            summary_of_mean([_share_gone(a.distance, b.distance) for a, b in pairs]),
            len(pairs),
        )

    def _used(self, row: str, column: str) -> list[Score]:
        """The scores of photos where something was compared."""
        found = [score for score in self.scores if (score.row, score.column) == (row, column)]
        if not found:
            raise ValueError(f"row, column: {row!r}, {column!r} was not measured")
        return [score for score in found if score.compared]

    def seconds_per_megapixel(self, row: str) -> float:
        """Time of a row, over all it restored.

        Raises:
            ValueError: it was not measured.
        """
        found = [timing for timing in self.timings if timing.row == row]
        if not found:
            raise ValueError(f"row: {row!r} was not measured")
        return sum(t.seconds for t in found) / sum(t.megapixels for t in found)

    def title(self, row: str) -> str:
        """Of a row, for the reader."""
        text = ROWS.get(row, f"{row}, true mask")
        sigma = self.config["ffdnet_sigma"]
        return text.replace("fixed sigma", f"fixed sigma ({sigma:g})") if sigma else text

    def tables(self) -> list[Table]:
        """Means with intervals and times, medians, and what "ours" gains over each other row."""
        columns, rows = self.config["columns"], self.config["rows"]
        titles = [COLUMNS[column].title for column in columns]
        means, medians, gains = [], [], []
        for row in rows:
            cells = [self.cell(row, column) for column in columns]
            seconds = f"{self.seconds_per_megapixel(row):.2f}"
            means.append([self.title(row), *map(_mean_text, cells), seconds])
            medians.append([self.title(row), *map(_median_text, cells)])
            if "ours" in rows and row != "ours":
                cells = [self.gain("ours", row, column) for column in columns]
                gains.append([self.title(row), *map(_gain_text, cells)])
        tables = [
            Table("restoration", ("", *titles, "s/MP"), means, self.caption()),
            Table("medians", ("", *titles), medians, f"medians over photos; {self._sample()}"),
        ]
        if gains:
            caption = (
                '"ours, true mask" less this row, photo by photo: PSNR in dB [95 % interval] / SSIM'
                f"{' / share of the perceptual distance gone' if self._has_distance() else ''}; "
                f"{self._sample()}"
            )
            tables.append(Table("gains", ("over", *titles), gains, caption))
        return tables

    def caption(self) -> str:
        """What the first table's numbers are."""
        parts = ["mean PSNR in dB [95 % interval]", "SSIM"]
        if self._has_distance():
            parts.append(f"perceptual distance ({self.config['backbone']['name']})")
        threads = self.config["threads"]
        return (
            f"{' / '.join(parts)}; {self._sample()}; s/MP: seconds a megapixel, "
            f"{threads} thread{'s' if threads != 1 else ''}"
        )

    def _has_distance(self) -> bool:
        return self.config["backbone"] is not None

    def _sample(self) -> str:
        photos = len(self.config["photos"])
        return f"{photos} photo{'s' if photos != 1 else ''}, seed {self.config['seed']}"

    def as_json(self) -> dict[str, Any]:
        """Everything, in what JSON can hold."""
        table = {
            row: {
                "seconds_per_megapixel": self.seconds_per_megapixel(row),
                "columns": {c: asdict(self.cell(row, c)) for c in self.config["columns"]},
            }
            for row in self.config["rows"]
        }
        return {**asdict(self), "table": table}


def _parts(scores: Sequence[Score]) -> Numbers:
    """What each photo adds to a pooled PSNR: squared error and number of values, (photos, 2)."""
    return np.array([(score.squared_error, score.compared) for score in scores], np.float64)


def _psnrs(scores: Sequence[Score]) -> Numbers:
    return np.array([score.psnr for score in scores], np.float64)


def _pooled_psnr(sums: Numbers) -> Numbers:
    """(..., 2) -> (...)."""
    least = 10 ** (-IDENTICAL_DB / 10)
    decibels: Numbers = -10 * np.log10((sums[..., 0] / sums[..., 1]).clip(min=least))
    return decibels


def _pooled_gain(sums: Numbers) -> Numbers:
    """(..., 4) -> (...): two pooled PSNRs, subtracted."""
    return _pooled_psnr(sums[..., :2]) - _pooled_psnr(sums[..., 2:])


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _share_gone(ours: float | None, theirs: float | None) -> float | None:
    """None where there is nothing to compare, or no distance that could be less."""
    return None if ours is None or not theirs else 1 - ours / theirs


def _mean_text(cell: Cell) -> str:
    parts = [_with_interval(cell.psnr, ".2f")] if cell.psnr else []
    parts += [f"{found.value:.3f}" for found in (cell.ssim, cell.distance) if found]
    return " / ".join(parts) or "-"


def _median_text(cell: Cell) -> str:
    parts = [f"{cell.psnr.median:.2f}"] if cell.psnr else []
    parts += [f"{found.median:.3f}" for found in (cell.ssim, cell.distance) if found]
    return " / ".join(parts) or "-"


def _gain_text(cell: Cell) -> str:
    parts = [_with_interval(cell.psnr, "+.2f")] if cell.psnr else []
    parts += [f"{cell.ssim.value:+.3f}"] if cell.ssim else []
    parts += [f"{cell.distance.value:.0%}"] if cell.distance else []
    return " / ".join(parts) or "-"


def _with_interval(found: Summary, form: str) -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
