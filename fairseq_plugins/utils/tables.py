"""Plain text tables."""

from __future__ import annotations

from typing import Sequence

from tabulate import tabulate

__all__ = ["format_table"]

Cell = str | int | float | None


def format_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table with the first column aligned left and the others right.

    Floats get two decimals, integers separators of thousands, and ``None`` a dash.
    """
    return tabulate(
        [[_format(cell) for cell in row] for row in rows],
        headings,
        disable_numparse=True,
        colalign=("left", *["right"] * (len(headings) - 1)),
    )


def _format(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
