"""What a run writes down: figures to JSON lines and TensorBoard, a progress bar, sample sheets."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """``metrics.jsonl`` and TensorBoard files in a folder, and a progress bar on a terminal.

    Figures are means since the last line. "data_wait" is the share of the time that the networks
    waited for data. What a run that was killed wrote after step ``done``, from which it goes on, is
    taken out: it is written again.
    """

    def __init__(self, folder: Path, name: str, steps: int, is_main: bool, *, done: int) -> None:
        self.folder, self.name, self.steps, self.is_main = folder, name, steps, is_main
        self.done = done
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._samples = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def __enter__(self) -> "RunLog":
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not (self.is_main and console.is_terminal),
        )
        self._progress.start()
        self._task = self._progress.add_task(self.name, total=self.steps, figures="")
        self._board = self._open_board() if self.is_main else None
        if self.is_main:
            _keep_until(self.done, self.folder / METRICS_FILE)
        return self

    def _open_board(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # tensorboard is of the extra `train`; the JSON lines are always there
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done + 1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, figures: dict[str, Tensor], waited_s: float, samples: int) -> None:
        """Take in the figures of one step."""
        for name, value in figures.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self._samples += samples
        self._waited += waited_s
        self._progress.update(self._task, completed=step)

    def write(self, step: int, lr: float) -> None:
        """Write the means since the last line."""
        elapsed = time.perf_counter() - self._since
        line = {name: float(value) / self._count for name, value in self._sums.items()}
        line |= {
            "lr": lr,
            "samples_per_s": self._samples / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self._write(step, line)
        losses = "  ".join(f"{name} {float(value):.4g}" for name, value in list(line.items())[:4])
        self._progress.update(self._task, figures=losses)
        self._clear()

    def write_validation(self, step: int, figures: dict[str, float]) -> None:
        """Write figures of the held-out crops."""
        self._write(step, {f"validation/{name}": value for name, value in figures.items()})
        self._since = time.perf_counter()

    def _write(self, step: int, figures: dict[str, float]) -> None:
        if not self.is_main:
            return
        with (self.folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)


def _keep_until(step: int, path: Path) -> None:
    """Drop the lines of later steps, and one that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:
            continue
    part = path.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(path)


def save_sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] as one PNG, ``columns`` of them a row."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    bytes_ = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(bytes_):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(sheet).save(part, format="PNG")
    part.replace(path)
