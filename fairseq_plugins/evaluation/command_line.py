"""Options and tables shared by scripts/evaluate.py, compare.py and score.py."""

from __future__ import annotations

import argparse
from typing import Any, Mapping, Sequence

from fairseq_plugins.evaluation.checks import MAX_EMPTY
from fairseq_plugins.evaluation.comet import DEFAULT_MODEL, Comet
from fairseq_plugins.evaluation.evaluate import Scoring
from fairseq_plugins.utils.arguments import at_least, finite, fraction
from fairseq_plugins.utils.tables import format_table

_FORCED = "Scored with --force: not comparable with other scores."


def add_search_options(
    parser: argparse.ArgumentParser, *, several_subsets: bool = False
) -> None:
    """Add the options that select a run's translations; see `read_search_options`."""
    add = parser.add_argument
    add("--beam", type=at_least(1), nargs="+", default=[1, 5], metavar="K",
        help="beam sizes, 1 is greedy search (default: 1 5)")  # fmt: skip
    several: dict[str, Any] = (
        {"nargs": "+", "default": ["test"]} if several_subsets else {"default": "test"}
    )
    add("--subset", metavar="NAME", **several,
        help="test set: fairseq's name, its title, or a part such as "
        "newstest2014/2737 (default: test)")  # fmt: skip
    add("--checkpoint", default=["best"], nargs="+", metavar="WHICH",
        help="best, last or a path; several are averaged (default: best)",
        )  # fmt: skip
    add("--lenpen", type=finite, default=1.0, metavar="X",
        help="exponent of the length in the score (default: 1)")  # fmt: skip


def read_search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return these options as :func:`evaluate_run` takes them."""
    return {
        "beams": arguments.beam,
        "subset": arguments.subset,
        "checkpoint": arguments.checkpoint,
        "lenpen": arguments.lenpen,
    }


def add_check_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-empty", type=fraction, default=MAX_EMPTY, metavar="FRACTION",
        help="fraction of hypotheses that may be empty "
        "(default: %(default)s)")  # fmt: skip
    add("--force", action="store_true",
        help="score texts that look wrong: subword marks, tokenized text, "
        "...")  # fmt: skip


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokenised", "--tokenized", action="store_true",
        help="add tokenized and compound-split BLEU, for older papers")  # fmt: skip
    add("--comet", metavar="PROGRAM",
        help="add COMET: a comet-score, or a Python that has it")  # fmt: skip
    add("--comet-model", default=DEFAULT_MODEL, metavar="NAME",
        help=f"default: {DEFAULT_MODEL}")  # fmt: skip
    add("--comet-gpus", type=at_least(0), default=0, metavar="N",
        help="default: 0")  # fmt: skip
    add_check_options(parser)


def read_scoring_options(arguments: argparse.Namespace) -> Scoring:
    comet = None
    if arguments.comet is not None:
        comet = Comet(arguments.comet, arguments.comet_model, arguments.comet_gpus)
        comet.command_line()  # a wrong path is reported before the search
    return Scoring(
        max_empty=arguments.max_empty,
        force=arguments.force,
        tokenized=arguments.tokenised,
        comet=comet,
    )


def format_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings about these scores, one per line."""
    return [_FORCED] if any(row.get("forced") for row in rows) else []


def format_lengths(rows: Sequence[Mapping[str, Any]], headings: Sequence[str]) -> str:
    """Return a table of BLEU by length of the reference, with a column per row."""
    cells = []
    for buckets in zip(*(row["bleu_by_length"] for row in rows)):
        first, last = buckets[0]["from_words"], buckets[0]["to_words"]
        cells.append(
            [
                f"{first} to {last}" if last else f"{first} or more",
                buckets[0]["sentences"],
                *(bucket["bleu"] for bucket in buckets),
            ]
        )
    return format_table(["words", "sentences", *headings], cells)


def format_tokenized(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of the scores of older papers, if the rows have them."""
    cells = [
        [title, *(row[key]["bleu"] for row in rows)]
        for title, key in (
            ("tokenized", "tokenised_bleu"),
            ("compounds split", "compound_split_bleu"),
        )
        if all(key in row for row in rows)
    ]
    if not cells:
        return []
    headings = [f"beam {row['beam']}" if "beam" in row else "BLEU" for row in rows]
    by = rows[0].get("tokenised_by", "the tokens of the files")
    note = "Only for comparison with older papers that used the same tokenizer"
    return [f"{note} ({by}):\n" + format_table(["BLEU of tokens", *headings], cells)]
