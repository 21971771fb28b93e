"""Does training for the beam pay? Train, translate and compare, with everything kept.

    python scripts/study_beam_training.py --source FOLDER [--only de-en/lstm ...]

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
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import _environment

_environment.ensure()

from fairseq_plugins.evaluation.run_scores import evaluate_run  # noqa: E402
from fairseq_plugins.evaluation.significance import paired_test  # noqa: E402
from fairseq_plugins.evaluation.study_table import study_table  # noqa: E402
from fairseq_plugins.pipeline.errors import (  # noqa: E402
    UserError,
    run_command_line,
)
from fairseq_plugins.pipeline.files import (  # noqa: E402
    read_json,
    read_lines,
    write_between,
    write_json,
)
from fairseq_plugins.pipeline.manifest import PreparedCorpus  # noqa: E402
from fairseq_plugins.pipeline.run_folder import RunFolder  # noqa: E402

SCRIPTS = Path(__file__).resolve().parent
CONFIGS = SCRIPTS.parent / "configs"
RESULTS = SCRIPTS.parent / "results" / "beam_training"
PAGE = SCRIPTS.parent / "docs" / "beam_training.md"
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
LOGGED = (" | train | ", " | valid on ")

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
            _prepare(run, options)
            _train(run, options)
            _evaluate(run, options)
        _write_summary(options.results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [f"{pair}/{model}" for pair in PAIRS for model in MODELS]
    add = parser.add_argument
    add("--source", type=Path, help="folder with Multi30k, for scripts/prepare.py")
    add("--out", type=Path, default=Path("runs/study"))
    add("--results", type=Path, default=RESULTS)
    add("--only", nargs="+", choices=cells, default=cells, metavar="PAIR/MODEL")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--beams", nargs="+", type=int, default=[1, 2, 5, 10, 20, 50])
    add("--updates", type=int, help="of every system; default: the configurations'")
    add("--summary-only", action="store_true", help="write summary.json and no more")
    return parser.parse_args()


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    """Yield what everything starts from, then one seed of all systems, and so on."""
    for cell in options.only:
        pair, model = cell.split("/")
        yield Run(pair, model, "baseline", 1)
        for seed in options.seeds:
            for system in options.systems:
                yield Run(pair, model, system, seed)


def _prepare(run: Run, options: argparse.Namespace) -> None:
    corpus = _corpus(run, options)
    if (corpus / "manifest.json").is_file():
        return
    if options.source is None:
        raise UserError(f"`--source` must be given: there is no corpus in `{corpus}`.")
    recipe = f"multi30k-{run.pair}"
    _script("prepare.py", recipe, "--source", options.source, "--out", corpus)


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
            changes["max_update"] = options.updates
    logger.info("== %s", run.name)
    _script("train.py", run.config, *(f"{k}={v}" for k, v in changes.items()))


def _evaluate(run: Run, options: argparse.Namespace) -> None:
    """Translate the tests and write the run's JSON; the baseline's best, others' last.

    Systems are compared after the same number of updates, so that none is chosen by
    its score.
    """
    folder = options.out / run.name
    which = "best" if run.system == "baseline" else "last"
    rows: list[dict[str, Any]] = []
    for test in TESTS:
        rows += evaluate_run(
            folder, beams=options.beams, subset=test, checkpoint=which, lenpen=1.0
        )
    for row in rows:
        row["hypotheses_text"] = read_lines(folder / "eval" / row["hypotheses"])
        if run.system not in ("baseline", "control"):
            row["p_vs_control"] = _p_value(run, row, options)
    log = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    result = {
        **run._asdict(),
        "config": _portable(RunFolder(folder).read_config()),
        "finished": read_json(folder / "finished.json"),
        "log": [line for line in log if any(mark in line for mark in LOGGED)],
        "scores": [_without_text(row) for row in rows],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{run.name}.json", result)


def _p_value(run: Run, row: dict[str, Any], options: argparse.Namespace) -> Any:
    """Test against the control of the same seed, if that has been translated."""
    folder = options.out / run._replace(system="control").name / "eval"
    path = folder / row["hypotheses"]
    if not path.is_file():
        return None
    corpus = PreparedCorpus.load(_corpus(run, options))
    references = read_lines(corpus.subsets[row["subset"]].target)
    test = paired_test(read_lines(path), row["hypotheses_text"], references)
    return {"bleu": test.bleu.p_value, "chrf": test.chrf.p_value,
            "signature": test.bleu.signature}  # fmt: skip


def _without_text(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "hypotheses_text"}


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the files lay on the machine that trained."""
    paths = ("data", "run", "start_from")
    return {k: Path(v).name if k in paths else v for k, v in config.items()}


def _write_summary(results: Path) -> None:
    rows = []
    for path in sorted(results.glob("*-*_*.json")):
        run = read_json(path)
        for score in run["scores"]:
            p_value = score.get("p_vs_control")
            rows.append(
                {
                    **{key: run[key] for key in ("pair", "model", "system", "seed")},
                    "test": score["title"],
                    "beam": score["beam"],
                    "bleu": score["bleu"],
                    "chrf": score["chrf"],
                    "p_vs_control": p_value and p_value["bleu"],
                    "updates": run["finished"]["updates"],
                    "seconds": run["finished"]["seconds"],
                }
            )
    if rows:
        write_json(results / "summary.json", rows)
    if rows and results == RESULTS:  # elsewhere they are somebody's own
        write_between(PAGE, "study", study_table(rows))


def _corpus(run: Run, options: argparse.Namespace) -> Path:
    return Path(options.out) / "data" / f"multi30k-{run.pair}"


def _script(name: str, *arguments: object) -> None:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise UserError(f"`{name}` failed; what it said is above.")


if __name__ == "__main__":
    run_command_line(main)
