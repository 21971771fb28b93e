"""Does training for the beam pay? Train, translate and compare, with everything kept.

    python scripts/dev/study_beam_training.py --source FOLDER [--only de-en/lstm ...]

For each pair and model: a cross-entropy baseline, then equally many more updates by
each system and seed, translated with each beam size and compared with the control of
the same seed. Runs lie under --out, their results as JSON under --results, where
summary.json has all scores in rows; docs/beam_training.md gets their table. What is
done already is not done again, and what was interrupted goes on, so that two of these
may share the work (--only, --systems).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

from study import (
    CONFIGS,
    ROOT,
    beams_with_earlier,
    evaluated,
    parser_of_study,
    prepare,
    summary_rows,
    train,
    write_result,
)
from study_table import study_table

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_between, write_json

RESULTS = ROOT / "results" / "beam_training"
PAGE = ROOT / "docs" / "beam_training.md"
PAIRS = ("de-en", "en-fr")
MODELS = ("lstm", "transformer")
SYSTEMS = {  # name in the summary: end of the configuration's name
    "control": "control",
    "soft": "soft_beam",
    "mrt": "mrt",
    "bso": "bso",
    "soft_paper": "paper",
}
TESTS = ("test_2016_flickr", "test_2017_flickr")

logger = logging.getLogger("study")


class Run(NamedTuple):
    pair: str
    model: str
    system: str
    seed: int

    @property
    def name(self) -> str:
        if self.system == "baseline":
            return f"{self.pair}_{self.model}_baseline"
        return f"{self.pair}_{self.model}_{self.system}_{self.seed}"

    @property
    def config(self) -> Path:
        end = "" if self.system == "baseline" else f"_{SYSTEMS[self.system]}"
        return CONFIGS / f"multi30k_{self.model}{end}.yaml"


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    options = _parse()
    for run in _runs(options):
        if not options.summary_only:
            prepare(f"multi30k-{run.pair}", _corpus(run, options), options.source)
            _train(run, options)
            _evaluate(run, options)
        _write_summary(options.results)


def _parse() -> argparse.Namespace:
    parser = parser_of_study(
        __doc__, out=Path("runs/study"), results=RESULTS, beams=(1, 2, 5, 10, 20, 50)
    )
    cells = [f"{pair}/{model}" for pair in PAIRS for model in MODELS]
    add = parser.add_argument
    add("--only", nargs="+", choices=cells, default=cells, metavar="PAIR/MODEL")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    return parser.parse_args()


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    """Yield what everything starts from, then one seed of all systems, and so on.

    The control comes first, in whatever order they are asked for: without it there is
    nothing to compare the others with.
    """
    for cell in options.only:
        pair, model = cell.split("/")
        yield Run(pair, model, "baseline", 1)
        for seed in options.seeds:
            for system in sorted(options.systems, key=list(SYSTEMS).index):
                yield Run(pair, model, system, seed)


def _train(run: Run, options: argparse.Namespace) -> None:
    changes: dict[str, object] = {
        "data": _corpus(run, options),
        "run": options.out / run.name,
        "seed": run.seed,
    }
    if run.system != "baseline":
        baseline = options.out / run._replace(system="baseline").name
        changes["start_from"] = baseline / "checkpoints" / "checkpoint_best.pt"
        if options.updates is not None:
            changes["max_update"] = changes["total_num_update"] = options.updates
    logger.info("== %s", run.name)
    train(run.config, **changes)


def _evaluate(run: Run, options: argparse.Namespace) -> None:
    """Translate the tests and write the run's JSON; the baseline's best, others' last.

    Systems are compared after the same number of updates, so that none is chosen by
    its score.
    """
    folder, result = options.out / run.name, options.results / f"{run.name}.json"
    is_compared = run.system not in ("baseline", "control")
    scores = evaluated(
        folder,
        subsets=TESTS,
        beams=beams_with_earlier(result, options.beams),
        checkpoint="best" if run.system == "baseline" else "last",
        control=(
            options.out / run._replace(system="control").name if is_compared else None
        ),
    )
    write_result(result, folder, run._asdict(), scores)


def _write_summary(results: Path) -> None:
    rows = summary_rows(results, ("pair", "model", "system", "seed"))
    if rows:
        write_json(results / "summary.json", rows)
    if rows and results == RESULTS:  # elsewhere they are somebody's own
        write_between(PAGE, "study", study_table(rows))


def _corpus(run: Run, options: argparse.Namespace) -> Path:
    return Path(options.out) / "data" / f"multi30k-{run.pair}"


if __name__ == "__main__":
    run_command_line(main)
