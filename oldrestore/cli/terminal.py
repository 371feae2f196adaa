"""What commands say to a terminal: exit codes, messages on stderr, a progress bar."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def progress_bar() -> Progress:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # results go where the user sends them
    )


def say(text: str, console: Console | None = None) -> None:
    """One line on stderr."""
    console = console or Console(stderr=True)
    console.print(f"oldrestore: {text}", markup=False, highlight=False, soft_wrap=True)
