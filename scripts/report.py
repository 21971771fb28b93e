"""Write an HTML report about evaluated runs: scores, curves, translations and beams.

    python scripts/report.py CONTROL SYSTEM [SYSTEM ...] -o report.html

A system is a run folder that scripts/evaluate.py or scripts/compare.py has evaluated,
or the runs of several seeds with commas between them: a_1,a_2,a_3. The first system is
the control. With several seeds their scores are also pooled as in scripts/compare.py.
The report is one file and needs no network. Results of tests are kept in
RUN/eval/report.json.
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import logging
import sys
from pathlib import Path

from fairseq_plugins.evaluation.report.build import ReportOptions, write_report
from fairseq_plugins.utils.arguments import at_least, finite, run_folders
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
    add("systems", type=run_folders, nargs="+", metavar="SYSTEM")
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the report (default: report.html)",
    )
    add(
        "--subset",
        help="test set of the translations and the explorer (default: the first)",
    )
    add(
        "--checkpoint",
        metavar="WHICH",
        help="best, last or a file name (default: the one that all runs share)",
    )
    add(
        "--lenpen",
        type=finite,
        default=1.0,
        metavar="X",
        help="only scores with this length penalty (default: 1)",
    )
    add(
        "--samples",
        type=at_least(1),
        default=200,
        metavar="N",
        help="number of sentences side by side (default: 200)",
    )
    add(
        "--explore",
        type=at_least(0),
        default=20,
        metavar="N",
        help="number of sentences in the beam explorer (default: 20; 0: none)",
    )
    add(
        "--explore-beam",
        type=at_least(2),
        metavar="K",
        help="beam size of the explorer (default: that of the comparison)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        help="seed of the random choice of sentences (default: 1)",
    )
    add("--title", help="title of the report")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
