"""Score translations in a plain text file against references in another.

    python scripts/score.py HYP REF [--source SRC] [--test-set NAME] [--json [FILE]]

One sentence a line, UTF-8, plain or .gz or .xz; only a line feed ends a line. BLEU,
chrF and TER are sacrebleu's, on text as people write it: text with subword marks and
tokenised text are refused. docs/evaluation.md says what each number is.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation import command_line
from fairseq_plugins.evaluation.score_files import score_files
from fairseq_plugins.evaluation.table import format_table
from fairseq_plugins.utils.arguments import output_file
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_json


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    scores = score_files(
        arguments.hypotheses,
        arguments.references,
        source=arguments.source,
        test_set=arguments.test_set,
        language=arguments.language,
        scoring=command_line.scoring(arguments),
    )
    if arguments.json == Path("-"):
        print(json.dumps(scores, indent=2, ensure_ascii=False))
        return 0
    print(_report(scores))
    if arguments.json:
        write_json(arguments.json, scores)
    return 0


def _report(scores: dict[str, Any]) -> str:
    name = scores["test_set"] or "references that are no known test set"
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
    lines += [
        f"repetition {scores['repetition']:.1%} (references "
        f"{scores['reference_repetition']:.1%}), empty {scores['empty']:,}",
        "",
        format_table(
            ["words", "sentences", "BLEU"],
            [
                [command_line.span(bucket), bucket["sentences"], bucket["bleu"]]
                for bucket in scores["bleu_by_length"]
            ],
        ),
    ]
    older = command_line.older_papers([scores])
    lines += ["", older] if older else []
    for note in command_line.notes_on([scores]):
        lines += ["", note]
    return "\n".join(lines)


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hypotheses", type=Path, metavar="HYP")
    add("references", type=Path, metavar="REF")
    add("--source", type=Path, metavar="SRC",
        help="what was translated: for COMET and for checks")  # fmt: skip
    add("--test-set", metavar="NAME",
        help="what the files must be, such as newstest2014; of a part such as "
        "newstest2014/2737 its lines are scored, out of the part or the whole",
        )  # fmt: skip
    add("--language", metavar="XX",
        help="of the text, for --tokenised; the files hold tokens if it is not "
        "given")  # fmt: skip
    command_line.add_options(parser)
    add("--json", nargs="?", const=Path("-"), type=output_file, metavar="FILE",
        help="write JSON to FILE, or print it instead of the table")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
