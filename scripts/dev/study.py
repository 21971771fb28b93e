"""What the studies share: prepare, train, translate, compare, and keep everything."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.evaluate import evaluate_run
from fairseq_plugins.evaluation.significance import paired_test
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines, write_json

__all__ = [
    "CONFIGS",
    "ROOT",
    "beams_with_earlier",
    "evaluated",
    "parser_of_study",
    "prepare",
    "summary_rows",
    "train",
    "write_result",
]

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
CONFIGS = ROOT / "configs"
LOGGED = (" | train | ", " | valid on ")


def parser_of_study(
    description: str | None, *, out: Path, results: Path, beams: Sequence[int]
) -> argparse.ArgumentParser:
    """Return the options that the studies share, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", type=Path, help="folder with Multi30k, for scripts/prepare.py")
    add("--out", type=Path, default=out)
    add("--results", type=Path, default=results)
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--beams", nargs="+", type=int, default=list(beams))
    add("--updates", type=int, help="of every system; default: the configurations'")
    add("--summary-only", action="store_true", help="write summary.json and no more")
    return parser


def prepare(recipe: str, corpus: Path, source: Path | None) -> None:
    """Prepare a corpus unless it is there.

    Raises:
        UserError: it is not, and no source is given.
    """
    if (corpus / "manifest.json").is_file():
        return
    if source is None:
        raise UserError(f"`--source` must be given: there is no corpus in `{corpus}`.")
    _script("prepare.py", recipe, "--source", source, "--out", corpus)


def train(config: Path, **changes: object) -> None:
    """Train by a configuration with some changes, or do nothing if that is done."""
    _script("train.py", config, *(f"{key}={value}" for key, value in changes.items()))


def evaluated(
    folder: Path,
    *,
    subsets: Sequence[str],
    beams: Sequence[int],
    checkpoint: str,
    control: Path | None = None,
) -> list[dict[str, Any]]:
    """Translate the subsets by a run; return rows of scores.

    Args:
        folder: of the run.
        control: folder of the run to compare with. A row gets ``p_vs_control`` where
            the control has been translated likewise, None elsewhere.
    """
    rows = []
    for subset in subsets:
        for row in evaluate_run(
            folder, beams=beams, subset=subset, checkpoint=checkpoint, lenpen=1.0
        ):
            if control is not None:
                row["p_vs_control"] = _p_value(folder, control, row)
            rows.append(row)
    return rows


def beams_with_earlier(path: Path, beams: Sequence[int]) -> list[int]:
    """Return beam sizes and those of a run's earlier result, which none may lose.

    What is translated already costs nothing anew, and all are compared with the same
    control.
    """
    earlier = read_json(path)["scores"] if path.is_file() else []
    return sorted({*beams, *(score["beam"] for score in earlier)})


def _p_value(folder: Path, control: Path, row: dict[str, Any]) -> Any:
    theirs = control / "eval" / row["hypotheses"]
    if not theirs.is_file():
        return None
    corpus = PreparedCorpus.load(Path(RunFolder(folder).read_config()["data"]))
    references = read_lines(corpus.subsets[row["subset"]].target)
    ours = read_lines(folder / "eval" / row["hypotheses"])
    test = paired_test(read_lines(theirs), ours, references)
    return {"bleu": test.bleu.p_value, "chrf": test.chrf.p_value,
            "signature": test.bleu.signature}  # fmt: skip


def write_result(
    path: Path, folder: Path, identity: dict[str, Any], scores: list[dict[str, Any]]
) -> None:
    """Keep a run's configuration, log and scores as one JSON."""
    log = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    result = {
        **identity,
        "config": _portable(RunFolder(folder).read_config()),
        "finished": read_json(folder / "finished.json"),
        "log": [line for line in log if any(mark in line for mark in LOGGED)],
        "scores": scores,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def summary_rows(results: Path, identity: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each score of the results in a folder.

    Args:
        identity: what a row has of its run besides the scores.
    """
    rows = []
    for path in sorted(results.glob("*-*_*.json")):
        run = read_json(path)
        for score in run["scores"]:
            p_value = score.get("p_vs_control")
            rows.append(
                {
                    **{key: run[key] for key in identity},
                    "test": score["title"],
                    "beam": score["beam"],
                    "bleu": score["bleu"],
                    "chrf": score["chrf"],
                    "p_vs_control": p_value and p_value["bleu"],
                    "updates": run["finished"]["updates"],
                    "seconds": run["finished"]["seconds"],
                }
            )
    return rows


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the files lay on the machine that trained."""
    paths = ("data", "run", "start_from")
    return {k: Path(v).name if k in paths else v for k, v in config.items()}


def _script(name: str, *arguments: object) -> None:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise UserError(f"`{name}` failed; what it said is above.")
