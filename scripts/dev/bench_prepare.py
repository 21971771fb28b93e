"""Time and memory of the preparation, also against spm_encode and fairseq-preprocess.

    python scripts/dev/bench_prepare.py --source DIR [--workers 2]

Prepares the recipe ``europarl-part-en-fr`` stage by stage (part ``stage``). Then, on
its training text, SentencePiece's encoder and fairseq-preprocess are compared with this
project, whose files must be the same byte for byte (``against``). Last, parts and
multiples of that text show how cleaning and encoding grow (``growth``), and a
projection to 36 million pairs is printed. Each job is a separate process of this script
(--job NAME --source FOLDER).
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import functools
import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from measure import create_parser, describe_machine, measure_command
from results_tables import ROOT, merge_rows

from fairseq_plugins.corpus import binarize
from fairseq_plugins.corpus.clean import PlainPart, clean_training_text
from fairseq_plugins.corpus.prepare import STAGES
from fairseq_plugins.corpus.recipe import load_recipe
from fairseq_plugins.corpus.subwords import SentencePieces
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json

RECIPE = "europarl-part-en-fr"
LANGUAGES = ("en", "fr")
# Parts of the corpus and a multiple of it: enough for a line through time and memory.
SIZES = (0.25, 0.5, 1.0, 2.0)
PROJECTED_PAIRS, PROJECTED_CORES = 36_000_000, 16
KEY = ("part", "job", "pairs", "workers")
_LINES_AT_ONCE = 10_000

Row = dict[str, Any]


def main() -> None:
    arguments = _parse_arguments()
    if arguments.job:
        JOBS[arguments.job](arguments.source, arguments.workers)
        return
    workers = arguments.workers
    machine = {"workers": workers, **describe_machine()}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        corpus = Path(scratch) / "corpus"
        rows = []
        for part in (
            _measure_stages(arguments.source, corpus, workers),
            _compare(corpus, Path(scratch) / "against", workers),
            _measure_growth(corpus, Path(scratch) / "growth", workers),
        ):
            rows += part
            merge_rows(arguments.output, [row | machine for row in part], KEY)
    minutes = project_minutes(rows)
    print(f"{PROJECTED_PAIRS:,} pairs on {PROJECTED_CORES} cores, projected minutes:")
    print({job: round(value, 2) for job, value in minutes.items()})


def _measure_stages(source: Path, corpus: Path, workers: int) -> list[Row]:
    """Prepare the recipe, each stage in a separate process."""
    usages = {
        stage: measure_command([
            sys.executable, str(ROOT / "scripts" / "prepare.py"), RECIPE,
            "--stage", stage, "--source", str(source), "--out", str(corpus),
            "--workers", str(workers),
        ])
        for stage in STAGES
    }  # fmt: skip
    counts = read_json(corpus / "manifest.json")["stages"]["clean-train"]["counts"]
    raw = ("fetch", "extract", "clean")
    return [
        {"part": "stage", "job": stage,
         "pairs": counts["read" if stage in raw else "pairs"], **usage._asdict()}
        for stage, usage in usages.items()
    ]  # fmt: skip


def _compare(corpus: Path, folder: Path, workers: int) -> list[Row]:
    pairs = _write_text(corpus, folder)
    rows = [
        _measure("against", job, folder, pairs, workers)
        for job in ("spm_encode", "fairseq_preprocess", "encode_and_binarize")
    ]
    for path in sorted((folder / "ours").iterdir()):
        if not filecmp.cmp(path, folder / "theirs" / path.name, shallow=False):
            raise UserError(f"`{path.name}` differs from that of fairseq-preprocess.")
    return rows


def _measure_growth(corpus: Path, folder: Path, workers: int) -> list[Row]:
    rows = []
    for size in SIZES:
        pairs = _write_text(corpus, folder / str(size), size)
        rows += [
            _measure("growth", job, folder / str(size), pairs, workers)
            for job in ("clean", "encode_and_binarize")
        ]
        shutil.rmtree(folder / str(size))
    return rows


def _write_text(corpus: Path, folder: Path, size: float = 1.0) -> int:
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
                # A number makes a copy different, so that it is no duplicate.
                out.write(line if not copy else b"%d " % copy + line)
    return pairs


def _measure(part: str, job: str, folder: Path, pairs: int, workers: int) -> Row:
    usage = measure_command([
        sys.executable, __file__, "--job", job, "--source", str(folder),
        "--workers", str(workers),
    ])  # fmt: skip
    return {"part": part, "job": job, "pairs": pairs, **usage._asdict()}


def project_minutes(rows: list[Row]) -> dict[str, float]:
    """Extend the measured CPU seconds to a large corpus; return minutes by job.

    Assumes that CPU seconds grow along the line through ``growth``, that all cores
    share cleaning and encoding evenly, and that one core does extraction and
    binarization. Downloads, digests between the stages and subwords, which are trained
    on a sample of constant size, do not count.
    """
    minutes = {}
    for job in ("clean", "encode_and_binarize"):
        grown = [r for r in rows if r["part"] == "growth" and r["job"] == job]
        slope, start = np.polyfit(
            [float(row["pairs"]) for row in grown],
            [float(row["cpu_seconds"]) for row in grown],
            1,
        )
        seconds = slope * PROJECTED_PAIRS / PROJECTED_CORES + max(start, 0.0)
        minutes[job] = float(seconds) / 60
    stages = {row["job"]: row for row in rows if row["part"] == "stage"}
    for job in ("extract", "binarise"):
        per_pair = float(stages[job]["cpu_seconds"]) / float(stages["clean"]["pairs"])
        minutes[job] = per_pair * PROJECTED_PAIRS / 60
    return minutes | {"all": sum(minutes.values())}


def _spm_encode(folder: Path, workers: int) -> None:
    """SentencePiece's own encoder with its threads, from text to text in pieces."""
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "joint.model")
    )
    (folder / "pieces").mkdir(exist_ok=True)
    for language in LANGUAGES:
        text = folder / f"train.{language}"
        with open(text, encoding="utf-8", newline="\n") as lines, open(
            folder / "pieces" / text.name, "w", encoding="utf-8"
        ) as out:
            while batch := [
                line.rstrip("\n") for line in itertools.islice(lines, _LINES_AT_ONCE)
            ]:
                split = processor.encode(batch, out_type=str, num_threads=workers)
                out.writelines(" ".join(pieces) + "\n" for pieces in split)


