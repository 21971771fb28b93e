"""Score translations in a plain text file against references in another.

    python scripts/score.py HYP REF [--source SRC] [--test-set NAME] [--json [FILE]]

One sentence per line, UTF-8, plain or .gz or .xz; only a line feed ends a line. BLEU,
chrF and TER are sacrebleu's, on plain text: text with subword marks and tokenized text
are refused. docs/evaluation.md explains each number.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation import command_line
from fairseq_plugins.evaluation.comet import comet_score
from fairseq_plugins.evaluation.metrics import score, score_like_older_papers
from fairseq_plugins.evaluation.test_sets import (
    identify_test_set,
    load_test_sets,
    select_lines,
)
from fairseq_plugins.utils.arguments import output_file
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_lines, write_json


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    scores = _score_files(arguments)
    if arguments.json == Path("-"):
        print(json.dumps(scores, indent=2, ensure_ascii=False))
        return 0
    print(_report(scores))
    if arguments.json:
        write_json(arguments.json, scores)
    return 0


def _score_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `metrics.Scores` and further scores as JSON."""
    scoring, test_set = command_line.read_scoring_options(arguments), arguments.test_set
    hypotheses = _read(arguments.hypotheses, test_set)
    references = _read(arguments.references, test_set)
    sources = None if arguments.source is None else _read(arguments.source, test_set)
    if scoring.comet is not None and sources is None:
        raise UserError("COMET needs the source text: pass it as `--source`.")
    if test_set is None:
        _check_same_set(len(hypotheses), len(references))
    scores = score(
        hypotheses,
        references,
        sources=sources,
        max_empty=scoring.max_empty,
        force=scoring.force,
    )
    known = identify_test_set(references)
    result: dict[str, Any] = {
        **asdict(scores),
        "sentences": len(hypotheses),
        "test_set": known.name if known else None,
    }
    if scoring.tokenized:
        result |= score_like_older_papers(hypotheses, references, arguments.language)
    if scoring.comet is not None and sources is not None:
        result["comet"] = comet_score(scoring.comet, sources, hypotheses, references)
        result["comet_model"] = scoring.comet.model
    return result


def _read(path: Path, test_set: str | None) -> list[str]:
    lines = read_lines(path)
    try:
        return lines if test_set is None else select_lines(test_set, lines)
    except UserError as error:
        raise UserError(f"`{path}`: {error}") from None


def _check_same_set(hypotheses: int, references: int) -> None:
    """Explain the numbers of lines if one file has a part of the other's test set."""
    sizes = {known.name: known.sentences for known in load_test_sets()}
    for part in load_test_sets():
        whole = sizes.get(part.lines_of or "")
        if {hypotheses, references} == {part.sentences, whole}:
            raise UserError(
                "hypotheses and references must have the same number of lines, but "
                f"have {hypotheses:,} and {references:,}: it seems that one text is "
                f"`{part.name}` and the other `{part.lines_of}`. With "
                f"`--test-set {part.name}` the part is scored."
            )


def _report(scores: dict[str, Any]) -> str:
    name = scores["test_set"] or "references of no known test set"
    precisions = "/".join(f"{value:.1f}" for value in scores["precisions"])
    lines = [
        f"{name}: {scores['sentences']:,} sentences",
        f"BLEU {scores['bleu']:.2f}  {precisions} "
        f"(BP = {scores['brevity_penalty']:.3f} ratio = {scores['length_ratio']:.3f} "
        f"hyp_len = {scores['hypothesis_tokens']} "
        f"ref_len = {scores['reference_tokens']})  {scores['bleu_signature']}",
        f"chrF {scores['chrf']:.2f}  {scores['chrf_signature']}",
        f"TER  {scores['ter']:.2f}  {scores['ter_signature']}",
    ]
    if "comet" in scores:
        lines.append(f"COMET {scores['comet']:.4f}  {scores['comet_model']}")
    lines.append(
        f"repetition {scores['repetition']:.1%} (references "
        f"{scores['reference_repetition']:.1%}), empty {scores['empty']:,}"
    )
    parts = [
        "\n".join(lines),
        command_line.format_lengths([scores], ["BLEU"]),
        *command_line.format_tokenized([scores]),
        *command_line.format_notes([scores]),
    ]
    return "\n\n".join(parts)


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hypotheses", type=Path, metavar="HYP")
    add("references", type=Path, metavar="REF")
    add("--source", type=Path, metavar="SRC",
        help="source text: for COMET and for checks")  # fmt: skip
    add("--test-set", metavar="NAME",
        help="the files must be this set, such as newstest2014; for a part such as "
        "newstest2014/2737 they may contain the part or the whole set",
        )  # fmt: skip
    add("--language", metavar="XX",
        help="target language, with --tokenised; without it the files must already be "
        "tokenized")  # fmt: skip
    command_line.add_scoring_options(parser)
    add("--json", nargs="?", const=Path("-"), type=output_file, metavar="FILE",
        help="write JSON to FILE, or print it instead of the table")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
