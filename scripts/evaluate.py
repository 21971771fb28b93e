"""Translate a test set with a trained model and score it against the raw reference.

    python scripts/evaluate.py RUN [--beam 1 5] [--subset test] [--checkpoint best]

RUN is a folder written by scripts/train.py. Translations, fairseq's output and
scores.json go to RUN/eval. BLEU, chrF and TER are sacrebleu's, on detokenized text.
Evaluations that exist for the same checkpoint and data are not repeated, and an
interrupted search resumes. docs/evaluation.md explains each number.
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
from fairseq_plugins.utils.arguments import at_least, output_file
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json
from fairseq_plugins.utils.tables import format_table

_SIGNATURES = {
    "BLEU": "bleu_signature",
    "chrF": "chrf_signature",
    "TER": "ter_signature",
    "COMET": "comet_model",
}


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    rows = evaluate_run(
        arguments.run,
        **command_line.read_search_options(arguments),
        max_tokens=arguments.max_tokens,
        scoring=command_line.read_scoring_options(arguments),
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
    """Return the scores of one test set as text."""
    row = rows[0]
    checkpoint = row["checkpoint"]
    if "averaged" in row:
        checkpoint += f", the mean of {', '.join(row['averaged'])}"
    signatures = dict.fromkeys(
        f"{name}: {row[key]}"
        for name, key in _SIGNATURES.items()
        for row in rows
        if key in row
    )
    parts = [
        f"{row['title']}: {row['sentences']:,} sentences; {checkpoint}; "
        f"lenpen {row['lenpen']:g}",
        _format_scores(rows),
        _format_search(rows),
        command_line.format_lengths(
            rows, [f"BLEU, beam {row['beam']}" for row in rows]
        ),
        *command_line.format_tokenized(rows),
        "\n".join(signatures),
        *command_line.format_notes(rows),
    ]
    return "\n\n".join(parts)


def _format_scores(rows: list[Row]) -> str:
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


def _format_search(rows: list[Row]) -> str:
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


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    command_line.add_search_options(parser, several_subsets=True)
    add("--max-tokens", type=at_least(1), default=4000, metavar="N",
        help="tokens in a batch (default: 4000)")  # fmt: skip
    command_line.add_scoring_options(parser)
    add("--json", type=output_file, metavar="FILE", help="also write the rows here")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
