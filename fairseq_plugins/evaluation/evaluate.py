"""Which checkpoint of a run is evaluated: one of its own, another, or an average.

``RUN/eval``: the rows of ``scores.json`` and the files that they name.

What a run's model thinks of the references of a subset, computed once.

Evaluate a run folder and keep its scores in ``RUN/eval/scores.json``.
"""

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
from fairseq_plugins.evaluation.metrics import oracle_bleu, score, search_errors
from fairseq_plugins.evaluation.test_sets import (
    RunTestSet,
    find_test_set,
    published_name,
)
from fairseq_plugins.evaluation.tokenized import scores_of_older_papers
from fairseq_plugins.evaluation.translate import (
    Hypothesis,
    Reference,
    SearchPart,
    Subset,
    Translator,
    detokeniser,
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
    "file_name",
    "scored_references",
    "stem",
]

logger = logging.getLogger(__name__)

_NAMES = {"best": "checkpoint_best.pt", "last": "checkpoint_last.pt"}


@dataclass(frozen=True)
class Checkpoint:
    """A model.

    Attributes:
        path: where it is.
        name: no other checkpoint of the run's evaluations has it.
        sha256: of the file.
        averaged: names of the checkpoints that it is the mean of.
    """

    path: Path
    name: str
    sha256: str
    averaged: tuple[str, ...] = ()


def choose_checkpoint(folder: RunFolder, names: str | Sequence[str]) -> Checkpoint:
    """Find a checkpoint; of several, make the average once in ``RUN/eval``.

    Args:
        folder: the run.
        names: ``best``, ``last``, the name of a file in the run's ``checkpoints``, or
            the path of one elsewhere; several of these for their average.

    Raises:
        UserError: one is not there, is given twice or cannot be averaged.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    found = [_find(folder, name) for name in chosen]
    if len(found) == 1:
        return found[0]
    if len({checkpoint.sha256 for checkpoint in found}) < len(found):
        raise UserError(
            "checkpoints to be averaged must be different ones, but of "
            f"{', '.join(f'`{name}`' for name in chosen)} two are the same."
        )
    # The order makes no difference to a mean, so none to its name.
    digests = "".join(sorted(checkpoint.sha256 for checkpoint in found))
    digest = hashlib.sha256(digests.encode()).hexdigest()
    path = _averages(folder) / f"average{len(found)}-{digest[:8]}.pt"
    if not path.is_file():
        # It brings torch, which takes seconds.
        from fairseq_plugins.evaluation.average import average_checkpoints

        logger.info("averaging %d checkpoints", len(found))
        average_checkpoints([checkpoint.path for checkpoint in found], path)
    averaged = tuple(checkpoint.name for checkpoint in found)
    return Checkpoint(path, path.name, sha256_of(path), averaged)


def file_name(which: str) -> str:
    """Return the name of ``best``, ``last`` or any other checkpoint of a run."""
    return _NAMES.get(which, which)


def checkpoint_path(folder: RunFolder, row: Mapping[str, Any]) -> Path:
    """Return where the checkpoint that a row of ``scores.json`` names should be."""
    parent = _averages(folder) if "averaged" in row else folder.checkpoints
    return parent / str(row["checkpoint"])


def _averages(folder: RunFolder) -> Path:
    return folder.path / "eval"


def _find(folder: RunFolder, checkpoint: str) -> Checkpoint:
    path = folder.checkpoints / file_name(checkpoint)
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
    # One from elsewhere must not pass for the run's own.
    return Checkpoint(path, f"{path.stem}-{digest[:8]}.pt", digest)


Row = dict[str, Any]

# A row with the same values of these takes the place of an older one.
_SETTINGS = ("subset", "title", "checkpoint", "lenpen", "beam")


class ScoreStore:
    """The evaluations of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "scores.json"

    def _rows(self) -> list[Row]:
        """Read anew each time: another evaluation of the run may have added some."""
        rows: list[Row] = read_json(self._path) if self._path.exists() else []
        return rows

    def find(self, identity: Row) -> Row | None:
        """Return the row of this very evaluation if its hypotheses are still there."""
        for row in self._rows():
            if identity.items() <= row.items() and self._is_whole(row):
                return row
        return None

    def add(self, row: Row) -> None:
        """Keep a row in place of an older one with the same settings."""
        kept = [other for other in self._rows() if _key(other) != _key(row)]
        write_json(self._path, sorted([*kept, row], key=_key))

    def hypotheses(self, row: Row) -> list[str]:
        """Return the plain text of a row's translations."""
        return read_lines(self.folder / row["hypotheses"])

    def write_hypotheses(self, name: str, lines: list[str]) -> Row:
        """Write translations; return what the row says of them."""
        path = self.folder / f"{name}.hyp.txt"
        write_lines(path, lines)
        return {"hypotheses": path.name, "hypotheses_sha256": sha256_of(path)}

    def write_nbest(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        nbest: Sequence[Sequence[Hypothesis]],
    ) -> Row:
        """Write all hypotheses: line number, score and text, with tabs between them."""
        path = self.folder / f"{name}.nbest.tsv"
        lines = [
            f"{number}\t{hypothesis.score:.6f}\t{text}"
            for number, (plain, scored) in enumerate(zip(texts, nbest), start=1)
            for text, hypothesis in zip(plain, scored)
        ]
        write_lines(path, lines)
        return {"nbest": path.name}

    def read_nbest(self, row: Row) -> tuple[list[list[str]], list[list[Hypothesis]]]:
        """Return what :meth:`write_nbest` wrote.

        The subwords are not kept: hypotheses have their text in place of them.
        """
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

    def _is_whole(self, row: Row) -> bool:
        path = self.folder / row["hypotheses"]
        return path.is_file() and sha256_of(path) == row["hypotheses_sha256"]


