"""Write one page about some runs: scores, curves, translations, and their beams.

    python scripts/report.py CONTROL SYSTEM [SYSTEM ...] -o report.html

A system is a run folder that scripts/evaluate.py or scripts/compare.py has evaluated,
or several with commas between them, one for each seed: a_1,a_2,a_3. Their scores are
also pooled as by scripts/compare.py. The first system is what the others are compared
with. The page is one file that needs no network. p is as in scripts/compare.py and is
kept in RUN/eval/report.json.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path

from fairseq_plugins.evaluation.report.build import ReportOptions, write_report
from fairseq_plugins.utils.arguments import at_least, finite, trainings
from fairseq_plugins.utils.errors import run_command_line


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    out = write_report(
        arguments.systems,
        arguments.out,
        command=["python", "scripts/report.py", *sys.argv[1:]],
        options=ReportOptions(
            subset=arguments.subset,
            checkpoint=arguments.checkpoint,
            lenpen=arguments.lenpen,
            samples=arguments.samples,
            explore=arguments.explore,
            explore_beam=arguments.explore_beam,
            seed=arguments.seed,
            title=arguments.title,
        ),
    )
    print(out)
    return 0


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("systems", type=trainings, nargs="+", metavar="SYSTEM")
    add("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE",
        help="the page (default: report.html)")  # fmt: skip
    add("--subset", help="test set of translations and explorer (default: the first)")
    add("--checkpoint", metavar="WHICH",
        help="scores of best, last or a file (default: that all have)")  # fmt: skip
    add("--lenpen", type=finite, default=1.0, metavar="X",
        help="scores with this exponent of the length (default: 1)")  # fmt: skip
    add("--samples", type=at_least(1), default=200, metavar="N",
        help="sentences side by side (default: 200)")  # fmt: skip
    add("--explore", type=at_least(0), default=20, metavar="N",
        help="sentences in the beam explorer, 0 for none (default: 20)")  # fmt: skip
    add("--explore-beam", type=at_least(2), metavar="K",
        help="beam size of the explorer (default: that of the comparison)")  # fmt: skip
    add("--seed", type=int, default=1,
        help="of the sentences that are drawn (default: 1)")  # fmt: skip
    add("--title", help="of the page")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
