"""Tables that the commands print."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_WIDE = 1000  # columns: no line is ever broken, on a terminal or in a file


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells under their head: names on the left, and numbers aligned on the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for number, title in enumerate(head):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(
        width=_WIDE,
        height=1,  # without one, rich takes 80 columns where TERM is "dumb"
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(table)
