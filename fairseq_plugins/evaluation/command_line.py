"""What scripts/evaluate.py, scripts/compare.py and scripts/score.py have in common."""

from __future__ import annotations

import argparse
from typing import Any, Mapping, Sequence

from fairseq_plugins.evaluation.checks import MAX_EMPTY
from fairseq_plugins.evaluation.comet import DEFAULT_MODEL, Comet
from fairseq_plugins.evaluation.evaluate import Scoring
from fairseq_plugins.evaluation.table import format_table
from fairseq_plugins.utils.arguments import at_least, finite, share

_FORCED = "Scored by --force: not comparable with other scores."


def add_evaluation(
    parser: argparse.ArgumentParser, *, several_subsets: bool = False
) -> None:
    """Add which translations of a run are meant."""
    add = parser.add_argument
    add("--beam", type=at_least(1), nargs="+", default=[1, 5], metavar="K",
        help="beam sizes, 1 is greedy (default: 1 5)")  # fmt: skip
    several: dict[str, Any] = (
        {"nargs": "+", "default": ["test"]} if several_subsets else {"default": "test"}
    )
    add("--subset", metavar="NAME", **several,
        help="test set: fairseq's name, its title, or a part such as "
        "newstest2014/2737 (default: test)")  # fmt: skip
    add("--checkpoint", default=["best"], nargs="+", metavar="WHICH",
        help="best, last or a path; several: their average (default: best)",
        )  # fmt: skip
    add("--lenpen", type=finite, default=1.0, metavar="X",
        help="exponent of the length in the score (default: 1)")  # fmt: skip


def evaluation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return these as :func:`evaluate_run` takes them."""
    return {
        "beams": arguments.beam,
        "subset": arguments.subset,
        "checkpoint": arguments.checkpoint,
        "lenpen": arguments.lenpen,
    }


def notes_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader of these scores has to know, a line each."""
    return [_FORCED] if any(row.get("forced") for row in rows) else []


def add_refusals(parser: argparse.ArgumentParser) -> None:
    """Add what is to be scored all the same."""
    add = parser.add_argument
    add("--max-empty", type=share, default=MAX_EMPTY, metavar="SHARE",
        help="hypotheses that may be empty (default: %(default)s)")  # fmt: skip
    add("--force", action="store_true",
        help="score what looks wrong: subword marks, tokenised text, ...")  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokenised", action="store_true",
        help="add tokenised and compound-split BLEU, for older papers")  # fmt: skip
    add("--comet", metavar="PROGRAM",
        help="add COMET: a comet-score, or a Python that has it")  # fmt: skip
    add("--comet-model", default=DEFAULT_MODEL, metavar="NAME",
        help=f"default: {DEFAULT_MODEL}")  # fmt: skip
    add("--comet-gpus", type=at_least(0), default=0, metavar="N",
        help="default: 0")  # fmt: skip
    add_refusals(parser)


def scoring(arguments: argparse.Namespace) -> Scoring:
    comet = None
    if arguments.comet is not None:
        comet = Comet(arguments.comet, arguments.comet_model, arguments.comet_gpus)
        comet.arguments()  # a wrong path should not wait for the search
    return Scoring(
        max_empty=arguments.max_empty,
        force=arguments.force,
        tokenised=arguments.tokenised,
        comet=comet,
    )


def older_papers(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a table of the scores that are no headline; none without them."""
    cells = [
        [title, *(row[key]["bleu"] for row in rows)]
        for title, key in (
            ("tokenised", "tokenised_bleu"),
            ("compounds split", "compound_split_bleu"),
        )
        if all(key in row for row in rows)
    ]
    if not cells:
        return None
    beams = [f"beam {row['beam']}" if "beam" in row else "BLEU" for row in rows]
    note = "Only for comparison with older papers that tokenised in the same way"
    by = rows[0].get("tokenised_by", "tokens as they are in the files")
    return f"{note} ({by}):\n" + format_table(["BLEU of tokens", *beams], cells)


def span(bucket: Mapping[str, Any]) -> str:
    """Return how many words the sentences of a bucket of lengths have."""
    last = bucket["to_words"]
    return f"{bucket['from_words']} to {last}" if last else f"{bucket['from_words']} on"
