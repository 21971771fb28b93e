"""The jobs that bench_prepare.py times, each run as a process of its own.

    python scripts/dev/prepare_jobs.py JOB FOLDER WORKERS

FOLDER holds ``train.SRC`` and ``train.TGT`` as text, and ``joint.model``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
import sys
from pathlib import Path

import sentencepiece

from fairseq_plugins.corpus import binarize
from fairseq_plugins.corpus.clean import PlainPart, clean_training_text
from fairseq_plugins.corpus.recipe import load_recipe
from fairseq_plugins.corpus.subwords import SentencePieces

_LINES_AT_ONCE = 10_000
LANGUAGES = ("en", "fr")


def spm_encode(folder: Path, workers: int) -> None:
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


def fairseq_preprocess(folder: Path, workers: int) -> None:
    """fairseq-preprocess, from text in pieces to its binary format."""
    command = [
        sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary",
        "--source-lang", LANGUAGES[0], "--target-lang", LANGUAGES[1],
        "--trainpref", str(folder / "pieces" / "train"),
        "--destdir", str(folder / "theirs"), "--workers", str(workers),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def encode_and_binarise(folder: Path, workers: int) -> None:
    """Ours, from text to the binary format."""
    pairs = 0
    for language in LANGUAGES:
        text = folder / f"train.{language}"
        make_encoder = functools.partial(
            SentencePieces, folder / "joint.model", by_word=True
        )
        binarize.encode(make_encoder, text, folder / "ids" / text.name, workers=workers)
        lengths = folder / "ids" / f"{text.name}{binarize.ENDINGS[1]}"
        pairs = lengths.stat().st_size // 4
    binarize.binarize(
        folder / "ids", folder / "ours", pairs={"train": pairs},
        source_lang=LANGUAGES[0], target_lang=LANGUAGES[1],
    )  # fmt: skip


def clean(folder: Path, workers: int) -> None:
    """Every filter, duplicates included."""
    cleaning = dataclasses.replace(load_recipe("wmt14-en-fr")[1].cleaning)
    source, target = (folder / f"train.{language}" for language in LANGUAGES)
    part = PlainPart(source, target, (source.name, target.name))
    out = folder / "clean"
    clean_training_text(
        [part], out / source.name, out / target.name, cleaning=cleaning, workers=workers
    )


JOBS = {
    job.__name__: job
    for job in (spm_encode, fairseq_preprocess, encode_and_binarise, clean)
}

if __name__ == "__main__":
    JOBS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
