"""Tables of an evaluation as text: for a README, or for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table.

    name: what it is about, a word or two.
    head: titles of the columns. rows: as many texts each, the first of them the row's title.
    caption: what the numbers are.
    """

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str

    def markdown(self) -> str:
        """For a README, the caption under it."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = ["| " + " | ".join(line) + " |" for line in (self.head, rule, *self.rows)]
        return "\n".join([*lines, "", self.caption])

    def print(self) -> None:
        """On a terminal."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid

        grid = Grid(box=box.SIMPLE, title=self.name, caption=self.caption)
        for title in self.head:
            grid.add_column(title, justify="right" if title != self.head[0] else "left")
        for line in self.rows:
            grid.add_row(*line)
        Console().print(grid)
