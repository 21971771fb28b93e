"""Translate a test set by a trained model and score it against the raw reference.

    python scripts/evaluate.py RUN [--beam 1 5] [--subset test] [--checkpoint best]

RUN is a folder written by scripts/train.py. Translations, fairseq's output and
scores.json go to RUN/eval. BLEU, chrF and TER are sacrebleu's, on detokenised text.
What was evaluated before, by the same checkpoint and on the same data, is not done
again, and an interrupted search goes on from where it was. docs/evaluation.md says what
each number is.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path

from fairseq_plugins.evaluation import command_line
from fairseq_plugins.evaluation.evaluate import Row, evaluate_run
from fairseq_plugins.evaluation.table import format_table
from fairseq_plugins.utils.arguments import at_least, output_file
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    rows = evaluate_run(
        arguments.run,
        **command_line.evaluation(arguments),
        max_tokens=arguments.max_tokens,
        scoring=command_line.scoring(arguments),
    )
    titles = dict.fromkeys(row["title"] for row in rows)
    reports = [
        _report([row for row in rows if row["title"] == title]) for title in titles
    ]
    print("\n\n\n".join(reports))
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def _report(rows: list[Row]) -> str:
    """Return what is to be said of one test set."""
    row = rows[0]
    checkpoint = row["checkpoint"]
    if "averaged" in row:
        checkpoint += f", the mean of {', '.join(row['averaged'])}"
    parts = [
        f"{row['title']}: {row['sentences']:,} sentences; {checkpoint}; "
        f"lenpen {row['lenpen']:g}",
        _scores(rows),
        _search(rows),
        _lengths(rows),
    ]
    older = command_line.older_papers(rows)
    parts += [older] if older else []
    signatures = dict.fromkeys(
        f"{name}: {row[key]}"
        for name, key in (
            ("BLEU", "bleu_signature"),
            ("chrF", "chrf_signature"),
            ("TER", "ter_signature"),
            ("COMET", "comet_model"),
        )
        for row in rows
        if key in row
    )
    notes = command_line.notes_on(rows)
    return "\n\n".join([*parts, "\n".join(signatures), *notes])


def _scores(rows: list[Row]) -> str:
    headings = ["beam", "BLEU", "chrF", "TER", "1/2/3/4-gram precision", "BP", "length"]
    has_comet = any("comet" in row for row in rows)
    headings += ["COMET"] if has_comet else []
    cells = [
        [
            str(row["beam"]),
            row["bleu"],
            row["chrf"],
            row["ter"],
            "/".join(f"{value:.1f}" for value in row["precisions"]),
            f"{row['brevity_penalty']:.3f}",
            f"{row['length_ratio']:.3f}",
            *([f"{row['comet']:.4f}" if "comet" in row else None] if has_comet else []),
        ]
        for row in rows
    ]
    return format_table(headings, cells)


def _search(rows: list[Row]) -> str:
    headings = ["beam", "best in beam", "search errors", "repetition", "empty"]
    headings += ["seconds", "tokens/s"]
    cells = [
        [
            str(row["beam"]),
            row.get("oracle_bleu"),
            f"{row['search_errors']:.1%}" if "search_errors" in row else None,
            f"{row['repetition']:.1%}",
            row["empty"],
            row["seconds"],
            row["tokens_per_second"],
        ]
        for row in rows
    ]
    natural = f"repetition in the references: {rows[0]['reference_repetition']:.1%}"
    return f"{format_table(headings, cells)}\n{natural}"


def _lengths(rows: list[Row]) -> str:
    """Return BLEU by length of the reference, a column for each beam."""
    buckets = [row["bleu_by_length"] for row in rows]
    cells = [
        [
            command_line.span(of_length[0]),
            of_length[0]["sentences"],
            *(bucket["bleu"] for bucket in of_length),
        ]
        for of_length in zip(*buckets)
    ]
    beams = [f"BLEU, beam {row['beam']}" for row in rows]
    return format_table(["words", "sentences", *beams], cells)


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    command_line.add_evaluation(parser, several_subsets=True)
    add("--max-tokens", type=at_least(1), default=4000, metavar="N",
        help="tokens in a batch (default: 4000)")  # fmt: skip
    command_line.add_options(parser)
    add("--json", type=output_file, metavar="FILE", help="write the rows here, too")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
