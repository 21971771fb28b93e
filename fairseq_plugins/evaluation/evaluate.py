"""Translate and score test sets with a run; keep the scores in ``scores.json``."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.checks import (
    MAX_EMPTY,
    check_comparable,
    check_plain_text,
)
from fairseq_plugins.evaluation.comet import Comet, comet_score
from fairseq_plugins.evaluation.metrics import (
    oracle_bleu,
    score,
    score_like_older_papers,
    search_errors,
)
from fairseq_plugins.evaluation.test_sets import (
    RunTestSet,
    find_test_set,
    published_name,
)
from fairseq_plugins.evaluation.translate import (
    Hypothesis,
    PartialSearch,
    Reference,
    Subset,
    Translator,
    make_detokenizer,
)
from fairseq_plugins.training.config import digest_data
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import (
    read_json,
    read_lines,
    sha256_of,
    write_json,
    write_lines,
)

__all__ = [
    "Checkpoint",
    "Row",
    "ScoreStore",
    "Scoring",
    "checkpoint_path",
    "choose_checkpoint",
    "evaluate_run",
    "checkpoint_file_name",
]

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_NAMES = {
    "best": "checkpoint_best.pt",
    "last": "checkpoint_last.pt",
    "average": "checkpoint_average.pt",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to evaluate.

    Attributes:
        path: the file.
        name: unique among the checkpoints that the run is evaluated with.
        sha256: digest of the file.
        averaged: names of the checkpoints of which this is the mean.
    """

    path: Path
    name: str
    sha256: str
    averaged: tuple[str, ...] = ()


def choose_checkpoint(folder: RunFolder, names: str | Sequence[str]) -> Checkpoint:
    """Find a checkpoint, or make the average of several once in ``RUN/eval``.

    Args:
        folder: the run.
        names: ``best``, ``last``, the name of a file in the run's ``checkpoints``, or
            the path of another one; several of these for their average.

    Raises:
        UserError: one does not exist, is given twice or cannot be averaged.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    found = [_find(folder, name) for name in chosen]
    if len(found) == 1:
        return found[0]
    if len({checkpoint.sha256 for checkpoint in found}) < len(found):
        raise UserError(
            "checkpoints to average must be different, but two of "
            f"{', '.join(f'`{name}`' for name in chosen)} are the same."
        )
    # The order does not change the mean, so it must not change the name.
    digests = "".join(sorted(checkpoint.sha256 for checkpoint in found))
    digest = hashlib.sha256(digests.encode()).hexdigest()
    path = folder.path / "eval" / f"average{len(found)}-{digest[:8]}.pt"
    if not path.is_file():
        # Imports torch, which takes seconds.
        from fairseq_plugins.evaluation.average import average_checkpoints

        logger.info("averaging %d checkpoints", len(found))
        average_checkpoints([checkpoint.path for checkpoint in found], path)
    averaged = tuple(checkpoint.name for checkpoint in found)
    return Checkpoint(path, path.name, sha256_of(path), averaged)


def checkpoint_file_name(which: str) -> str:
    """Return the file name of ``best``, ``last`` or another checkpoint of a run."""
    return _NAMES.get(which, which)


def checkpoint_path(folder: RunFolder, row: Mapping[str, Any]) -> Path:
    """Return the path of the checkpoint that a row of ``scores.json`` names."""
    parent = folder.path / "eval" if "averaged" in row else folder.checkpoints
    return parent / str(row["checkpoint"])


def _find(folder: RunFolder, checkpoint: str) -> Checkpoint:
    path = folder.checkpoints / checkpoint_file_name(checkpoint)
    if not path.is_file():
        path = Path(checkpoint)
    if not path.is_file():
        there = ", ".join(f.name for f in sorted(folder.checkpoints.glob("*.pt")))
        raise UserError(
            f"`{folder.path}` has no checkpoint `{checkpoint}`; it has "
            f"{there or 'none yet'}."
        )
    digest = sha256_of(path)
    if path.resolve().parent == folder.checkpoints.resolve():
        return Checkpoint(path, path.name, digest)
    # The name distinguishes it from the run's own checkpoints.
    return Checkpoint(path, f"{path.stem}-{digest[:8]}.pt", digest)


# A row replaces an older row with the same values of these keys.
_SETTINGS = ("subset", "title", "checkpoint", "lenpen", "beam")


class ScoreStore:
    """The evaluations of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "scores.json"

    def _rows(self) -> list[Row]:
        # Read each time: another evaluation of the run may have added rows.
        rows: list[Row] = read_json(self._path) if self._path.exists() else []
        return rows

    def find(self, identity: Row) -> Row | None:
        """Return the row with these values if its translations are unchanged."""
        for row in self._rows():
            if identity.items() <= row.items() and self._is_unchanged(row):
                return row
        return None

    def add(self, row: Row) -> None:
        """Write a row, which replaces an older one with the same settings."""
        kept = [other for other in self._rows() if _key(other) != _key(row)]
        write_json(self._path, sorted([*kept, row], key=_key))

    def hypotheses(self, row: Row) -> list[str]:
        """Return the plain text of a row's translations."""
        return read_lines(self.folder / row["hypotheses"])

    def write_hypotheses(self, name: str, lines: list[str]) -> Row:
        """Write translations; return their entries of the row."""
        path = self.folder / f"{name}.hyp.txt"
        write_lines(path, lines)
        return {"hypotheses": path.name, "hypotheses_sha256": sha256_of(path)}

    def write_nbest(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        nbest: Sequence[Sequence[Hypothesis]],
    ) -> Row:
        """Write line number, score and text of all hypotheses, separated by tabs."""
        path = self.folder / f"{name}.nbest.tsv"
        lines = [
            f"{number}\t{hypothesis.score:.6f}\t{text}"
            for number, (plain, scored) in enumerate(zip(texts, nbest), start=1)
            for text, hypothesis in zip(plain, scored)
        ]
        write_lines(path, lines)
        return {"nbest": path.name}

    def read_nbest(self, row: Row) -> tuple[list[list[str]], list[list[Hypothesis]]]:
        """Return texts and hypotheses; their pieces are the text, not subwords."""
        texts: list[list[str]] = []
        nbest: list[list[Hypothesis]] = []
        for line in read_lines(self.folder / row["nbest"]):
            number, score, text = line.split("\t")
            if int(number) > len(texts):
                texts.append([])
                nbest.append([])
            texts[-1].append(text)
            nbest[-1].append(Hypothesis(float(score), text))
        return texts, nbest

    def _is_unchanged(self, row: Row) -> bool:
        path = self.folder / row["hypotheses"]
        return path.is_file() and sha256_of(path) == row["hypotheses_sha256"]


