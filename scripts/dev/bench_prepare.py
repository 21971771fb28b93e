"""Time and memory of the preparation, against spm_encode and fairseq-preprocess.

    python scripts/dev/bench_prepare.py --source DIR --json \\
        results/prepare/two_cores.json

Prepares the recipe ``europarl-part-en-fr`` stage by stage. Then, on its training text
and in turn: SentencePiece's own encoder and fairseq-preprocess, and ours, whose files
must be the same byte for byte. Last, cleaning and encoding of parts and multiples of
that text: how time and memory grow, and what that makes of 36 million pairs.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from prepare_jobs import LANGUAGES
from tree_usage import Usage, run_measured

from fairseq_plugins.corpus.prepare import STAGES
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json, write_json

_RECIPE = "europarl-part-en-fr"
_SCRIPTS = Path(__file__).resolve().parent
# Parts of the corpus and a multiple of it: enough for a line through time and memory.
_SIZES = (0.25, 0.5, 1.0, 2.0)
_PROJECTED = {"pairs": 36_000_000, "cores": 16}


def main() -> None:
    arguments = _parse_arguments()
    workers = arguments.workers
    result: dict[str, Any] = {
        "command": "python scripts/dev/bench_prepare.py " + " ".join(sys.argv[1:]),
        "recipe": _RECIPE,
        "workers": workers,
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        corpus = Path(scratch) / "corpus"
        result["stages"] = _stages(arguments.source, corpus, workers)
        manifest = read_json(corpus / "manifest.json")
        result["counts"] = {
            name: stage["counts"] for name, stage in manifest["stages"].items()
        }
        _save(result, arguments.json)
        result["against"] = _against(corpus, Path(scratch) / "against", workers)
        _save(result, arguments.json)
        result["growth"] = _growth(corpus, Path(scratch) / "growth", workers)
        result["projection"] = _projection(result)
        result["load_after"] = os.getloadavg()
        _save(result, arguments.json)
    json.dump(result, sys.stdout, indent=2)


def _save(result: dict[str, Any], path: Path) -> None:
    write_json(path, result)


def _stages(source: Path, corpus: Path, workers: int) -> dict[str, Any]:
    """Prepare the recipe, each stage by a process of its own."""
    report = {}
    for stage in STAGES:
        usage = run_measured([
            sys.executable, str(_SCRIPTS / "prepare.py"), _RECIPE, "--stage", stage,
            "--source", str(source), "--out", str(corpus), "--workers", str(workers),
        ])  # fmt: skip
        report[stage] = usage._asdict()
    return report


def _job(name: str, folder: Path, workers: int) -> Usage:
    return run_measured([
        sys.executable, str(_SCRIPTS / "_prepare_jobs.py"), name, str(folder),
        str(workers),
    ])  # fmt: skip


def _set_up(corpus: Path, folder: Path, size: float = 1.0) -> int:
    """Put ``size`` times the training text into a folder; return the pairs."""
    folder.mkdir(parents=True)
    shutil.copy(corpus / "spm" / "joint.model", folder)
    pairs = 0
    for language in LANGUAGES:
        lines = (corpus / "raw" / f"train.{language}").read_bytes().splitlines(True)
        pairs = round(size * len(lines))
        with open(folder / f"train.{language}", "wb") as out:
            endless = itertools.cycle(lines)
            for number, line in enumerate(itertools.islice(endless, pairs)):
                copy = number // len(lines)
                # Marked, so that a copy is no duplicate.
                out.write(line if not copy else b"%d " % copy + line)
    return pairs


def _against(corpus: Path, folder: Path, workers: int) -> dict[str, Any]:
    pairs = _set_up(corpus, folder)
    theirs = [_job(name, folder, workers) for name in
              ("spm_encode", "fairseq_preprocess")]  # fmt: skip
    ours = _job("encode_and_binarise", folder, workers)
    for path in sorted((folder / "ours").iterdir()):
        if not filecmp.cmp(path, folder / "theirs" / path.name, shallow=False):
            raise UserError(f"`{path.name}` differs from that of fairseq-preprocess.")
    return {
        "pairs": pairs,
        "spm_encode": theirs[0]._asdict(),
        "fairseq_preprocess": theirs[1]._asdict(),
        "ours": ours._asdict(),
        "ratio_of_seconds": sum(usage.seconds for usage in theirs) / ours.seconds,
        "ratio_of_cpu_seconds": (
            sum(usage.cpu_seconds for usage in theirs) / ours.cpu_seconds
        ),
        "identical_files": sorted(path.name for path in (folder / "ours").iterdir()),
    }


def _growth(corpus: Path, folder: Path, workers: int) -> list[dict[str, Any]]:
    rows = []
    for size in _SIZES:
        place = folder / str(size)
        row: dict[str, Any] = {"pairs": _set_up(corpus, place, size)}
        for name in ("clean", "encode_and_binarise"):
            row[name] = _job(name, place, workers)._asdict()
        rows.append(row)
        shutil.rmtree(place)
    return rows


def _projection(result: dict[str, Any]) -> dict[str, Any]:
    """Extend the measured lines of CPU time; say what is assumed."""
    pairs, cores = _PROJECTED["pairs"], _PROJECTED["cores"]
    report: dict[str, Any] = {
        **_PROJECTED,
        "assumes": "time on one core of the measuring machine; CPU seconds grow by the "
        "line through `growth`; cleaning and encoding are shared evenly by all cores, "
        "extracting and binarising (counted in both) are not; without downloads, "
        "without digests of the files between the stages, and without subwords, which "
        "train on a sample of constant size",
    }
    counts = [row["pairs"] for row in result["growth"]]
    total = 0.0
    for name in ("clean", "encode_and_binarise"):
        cpu = [row[name]["cpu_seconds"] for row in result["growth"]]
        slope, start = np.polyfit(counts, cpu, 1)
        report[name] = {
            "cpu_seconds_per_million_pairs": 1e6 * slope,
            "cpu_seconds_at_zero": start,
            "minutes": (slope * pairs / cores + max(start, 0.0)) / 60,
        }
        total += report[name]["minutes"]
    read = result["counts"]["clean-train"]["read"]
    for name in ("extract", "binarise"):
        cpu_seconds = result["stages"][name]["cpu_seconds"]
        report[name] = {"minutes": cpu_seconds / read * pairs / 60}
        total += report[name]["minutes"]
    report["minutes"] = total
    return report


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of the preparation.")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for large files")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
