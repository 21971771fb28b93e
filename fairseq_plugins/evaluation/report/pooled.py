"""The scores of a system over its seeds, as scripts/compare.py pools them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from fairseq_plugins.evaluation.comparison import mean_row
from fairseq_plugins.evaluation.report.runs import Evaluated, ReportRun
from fairseq_plugins.evaluation.report.scores import KnownTests, shown_of

__all__ = ["System", "pooled_rows"]


@dataclass(frozen=True)
class System:
    """A system of the report.

    Attributes:
        label: what the page calls it.
        runs: one for each seed.
    """

    label: str
    runs: Sequence[ReportRun]

    def evaluated(self, subset: str) -> dict[int, list[Evaluated]]:
        """Return by beam the evaluations of all runs, for beams that all have."""
        first, *others = [run.scores[subset] for run in self.runs]
        beams = [beam for beam in first if all(beam in other for other in others)]
        return {beam: [run.scores[subset][beam] for run in self.runs] for beam in beams}


def pooled_rows(
    systems: Sequence[System],
    subset: str,
    references: Sequence[str],
    known: KnownTests,
) -> list[dict[str, Any]]:
    """Return a row for each system and beam, the control's first.

    Scores are means over seeds, ``deviation`` is BLEU's between them. ``change`` and
    its ``change_interval`` and the p-values, which the control has none of, are those
    of :func:`significance.pooled_test`.
    """
    control = systems[0].evaluated(subset)
    rows = []
    for number, system in enumerate(systems):
        for beam, evaluated in system.evaluated(subset).items():
            scored = [
                {**each.row, "run": run.name}
                for run, each in zip(system.runs, evaluated)
            ]
            merged = mean_row(scored)
            row = shown_of(merged) | {"system": number, "beam": beam}
            row["deviation"] = merged["bleu_deviation"]
            if number and beam in control:
                row |= known.pooled(
                    system.runs[0], control[beam], evaluated, references
                )
            rows.append(row)
    return rows
