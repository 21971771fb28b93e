"""Export a trained Transformer, so that it translates without this toolkit.

    python scripts/export.py RUN --to ctranslate2 DIR [--quantization int8]
    python scripts/export.py RUN --to argos NAME.argosmodel [--quantization int8]

RUN is a folder of scripts/train.py. DIR becomes a CTranslate2 model with its
SentencePiece model and a README; NAME.argosmodel becomes a package of Argos Translate.
Before anything is written, fairseq and the exported model translate 200 validation
sentences on the CPU. In float32 the translations must be the same.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path

from fairseq_plugins.inference.export import FORMATS, QUANTIZATIONS, export_run
from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.tables import format_table


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    measurements = export_run(
        arguments.run,
        arguments.output,
        to=arguments.to,
        checkpoint=arguments.checkpoint,
        quantization=arguments.quantization,
    )
    headings = ("system", "model MB", "same as fairseq", "BLEU", "tokens/s")
    rows = [
        (
            each.system,
            each.megabytes,
            f"{each.same} of {each.sentences}",
            each.bleu,
            round(each.tokens_per_second),
        )
        for each in measurements
    ]
    print(format_table(headings, rows))
    print(f"Complete: `{arguments.output}`.")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a folder of scripts/train.py")
    add("output", type=Path, metavar="OUTPUT", help="must not exist yet")
    add("--to", choices=FORMATS, required=True, help="the format of the output")
    add("--quantization", choices=QUANTIZATIONS, default="float32",
        help="type of the weights; default: %(default)s")  # fmt: skip
    add("--checkpoint", default="best", help="best, last, average or a path")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
