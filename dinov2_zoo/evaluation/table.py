"""One table of measurements, for the terminal and the report alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of measurements under column names; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """What a reader must know to judge the numbers."""
    marked: Collection[str] = ()
    """Names of the columns that the table is about: they are shown bold."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a row has another number of cells"

    def text_rows(self) -> list[list[str]]:
        """The rows as strings, numbers in a form to compare by eye."""
        return [[format_cell(cell) for cell in row] for row in self.rows]


def format_cell(cell: Cell) -> str:
    """A cell as text: 3 decimals below 10, 1 below 1000, none above, a dash for what was not measured."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:.1f}" if abs(cell) < 1000 else f"{cell:,.0f}"


def terminal_table(table: Table, *, left: Sequence[int] = (), folds: int = 0) -> RichTable:
    """The table for `rich.print`: first column, and those of `left`, to the left, numbers to the right.

    Column `folds` gives way where the terminal is narrow.
    """
    # As Text: in plain strings rich would see markup and emoji, as in a source named views:package:photos.
    note = Text(table.note, "table.caption") if table.note else None
    rich = RichTable(title=table.title, caption=note, box=SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(table.columns):
        justify = "right" if index and index not in left else "left"
        style = "bold" if column in table.marked else ""
        rich.add_column(column, justify=justify, style=style, no_wrap=index != folds, overflow="fold")
    for row in table.text_rows():
        rich.add_row(*map(Text, row))
    return rich
