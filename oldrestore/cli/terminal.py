"""What commands say to a terminal: exit codes, messages on stderr, a progress bar."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

DONE, FAILED, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130


class RateColumn(ProgressColumn):
    """How many steps were done in a minute, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed * 60:.3g}/min")


def progress_bar(*, shows_rate: bool = False) -> Progress:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([RateColumn()] if shows_rate else []),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # results go where the user sends them
    )


def say(text: str, console: Console | None = None) -> None:
    """One line on stderr."""
    console = console or Console(stderr=True)
    console.print(f"oldrestore: {text}", markup=False, highlight=False, soft_wrap=True)
