"""Plain text tables."""

from __future__ import annotations

from typing import Sequence

__all__ = ["format_table"]


def format_table(
    headings: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]
) -> str:
    """Return aligned lines: the first column to the left, the others to the right.

    Args:
        headings: one for each column.
        rows: cells; floats get two decimals and ``None`` a dash.

    Raises:
        ValueError: a row has more or fewer cells than there are headings.
    """
    cells = [list(headings), *([_text(cell) for cell in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _text(cell: str | int | float | None) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths)
    return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])