def _fairseq_preprocess(folder: Path, workers: int) -> None:
    """fairseq-preprocess, from text in pieces to its binary format."""
    command = [
        sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary",
        "--source-lang", LANGUAGES[0], "--target-lang", LANGUAGES[1],
        "--trainpref", str(folder / "pieces" / "train"),
        "--destdir", str(folder / "theirs"), "--workers", str(workers),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _encode_and_binarize(folder: Path, workers: int) -> None:
    """This project's way from text to the binary format."""
    pairs = 0
    for language in LANGUAGES:
        text = folder / f"train.{language}"
        create_encoder = functools.partial(
            SentencePieces, folder / "joint.model", by_word=True
        )
        ids = folder / "ids" / text.name
        binarize.encode(create_encoder, text, ids, workers=workers)
        lengths = folder / "ids" / f"{text.name}{binarize.ENDINGS[1]}"
        pairs = lengths.stat().st_size // 4
    binarize.binarize(
        folder / "ids", folder / "ours", pairs={"train": pairs},
        source_lang=LANGUAGES[0], target_lang=LANGUAGES[1],
    )  # fmt: skip


def _clean(folder: Path, workers: int) -> None:
    """Every filter, duplicates included."""
    cleaning = dataclasses.replace(load_recipe("wmt14-en-fr")[1].cleaning)
    source, target = (folder / f"train.{language}" for language in LANGUAGES)
    part = PlainPart(source, target, (source.name, target.name))
    out = folder / "clean"
    clean_training_text(
        [part], out / source.name, out / target.name, cleaning=cleaning, workers=workers
    )


JOBS = {
    "spm_encode": _spm_encode,
    "fairseq_preprocess": _fairseq_preprocess,
    "encode_and_binarize": _encode_and_binarize,
    "clean": _clean,
}


def _parse_arguments() -> argparse.Namespace:
    parser = create_parser(__doc__, "prepare.csv")
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="DIR")
    add("--workers", type=int, default=2, metavar="N")
    add("--scratch", type=Path, metavar="DIR", help="for large files")
    add("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
