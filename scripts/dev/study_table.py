"""The rows of a study's ``summary.json`` as a Markdown table.

Scores are means over seeds. Minutes are their median, since one run that had to wait
for other work would make a mean mean nothing.
"""

from __future__ import annotations

import statistics
from typing import Any, Iterable, Sequence

__all__ = ["study_table"]

Row = dict[str, Any]

_ORDER = ("baseline", "control", "soft_paper", "bso", "mrt", "soft")


def study_table(
    rows: Sequence[Row],
    *,
    beams: Sequence[int] = (1, 5),
    order: Sequence[str] = _ORDER,
) -> str:
    """Return one line for each pair, model, test and system.

    Args:
        rows: with ``pair``, ``model``, ``system``, ``seed``, ``test``, ``beam``,
            ``bleu``, ``chrf``, ``p_vs_control``, ``updates`` and ``seconds``.
        beams: sizes of the beam that get a column.
        order: all systems, in the order of their lines.
    """
    headings = ["pair, model", "test", "system", "seeds", "updates", "minutes"]
    headings += [f"BLEU, beam {beam}" for beam in beams]
    headings += [f"chrF, beam {beams[-1]}", f"p at beam {beams[-1]}, each seed"]
    lines = [headings, ["---"] * len(headings)]
    keys = {(r["pair"], r["model"], r["test"], r["system"]) for r in rows}
    for key in sorted(keys, key=lambda k: (*k[:3], order.index(k[3]))):
        lines.append(_line(key, [r for r in rows if _key(r) == key], beams))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _key(row: Row) -> tuple[str, ...]:
    return row["pair"], row["model"], row["test"], row["system"]


def _line(key: Iterable[str], rows: list[Row], beams: Sequence[int]) -> list[str]:
    pair, model, test, system = key
    last = [r for r in rows if r["beam"] == beams[-1]]
    seeds = sorted({r["seed"] for r in rows})
    p_values = [r["p_vs_control"] for r in sorted(last, key=lambda r: r["seed"])]
    return [
        f"{pair}, {model}",
        test,
        system,
        ", ".join(map(str, seeds)),
        f"{rows[0]['updates']:,}",
        _minutes(last),
        *(_mean([r["bleu"] for r in rows if r["beam"] == b], ".2f") for b in beams),
        _mean([r["chrf"] for r in last], ".2f"),
        ", ".join("-" if p is None else f"{p:.4f}" for p in p_values) or "-",
    ]


def _minutes(rows: list[Row]) -> str:
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    return f"{statistics.median(seconds) / 60:.0f}" if seconds else "-"


def _mean(values: list[float], form: str) -> str:
    return format(statistics.mean(values), form) if values else "-"
