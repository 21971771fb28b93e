"""Find the models, dictionaries and subwords of trained runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.evaluate import choose_checkpoint
from fairseq_plugins.inference.codec import SentencePieceCodec, create_codec
from fairseq_plugins.inference.translator import Translator
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import sha256_of

__all__ = ["load_data_bin", "load_runs"]

logger = logging.getLogger(__name__)


def load_runs(
    runs: Sequence[Path], *, checkpoint: str | None = None, **options: Any
) -> Translator:
    """Return the translator of a run, or the ensemble of several.

    Args:
        runs: folders that ``scripts/train.py`` wrote.
        checkpoint: ``best``, ``last``, ``average`` (``checkpoint_average.pt`` of
            ``scripts/average.py``), or the path of a checkpoint. By default ``best``
            if the run measured validation BLEU to choose it, otherwise ``last``: the
            lowest cross entropy is not the best model of beam-aware training.
        options: of :class:`Translator`.

    Raises:
        UserError: a run or its corpus cannot be used, or the runs do not share their
            languages, dictionaries and subwords.
    """
    folders = [RunFolder(Path(run)) for run in runs]
    corpora = [
        PreparedCorpus.load(Path(str(folder.read_config()["data"])))
        for folder in folders
    ]
    for run, corpus in zip(runs[1:], corpora[1:]):
        if _vocabulary(corpus) != _vocabulary(corpora[0]):
            raise UserError(
                "models of an ensemble must have the same languages, dictionaries and "
                f"subwords, but those of `{run}` ({corpus.folder}) differ from those "
                f"of `{runs[0]}` ({corpora[0].folder})."
            )
    checkpoints = [
        choose_checkpoint(folder, checkpoint or _default_checkpoint(folder)).path
        for folder in folders
    ]
    for path in checkpoints:
        logger.info("model: %s", path)
    corpus = corpora[0]
    return Translator(
        checkpoints,
        corpus.bin_dir,
        (corpus.source_lang, corpus.target_lang),
        create_codec(corpus),
        **options,
    )


def load_data_bin(
    checkpoints: Sequence[Path],
    data_bin: Path,
    *,
    sentencepiece_model: Path,
    **options: Any,
) -> Translator:
    """Return the translator of checkpoints that ``fairseq-train`` wrote.

    Args:
        checkpoints: several are an ensemble.
        data_bin: folder that ``fairseq-preprocess`` wrote.
        sentencepiece_model: of both languages.
        options: of :class:`Translator`.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    for path in checkpoints:
        if not path.is_file():
            raise UserError(f"`{path}` must be a checkpoint, but is no file.")
    if not any(data_bin.glob("dict.*.txt")):
        raise UserError(
            f"`--data-bin` must be a folder of fairseq-preprocess, but `{data_bin}` "
            "has no `dict.LANG.txt`."
        )
    codec = SentencePieceCodec(sentencepiece_model)
    return Translator(checkpoints, data_bin, None, codec, **options)


def _default_checkpoint(folder: RunFolder) -> str:
    metric = folder.read_config().get("best_checkpoint_metric")
    return "best" if metric == "bleu" else "last"


def _vocabulary(corpus: PreparedCorpus) -> tuple[str, ...]:
    languages = (corpus.source_lang, corpus.target_lang)
    dictionaries = [corpus.bin_dir / f"dict.{lang}.txt" for lang in languages]
    files = [corpus.codes_file or corpus.spm_model, *dictionaries]
    return (*languages, *map(sha256_of, files))
