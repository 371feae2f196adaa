"""What an evaluation found: every photo's scores, their means, and the table of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oldrestore.evaluate.methods import ROWS
from oldrestore.evaluate.samples import COLUMNS
from oldrestore.evaluate.scores import Score, psnr_of

FORMAT = "oldrestore-evaluation/1"


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
    """A row's means in a column; inside holes the PSNR of all photos' pixels together."""

    psnr: float | None
    ssim: float | None
    distance: float | None
    photos: int


@dataclass(frozen=True)
class Results:
    """An evaluation.

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
        """The means of a row in a column.

        Raises:
            ValueError: it was not measured.
        """
        found = [score for score in self.scores if (score.row, score.column) == (row, column)]
        if not found:
            raise ValueError(f"row, column: {row!r}, {column!r} was not measured")
        used = [score for score in found if score.compared]
        if COLUMNS[column].holes_only:
            error = sum(score.squared_error for score in used)
            compared = sum(score.compared for score in used)
            return Cell(psnr_of(error, compared), None, None, len(used))
        return Cell(
            _mean([score.psnr for score in used]),
            _mean([score.ssim for score in used]),
            _mean([score.distance for score in used]),
            len(used),
        )

    def seconds_per_megapixel(self, row: str) -> float:
        """Time of a row, over all it restored.

        Raises:
            ValueError: it was not measured.
        """
        found = [timing for timing in self.timings if timing.row == row]
        if not found:
            raise ValueError(f"row: {row!r} was not measured")
        return sum(t.seconds for t in found) / sum(t.megapixels for t in found)

    def table(self) -> list[list[str]]:
        """Head and rows of the table, as text."""
        head = ["", *(COLUMNS[column].title for column in self.config["columns"]), "s/MP"]
        lines = [head]
        for row in self.config["rows"]:
            cells = [_text(self.cell(row, column)) for column in self.config["columns"]]
            lines.append([ROWS[row], *cells, f"{self.seconds_per_megapixel(row):.2f}"])
        return lines

    def caption(self) -> str:
        """What the table's numbers are."""
        parts = ["PSNR in dB", "SSIM"]
        if self.config["backbone"] is not None:
            parts.append(f"perceptual distance ({self.config['backbone']['name']})")
        threads, photos = self.config["threads"], len(self.config["photos"])
        return (
            f"{' / '.join(parts)}; {photos} photo{'s' if photos != 1 else ''}, "
            f"seed {self.config['seed']}; s/MP: seconds a megapixel, "
            f"{threads} thread{'s' if threads != 1 else ''}"
        )

    def markdown(self) -> str:
        """The table for a README, its caption under it."""
        head, *rows = self.table()
        rule = ["---", *["---:"] * (len(head) - 1)]
        lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]
        return "\n".join([*lines, "", self.caption()])

    def save(self, path: Path) -> None:
        """Write everything as JSON, whole or not at all."""
        table = {
            row: {
                "seconds_per_megapixel": self.seconds_per_megapixel(row),
                "columns": {c: asdict(self.cell(row, c)) for c in self.config["columns"]},
            }
            for row in self.config["rows"]
        }
        content = {"format": FORMAT, **asdict(self), "table": table}
        partial = path.with_name(f".{path.name}.part")
        try:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _mean(values: Sequence[float | None]) -> float | None:
    """None if there is nothing to average."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _text(cell: Cell) -> str:
    digits = ((cell.psnr, 2), (cell.ssim, 3), (cell.distance, 3))
    return " / ".join(f"{value:.{n}f}" for value, n in digits if value is not None) or "-"
