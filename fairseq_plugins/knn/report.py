"""The summary of a study as a table, for a terminal and for a page."""
from __future__ import annotations

from typing import Any

from fairseq_plugins.evaluation.table import format_table

__all__ = ["markdown", "plain"]

HEADINGS = (
    "method",
    "accuracy, %",
    "95 % interval",
    "each seed",
    "minus kNN on ce",
    "95 % interval",
    "minus pixels",
    "95 % interval",
)


def plain(summary: dict[str, Any]) -> str:
    """Return aligned lines."""
    return format_table(HEADINGS, _rows(summary))


def markdown(summary: dict[str, Any]) -> str:
    """Return a Markdown table."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *_rows(summary)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(summary: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["title"],
            *_estimate(row["accuracy"]),
            " ".join(f"{100 * each:.2f}" for each in row["by_seed"]),
            *_estimate(row.get("difference_from_ce"), sign="+"),
            *_estimate(row.get("difference_from_raw"), sign="+"),
        ]
        for row in summary["results"]
    ]


def _estimate(estimate: dict[str, float] | None, *, sign: str = "") -> tuple[str, str]:
    if estimate is None:
        return "-", "-"
    value, low, high = (
        format(100 * estimate[name], f"{sign}.2f") for name in ("value", "low", "high")
    )
    return value, f"{low} to {high}"