def _file_stem(row: Row) -> str:
    """Return ``test.beam5``, with the settings that are not defaults in between."""
    parts = [row["subset"]]
    if "lines_of" in row:
        parts.append(row["title"].replace("/", "-"))
    if row["checkpoint"] != "checkpoint_best.pt":
        parts.append(Path(row["checkpoint"]).stem)
    if row["lenpen"] != 1.0:
        parts.append(f"lenpen{row['lenpen']:g}")
    return ".".join([*parts, f"beam{row['beam']}"])


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SETTINGS)


@dataclass(frozen=True)
class Scoring:
    """How translations are scored.

    Attributes:
        max_empty: fraction of hypotheses that may be empty.
        force: score texts that look wrong, such as tokenized references.
        tokenized: add BLEU of tokenized text, as in older papers.
        comet: add COMET with this installation.
    """

    max_empty: float = MAX_EMPTY
    force: bool = False
    tokenized: bool = False
    comet: Comet | None = None


def evaluate_run(
    run: Path,
    *,
    beams: Sequence[int] = (1, 5),
    subset: str | Sequence[str] = "test",
    checkpoint: str | Sequence[str] = "best",
    lenpen: float = 1.0,
    max_tokens: int = 4000,
    scoring: Scoring = Scoring(),
) -> list[Row]:
    """Translate and score subsets with each beam size; reuse existing results.

    One fairseq process does all of this. If it is killed, finished batches are kept.

    Args:
        run: folder written by ``scripts/train.py``.
        beams: beam sizes; duplicates are ignored.
        subset: a subset of the corpus of the run by fairseq's name (``test``), by its
            title (``test_2016_flickr``), or a part of one (``newstest2014/2737``); or
            several of these.
        checkpoint: ``best``, ``last``, or a path to a checkpoint; several of these for
            their average.
        lenpen: exponent of the length by which scores are divided.
        max_tokens: size of a batch.
        scoring: scores to add, and checks to relax.

    Returns:
        one row per subset and beam, as in ``scores.json``.

    Raises:
        UserError: run, subset or checkpoint do not exist or do not fit each other; a
            beam size is below 1.
    """
    for beam in beams:
        if beam < 1:
            raise UserError(f"`--beam` must be 1 or more, but is {beam}.")
    folder = RunFolder(run)
    config = folder.read_config()
    data = Path(config["data"])
    # The model depends on the order of its training dictionary.
    if config.get("data_sha256") != digest_data(data, ("train", "valid")):
        raise UserError(f"`{data}` has changed since `{run}` was trained on it.")
    corpus = PreparedCorpus.load(data)
    names = [subset] if isinstance(subset, str) else subset
    found = [find_test_set(corpus, name) for name in names]
    test_sets = {test_set.title: test_set for test_set in found}
    # Fails before the search if the pieces cannot be detokenized.
    detokenize = make_detokenizer(corpus)
    chosen = choose_checkpoint(folder, checkpoint)
    languages = (corpus.source_lang, corpus.target_lang)
    with Translator(
        chosen.path, corpus.bin_dir, languages, max_tokens=max_tokens
    ) as translator:
        evaluation = _Evaluation(
            corpus,
            detokenize,
            data,
            chosen,
            translator,
            ScoreStore(folder.path / "eval"),
            max_tokens,
            scoring,
        )
        return [
            evaluation.row(test_set, beam=beam, lenpen=lenpen)
            for test_set in test_sets.values()
            for beam in dict.fromkeys(beams)
        ]


