"""Train, translate and compare the systems of a study, and keep every score.

    python scripts/dev/study.py beam_training --source FOLDER [--only de-en/lstm]
    python scripts/dev/study.py topk_attention --source FOLDER [--systems plain soft8]

A cell of a study is a pair and a model. Its start is trained by cross entropy; every
system continues from the start's best checkpoint for equally many updates, with each
seed. All are translated with each beam size and compared with the control: of the same
seed, and with the seeds pooled. Scores go to results/STUDY.csv, differences with their
p-values to results/comparisons.csv; `results_tables.py` puts them into the documents.
Finished parts are skipped, and several of these commands may share the work (--only,
--systems).
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from results_tables import RESULTS, ROOT, TESTS, VALID, merge_rows

from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json

SCORE_KEY = ("corpus", "pair", "model", "start", "system", "seed", "test", "beam")
COMPARISON_KEY = ("corpus", "pair", "model", "start", "system", "control", "seeds",
                  "test", "beam")  # fmt: skip

logger = logging.getLogger("study")


@dataclass(frozen=True)
class Cell:
    """A pair and a model. Configurations are files of configs/ with their changes.

    Attributes:
        start: name of the system from which all others continue.
        epochs: how long the start is trained.
        control: name of the system with which the others are compared.
        configs: configuration of each system.
    """

    pair: str
    model: str
    start: str
    epochs: int
    control: str
    configs: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.pair}/{self.model}"

    def run_name(self, system: str, seed: int) -> str:
        name = f"{self.pair}_{self.model}_{system}"
        return name if system == self.start else f"{name}_{seed}"


def _beam_training(pair: str, model: str) -> Cell:
    ends = {"baseline": "", "control": "_control", "soft": "_soft_beam",
            "mrt": "_mrt", "bso": "_bso", "paper": "_paper"}  # fmt: skip
    configs = {name: f"multi30k_{model}{end}.yaml" for name, end in ends.items()}
    return Cell(pair, model, "baseline", 30, "control", configs)


_TOPK = "multi30k_transformer_topk"
STUDIES = {
    "beam_training": [
        _beam_training(pair, model)
        for pair in ("de-en", "en-fr")
        for model in ("lstm", "transformer")
    ],
    "topk_attention": [
        Cell("en-de", "transformer", "start", 6, "plain", {
            "start": f"{_TOPK}_start.yaml",
            "plain": f"{_TOPK}_plain.yaml",
            "soft4": f"{_TOPK}.yaml topk_k=4",
            "soft8": f"{_TOPK}.yaml topk_k=8",
            "soft4sharp": f"{_TOPK}.yaml topk_k=4 topk_epsilon=0.2",
            "soft2": f"{_TOPK}.yaml topk_k=2",
            "soft4all": f"{_TOPK}.yaml topk_k=4 topk_attentions=cross,decoder,encoder",
            "hard4": f"{_TOPK}_hard.yaml topk_k=4",
            "hard8": f"{_TOPK}_hard.yaml topk_k=8",
            "entmax15": f"{_TOPK}_entmax15.yaml",
        }),
    ],
}  # fmt: skip


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    options = _parse()
    for cell in STUDIES[options.study]:
        if options.only and cell.name not in options.only:
            continue
        _prepare(cell, options)
        for system, seed in list_runs(cell, options.systems, options.seeds):
            _train(cell, system, seed, options)
            _score(cell, system, seed, options)
            if system not in (cell.start, cell.control):
                _compare(cell, system, [seed], options)
        for system in options.systems or cell.configs:
            if system not in (cell.start, cell.control) and len(options.seeds) > 1:
                _compare(cell, system, options.seeds, options)


def list_runs(
    cell: Cell, systems: list[str] | None, seeds: list[int]
) -> Iterator[tuple[str, int]]:
    """Yield the start, then one seed of all systems, then the next.

    The control comes first in any case: the others are compared with it.
    """
    yield cell.start, 1
    names = [name for name in cell.configs if name != cell.start]
    for seed in seeds:
        for system in names:
            if systems is None or system in systems or system == cell.control:
                yield system, seed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [cell.name for study in STUDIES.values() for cell in study]
    systems = {s for study in STUDIES.values() for cell in study for s in cell.configs}
    add = parser.add_argument
    add("study", choices=list(STUDIES))
    add("--source", type=Path, help="folder with Multi30k, for scripts/prepare.py")
    add("--only", nargs="+", choices=cells, metavar="PAIR/MODEL", help="default: all")
    add(
        "--systems",
        nargs="+",
        choices=sorted(systems),
        metavar="NAME",
        help=f"any of {', '.join(sorted(systems))} (default: all of the study)",
    )
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    add("--beams", nargs="+", type=int, default=[1, 5], metavar="K")
    add(
        "--updates",
        type=int,
        metavar="N",
        help="of every system (default: that of its configuration)",
    )
    add(
        "--start-epochs",
        type=int,
        metavar="N",
        help="of the start (default: that of the study)",
    )
    add("--out", type=Path, default=Path("runs/study"), metavar="FOLDER")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def _prepare(cell: Cell, options: argparse.Namespace) -> None:
    corpus = _corpus(cell, options)
    if (corpus / "manifest.json").is_file():
        return
    if options.source is None:
        raise UserError(f"`--source` must be given: there is no corpus in `{corpus}`.")
    recipe = f"multi30k-{cell.pair}"
    _run_script("prepare.py", recipe, "--source", options.source, "--out", corpus)


def _train(cell: Cell, system: str, seed: int, options: argparse.Namespace) -> None:
    config, *changes = cell.configs[system].split()
    changes += [f"data={_corpus(cell, options)}", f"seed={seed}"]
    changes += [f"run={_folder(cell, system, seed, options)}"]
    if system == cell.start:
        changes += [f"max_epoch={options.start_epochs or cell.epochs}"]
    else:
        start = _folder(cell, cell.start, 1, options)
        changes += [f"start_from={start / 'checkpoints' / 'checkpoint_best.pt'}"]
        if options.updates:
            names = ("max_update", "total_num_update")
            changes += [f"{name}={options.updates}" for name in names]
    logger.info("== %s", cell.run_name(system, seed))
    _run_script("train.py", ROOT / "configs" / config, *changes)


def _score(cell: Cell, system: str, seed: int, options: argparse.Namespace) -> None:
    """Translate all texts; the start by its best checkpoint, others by their last.

    So all systems are compared after the same number of updates, and none is chosen by
    its score.
    """
    folder = _folder(cell, system, seed, options)
    checkpoint = "best" if system == cell.start else "last"
    scores = _run_for_json(
        "evaluate.py", folder, "--subset", VALID, *TESTS,
        "--beam", *options.beams, "--checkpoint", checkpoint,
    )  # fmt: skip
    finished = read_json(folder / "finished.json")
    rows = [
        {
            **_identify(cell, options),
            "system": system,
            "seed": seed,
            "test": score["title"],
            **{name: score[name] for name in _METRICS},
            "updates": finished["updates"],
            "seconds": finished["seconds"],
            "config": cell.configs[system],
        }
        for score in scores
    ]
    merge_rows(options.results / f"{options.study}.csv", rows, SCORE_KEY)


_METRICS = ("beam", "bleu", "chrf", "ter", "length_ratio")


def _compare(
    cell: Cell, system: str, seeds: list[int], options: argparse.Namespace
) -> None:
    control, ours = (
        ",".join(str(_folder(cell, name, seed, options)) for seed in seeds)
        for name in (cell.control, system)
    )
    rows = []
    for test in (VALID, *TESTS):
        scores = _run_for_json(
            "compare.py", control, ours, "--subset", test, "--checkpoint", "last",
            "--beam", *options.beams, "--sentences", 0,
        )  # fmt: skip
        controls = {s["beam"]: s for s in scores if "bleu_p_value" not in s}
        for score in scores:
            if "bleu_p_value" not in score:
                continue
            row = {
                **_identify(cell, options),
                "system": system,
                "control": cell.control,
                "seeds": " ".join(map(str, seeds)),
                "test": score["title"],
                "beam": score["beam"],
            }
            for metric in ("bleu", "chrf"):
                low, high = score[f"{metric}_interval"]
                row[f"{metric}_difference"] = score[f"{metric}_difference"]
                row |= {f"{metric}_low": low, f"{metric}_high": high}
                row[f"{metric}_p"] = score[f"{metric}_p_value"]
            row["length_ratio"] = score["length_ratio"]
            row["control_length_ratio"] = controls[score["beam"]]["length_ratio"]
            rows.append(row)
    merge_rows(options.results / "comparisons.csv", rows, COMPARISON_KEY)


def _identify(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    epochs = options.start_epochs or cell.epochs
    return {"corpus": "multi30k", "pair": cell.pair, "model": cell.model,
            "start": f"{epochs} epochs"}  # fmt: skip


def _corpus(cell: Cell, options: argparse.Namespace) -> Path:
    return Path(options.out) / "data" / f"multi30k-{cell.pair}"


def _folder(cell: Cell, system: str, seed: int, options: argparse.Namespace) -> Path:
    return Path(options.out) / cell.run_name(system, seed)


def _run_for_json(name: str, *arguments: object) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        _run_script(name, *arguments, "--json", path)
        rows: list[dict[str, Any]] = read_json(path)
    return rows


def _run_script(name: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise UserError(f"`{name}` failed: see its message above.")


if __name__ == "__main__":
    run_command_line(main)
