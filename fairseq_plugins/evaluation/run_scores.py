"""Evaluate a run folder and keep its scores in ``RUN/eval/scores.json``."""
from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.generate import translate
from fairseq_plugins.evaluation.scoring import score
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import (
    read_json,
    read_lines,
    sha256_of,
    write_json,
    write_lines,
)
from fairseq_plugins.pipeline.manifest import PreparedCorpus
from fairseq_plugins.pipeline.run_folder import RunFolder
from fairseq_plugins.pipeline.training_config import digest_of_data

__all__ = ["Row", "evaluate_run"]

Row = dict[str, Any]

logger = logging.getLogger(__name__)

# A row with the same values of these takes the place of an older one.
_SETTINGS = ("subset", "checkpoint", "lenpen", "beam")


def evaluate_run(
    run: Path,
    *,
    beams: Sequence[int] = (1, 5),
    subset: str = "test",
    checkpoint: str = "best",
    lenpen: float = 1.0,
    max_tokens: int = 4000,
) -> list[Row]:
    """Translate and score a subset by each beam; what is known is not done again.

    Args:
        run: folder written by ``scripts/train.py``.
        beams: beam sizes.
        subset: one of the corpus that the run was trained on, by fairseq's name
            (``test``) or by its title (``test_2016_flickr``).
        checkpoint: ``best``, ``last``, or a path to a checkpoint.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: size of a batch.

    Returns:
        one row per beam, as it stands in ``scores.json``.

    Raises:
        UserError: run, subset or checkpoint are not there, or do not fit each other; a
            beam size is below 1.
    """
    for beam in beams:
        if beam < 1:
            raise UserError(f"`--beam` must be 1 or more, but is {beam}.")
    folder = RunFolder(run)
    data = Path(folder.read_config()["data"])
    _check_unchanged(folder, data)
    corpus = PreparedCorpus.load(data)
    subset, text = corpus.subset(subset)
    path = _find_checkpoint(folder, checkpoint)
    identity = {
        "subset": subset,
        "title": text.title,
        "checkpoint": _name(folder, path),
        "lenpen": lenpen,
        "checkpoint_sha256": sha256_of(path),
        "data_sha256": digest_of_data(data, (subset,)),
        "reference_sha256": sha256_of(text.target),
    }
    scores = _Scores(folder.path / "eval")
    rows = []
    for beam in beams:
        row = scores.find({**identity, "beam": beam})
        if row is None:
            row = {**identity, "beam": beam}
            row |= _evaluate(corpus, path, scores.folder, row, max_tokens)
            scores.add(row)
        else:
            logger.info("%s, beam %d: known already", subset, beam)
        rows.append(row)
    return rows


def _check_unchanged(folder: RunFolder, data: Path) -> None:
    """The model knows the numbers of the words in the dictionary of its training."""
    pinned = folder.read_config().get("data_sha256")
    if pinned != digest_of_data(data, ("train", "valid")):
        raise UserError(
            f"`{data}` has changed since `{folder.path}` was trained on it."
        )


def _evaluate(
    corpus: PreparedCorpus, checkpoint: Path, folder: Path, row: Row, max_tokens: int
) -> Row:
    """Translate and score once; return what the row lacks."""
    from sentencepiece import SentencePieceProcessor

    subset, stem = row["subset"], _stem(row)
    references = read_lines(corpus.subsets[subset].target)
    translations = translate(
        checkpoint,
        corpus.bin_dir,
        languages=(corpus.source_lang, corpus.target_lang),
        subset=subset,
        sentences=len(references),
        beam=row["beam"],
        lenpen=row["lenpen"],
        max_tokens=max_tokens,
        log=folder / f"{stem}.log",
    )
    model = SentencePieceProcessor(model_file=str(corpus.spm_model))
    hypotheses = [_decode(model, line) for line in translations.pieces]
    scores = asdict(score(hypotheses, references))
    path = folder / f"{stem}.hyp.txt"
    write_lines(path, hypotheses)
    return {
        **scores,
        "sentences": len(hypotheses),
        "tokens": translations.tokens,
        "seconds": translations.seconds,
        "tokens_per_second": translations.tokens_per_second,
        "hypotheses": path.name,
        "hypotheses_sha256": sha256_of(path),
    }


def _decode(model: Any, pieces: str) -> str:
    # A model with pieces for single bytes can make line feeds.
    text: str = model.decode(pieces.split(" "))
    return text.replace("\n", " ")


def _find_checkpoint(folder: RunFolder, checkpoint: str) -> Path:
    names = {"best": "checkpoint_best.pt", "last": "checkpoint_last.pt"}
    path = folder.checkpoints / names.get(checkpoint, checkpoint)
    if not path.is_file():
        path = Path(checkpoint)
    if not path.is_file():
        there = ", ".join(f.name for f in sorted(folder.checkpoints.glob("*.pt")))
        raise UserError(
            f"`{folder.path}` has no checkpoint `{checkpoint}`; it has "
            f"{there or 'none yet'}."
        )
    return path


def _name(folder: RunFolder, path: Path) -> str:
    """Name a checkpoint so that one from elsewhere does not pass for the run's own."""
    if path.resolve().parent == folder.checkpoints.resolve():
        return path.name
    return f"{path.stem}-{sha256_of(path)[:8]}.pt"


def _stem(row: Row) -> str:
    """Return ``test.beam5``, with whatever is not the default between the two."""
    parts = [row["subset"]]
    if row["checkpoint"] != "checkpoint_best.pt":
        parts.append(Path(row["checkpoint"]).stem)
    if row["lenpen"] != 1.0:
        parts.append(f"lenpen{row['lenpen']:g}")
    return ".".join([*parts, f"beam{row['beam']}"])


class _Scores:
    """The rows of ``scores.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "scores.json"
        self._rows: list[Row] = read_json(self._path) if self._path.exists() else []

    def find(self, identity: Row) -> Row | None:
        """Return the row of this very evaluation if its hypotheses are still there."""
        for row in self._rows:
            if identity.items() <= row.items() and self._is_whole(row):
                return row
        return None

    def add(self, row: Row) -> None:
        """Keep a row in place of an older one with the same settings."""
        kept = [other for other in self._rows if _key(other) != _key(row)]
        self._rows = sorted([*kept, row], key=_key)
        write_json(self._path, self._rows)

    def _is_whole(self, row: Row) -> bool:
        path = self.folder / row["hypotheses"]
        return path.is_file() and sha256_of(path) == row["hypotheses_sha256"]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SETTINGS)