@dataclass(frozen=True)
class _Evaluation:
    """One checkpoint on one corpus."""

    corpus: PreparedCorpus
    detokenize: Callable[[str], str]
    data: Path
    checkpoint: Checkpoint
    translator: Translator
    store: ScoreStore
    max_tokens: int
    scoring: Scoring

    def row(self, test_set: RunTestSet, *, beam: int, lenpen: float) -> Row:
        """Return the row of ``scores.json``; make or complete it if necessary."""
        known = self._translated_row(test_set, beam=beam, lenpen=lenpen)
        row = known | self._missing_scores(test_set, known)
        if row != known:
            self.store.add(row)
        return row

    def _translated_row(self, test_set: RunTestSet, *, beam: int, lenpen: float) -> Row:
        identity = self._identity(test_set) | {"lenpen": lenpen, "beam": beam}
        row = self.store.find(identity)
        if row is None:
            make = self._translate if test_set.numbers is None else self._score_part
            row = make(test_set, identity)
            self.store.add(row)
            self._partial_search(identity).remove()
        else:
            logger.info("%s, beam %d: already evaluated", test_set.subset, beam)
            if not self.scoring.force:  # an earlier call may have been less strict
                check_comparable(
                    self.store.hypotheses(row),
                    test_set.references,
                    sources=test_set.sources,
                    max_empty=self.scoring.max_empty,
                )
        return row

    def _identity(self, test_set: RunTestSet) -> Row:
        part = {"lines_of": test_set.lines_of} if test_set.lines_of else {}
        return {
            "subset": test_set.subset,
            "title": test_set.title,
            **part,
            "checkpoint": self.checkpoint.name,
            "checkpoint_sha256": self.checkpoint.sha256,
            "data_sha256": digest_data(self.data, (test_set.subset,)),
            "reference_sha256": test_set.reference_sha256,
        }

    def _translate(self, test_set: RunTestSet, identity: Row) -> Row:
        """Translate and score a whole subset; return its row."""
        references = test_set.references
        if not self.scoring.force:  # report wrong references before the search
            check_plain_text("reference", references)
            check_comparable(references, references, max_empty=self.scoring.max_empty)
        found = self.translator.translate(
            Subset(test_set.subset, len(references)),
            beam=identity["beam"],
            lenpen=identity["lenpen"],
            log=self.store.folder / f"{_file_stem(identity)}.log",
            part=self._partial_search(identity),
        )
        texts = [[self.detokenize(h.pieces) for h in beam] for beam in found.nbest]
        speed = {
            "tokens": found.tokens,
            "seconds": found.seconds,
            "tokens_per_second": found.tokens_per_second,
        }
        return self._finish(test_set, identity, texts, found.nbest, speed)

    def _score_part(self, test_set: RunTestSet, identity: Row) -> Row:
        """Score a part of a subset with the translations of the whole."""
        assert test_set.lines_of is not None
        whole = find_test_set(self.corpus, test_set.lines_of)
        row = self._translated_row(
            whole, beam=identity["beam"], lenpen=identity["lenpen"]
        )
        if "nbest" not in row:
            raise UserError(
                f"`{test_set.title}` needs all hypotheses of `{whole.title}`, which an "
                f"earlier version did not keep: remove `{row['hypotheses']}` in "
                f"`{self.store.folder}` to translate it again."
            )
        texts, nbest = self.store.read_nbest(row)
        speed = {key: row[key] for key in ("tokens", "seconds", "tokens_per_second")}
        picked = test_set.pick(texts), test_set.pick(nbest)
        return self._finish(test_set, identity, *picked, speed)

    def _finish(
        self,
        test_set: RunTestSet,
        identity: Row,
        texts: list[list[str]],
        nbest: list[list[Hypothesis]],
        speed: Row,
    ) -> Row:
        """Score before writing, so that refused translations leave no file."""
        references = test_set.references
        hypotheses = [best for best, *_ in texts]
        scores = self._score(test_set, hypotheses)
        errors = search_errors(
            [best for best, *_ in nbest],
            test_set.pick(self._score_references(test_set, identity)),
            lenpen=identity["lenpen"],
        )
        averaged = self.checkpoint.averaged
        name = _file_stem(identity)
        return {
            **identity,
            **({"averaged": list(averaged)} if averaged else {}),
            **scores,
            "test_set": published_name(test_set.title, references),
            "sentences": len(hypotheses),
            **speed,
            "oracle_bleu": oracle_bleu(texts, references),
            "search_errors": sum(errors) / len(errors),
            **self.store.write_nbest(name, texts, nbest),
            **self.store.write_hypotheses(name, hypotheses),
        }

    def _missing_scores(self, test_set: RunTestSet, row: Row) -> Row:
        """Return required scores that the row lacks."""
        scores: Row = {}
        comet = self.scoring.comet
        if "ter" not in row:  # written by an earlier version
            scores |= self._score(test_set, self.store.hypotheses(row))
        if self.scoring.tokenized and "tokenised_bleu" not in row:
            scores |= score_like_older_papers(
                self.store.hypotheses(row), test_set.references, self.corpus.target_lang
            )
        if comet is not None and row.get("comet_model") != comet.model:
            scores["comet"] = comet_score(
                comet, test_set.sources, self.store.hypotheses(row), test_set.references
            )
            scores["comet_model"] = comet.model
        return scores

    def _score(self, test_set: RunTestSet, hypotheses: list[str]) -> Row:
        return asdict(
            score(
                hypotheses,
                test_set.references,
                sources=test_set.sources,
                max_empty=self.scoring.max_empty,
                force=self.scoring.force,
            )
        )

    def _partial_search(self, identity: Row) -> PartialSearch:
        path = self.store.folder / f".{_file_stem(identity)}.search.partial"
        return PartialSearch(path, {**identity, "max_tokens": self.max_tokens})

    def _score_references(self, test_set: RunTestSet, identity: Row) -> list[Reference]:
        """Return the model's scores of a subset's references, computed once.

        They depend on neither beam nor lenpen: one pass serves all evaluations.
        """
        folder, digest = self.store.folder, self.checkpoint.sha256
        name = f"{test_set.subset}.{Path(self.checkpoint.name).stem}.references"
        path = folder / f"{name}.json"
        inputs = {"checkpoint_sha256": digest, "data_sha256": identity["data_sha256"]}
        known: Row = read_json(path) if path.is_file() else {}
        if not inputs.items() <= known.items():
            subset = Subset(test_set.subset, test_set.text.pairs)
            found = self.translator.score_references(subset, log=folder / f"{name}.log")
            rows = [[item.log_prob, item.tokens] for item in found]
            known = {**inputs, "references": rows}
            write_json(path, known)
        return [Reference(*row) for row in known["references"]]