def stem(row: Row) -> str:
    """Return ``test.beam5``, with whatever is not the default between the two."""
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


def scored_references(
    translator: Translator,
    checkpoint: Checkpoint,
    subset: Subset,
    *,
    data_sha256: str,
    folder: Path,
) -> list[Reference]:
    """Return one for each sentence of a subset, from ``folder`` if they are there.

    They depend on neither beam nor lenpen, so that one pass serves all evaluations.

    Args:
        translator: has the model loaded, or loads it if it is needed.
        checkpoint: the model.
        subset: binarised sentences with their references.
        data_sha256: digest of the binarised data.
        folder: ``RUN/eval``.

    Raises:
        UserError: fairseq fails.
    """
    name = f"{subset.name}.{Path(checkpoint.name).stem}.references"
    path = folder / f"{name}.json"
    identity = {"checkpoint_sha256": checkpoint.sha256, "data_sha256": data_sha256}
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    if not identity.items() <= known.items():
        found = translator.score_references(subset, log=folder / f"{name}.log")
        rows = [[item.log_prob, item.tokens] for item in found]
        known = {**identity, "references": rows}
        write_json(path, known)
    return [Reference(*row) for row in known["references"]]


@dataclass(frozen=True)
class Scoring:
    """How translations are scored.

    Attributes:
        max_empty: share of hypotheses that may be empty.
        force: score text that looks wrong, such as tokenised references.
        tokenised: add BLEU of tokenised text, as in older papers.
        comet: add COMET by this installation of it.
    """

    max_empty: float = MAX_EMPTY
    force: bool = False
    tokenised: bool = False
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
    """Translate and score subsets by each beam; what is known is not done again.

    One process of fairseq does all of it. What it has found is kept when it is killed.

    Args:
        run: folder written by ``scripts/train.py``.
        beams: beam sizes; each is taken once.
        subset: one of the corpus that the run was trained on, by fairseq's name
            (``test``), by its title (``test_2016_flickr``), or a part of one
            (``newstest2014/2737``); or several of these.
        checkpoint: ``best``, ``last``, or a path to a checkpoint; several of these for
            their average.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: size of a batch.
        scoring: what to score and what to refuse.

    Returns:
        one row per subset and beam, as it stands in ``scores.json``.

    Raises:
        UserError: run, subset or checkpoint are not there, or do not fit each other; a
            beam size is below 1.
    """
    for beam in beams:
        if beam < 1:
            raise UserError(f"`--beam` must be 1 or more, but is {beam}.")
    folder = RunFolder(run)
    config = folder.read_config()
    data = Path(config["data"])
    # The model knows the numbers of the words in the dictionary of its training.
    if config.get("data_sha256") != digest_data(data, ("train", "valid")):
        raise UserError(f"`{data}` has changed since `{run}` was trained on it.")
    corpus = PreparedCorpus.load(data)
    names = [subset] if isinstance(subset, str) else subset
    found = [find_test_set(corpus, name) for name in names]
    test_sets = {test_set.title: test_set for test_set in found}
    # Pieces that cannot be made text again should not wait for the search.
    detokenised = detokeniser(corpus)
    chosen = choose_checkpoint(folder, checkpoint)
    languages = (corpus.source_lang, corpus.target_lang)
    with Translator(
        chosen.path, corpus.bin_dir, languages, max_tokens=max_tokens
    ) as translator:
        evaluation = _Evaluation(
            corpus,
            detokenised,
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
    detokenised: Callable[[str], str]
    data: Path
    checkpoint: Checkpoint
    translator: Translator
    store: ScoreStore
    max_tokens: int
    scoring: Scoring

    def row(self, test_set: RunTestSet, *, beam: int, lenpen: float) -> Row:
        """Return the row of ``scores.json``, made or completed if need be."""
        known = self._translated(test_set, beam=beam, lenpen=lenpen)
        row = known | self._more_scores(test_set, known)
        if row != known:
            self.store.add(row)
        return row

    def _translated(self, test_set: RunTestSet, *, beam: int, lenpen: float) -> Row:
        """Return the row as it is known, or made: a search is kept at once."""
        identity = self._identity(test_set) | {"lenpen": lenpen, "beam": beam}
        row = self.store.find(identity)
        if row is None:
            make = self._translate if test_set.numbers is None else self._cut
            row = make(test_set, identity)
            self.store.add(row)
            self._part(identity).remove()
        else:
            logger.info("%s, beam %d: known already", test_set.subset, beam)
            self._check(test_set, self.store.hypotheses(row))
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
        if not self.scoring.force:  # a fault of theirs should not wait for the search
            check_plain_text("reference", references)
            check_comparable(references, references, max_empty=self.scoring.max_empty)
        found = self.translator.translate(
            Subset(test_set.subset, len(references)),
            beam=identity["beam"],
            lenpen=identity["lenpen"],
            log=self.store.folder / f"{stem(identity)}.log",
            part=self._part(identity),
        )
        texts = [[self.detokenised(h.pieces) for h in beam] for beam in found.nbest]
        speed = {
            "tokens": found.tokens,
            "seconds": found.seconds,
            "tokens_per_second": found.tokens_per_second,
        }
        return self._finish(test_set, identity, texts, found.nbest, speed)

    def _cut(self, test_set: RunTestSet, identity: Row) -> Row:
        """Score a part of a subset by the translations of the whole."""
        assert test_set.lines_of is not None
        whole = find_test_set(self.corpus, test_set.lines_of)
        settings = {key: identity[key] for key in ("beam", "lenpen")}
        row = self._translated(whole, **settings)
        if "nbest" not in row:
            raise UserError(
                f"`{test_set.title}` needs all hypotheses of `{whole.title}`, which an "
                f"earlier version did not keep: remove `{row['hypotheses']}` in "
                f"`{self.store.folder}` to have it translated again."
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
        """Score, and then keep the translations: wrong ones leave no file."""
        references = test_set.references
        hypotheses = [best for best, *_ in texts]
        scores = asdict(self._score(test_set, hypotheses, references))
        errors = search_errors(
            [best for best, *_ in nbest],
            test_set.pick(self._scored_references(test_set, identity)),
            lenpen=identity["lenpen"],
        )
        averaged = self.checkpoint.averaged
        name = stem(identity)
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

    def _check(self, test_set: RunTestSet, hypotheses: list[str]) -> None:
        """Refuse what was scored only because it was forced, or let more be empty."""
        if not self.scoring.force:
            check_comparable(
                hypotheses,
                test_set.references,
                sources=test_set.sources,
                max_empty=self.scoring.max_empty,
            )

    def _more_scores(self, test_set: RunTestSet, row: Row) -> Row:
        """Return scores that are asked for and that the row lacks."""
        more: Row = {}

        def texts() -> tuple[list[str], list[str]]:
            return self.store.hypotheses(row), test_set.references

        if "ter" not in row:  # of an earlier version
            more |= asdict(self._score(test_set, *texts()))
        if self.scoring.tokenised and "tokenised_bleu" not in row:
            more |= scores_of_older_papers(*texts(), self.corpus.target_lang)
        comet = self.scoring.comet
        if comet is not None and row.get("comet_model") != comet.model:
            more["comet"] = comet_score(comet, test_set.sources, *texts())
            more["comet_model"] = comet.model
        return more

    def _score(
        self, test_set: RunTestSet, hypotheses: list[str], references: list[str]
    ) -> Any:
        return score(
            hypotheses,
            references,
            sources=test_set.sources,
            max_empty=self.scoring.max_empty,
            force=self.scoring.force,
        )

    def _part(self, identity: Row) -> SearchPart:
        path = self.store.folder / f".{stem(identity)}.search.partial"
        return SearchPart(path, {**identity, "max_tokens": self.max_tokens})

    def _scored_references(
        self, test_set: RunTestSet, identity: Row
    ) -> list[Reference]:
        return scored_references(
            self.translator,
            self.checkpoint,
            Subset(test_set.subset, test_set.text.pairs),
            data_sha256=identity["data_sha256"],
            folder=self.store.folder,
        )
