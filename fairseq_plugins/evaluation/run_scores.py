"""Evaluate a run folder and keep its scores in ``RUN/eval/scores.json``."""
from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from fairseq_plugins.evaluation.beam_quality import oracle_bleu, search_errors
from fairseq_plugins.evaluation.comet import Comet, comet_score
from fairseq_plugins.evaluation.comparable import (
    MAX_EMPTY,
    check_comparable,
    check_plain_text,
)
from fairseq_plugins.evaluation.detokenising import detokeniser
from fairseq_plugins.evaluation.found import Hypothesis, Reference
from fairseq_plugins.evaluation.generate import Subset, Translator
from fairseq_plugins.evaluation.run_checkpoint import Checkpoint, choose_checkpoint
from fairseq_plugins.evaluation.run_references import scored_references
from fairseq_plugins.evaluation.run_test_set import (
    RunTestSet,
    find_test_set,
    published_name,
)
from fairseq_plugins.evaluation.score_store import Row, ScoreStore, stem
from fairseq_plugins.evaluation.scoring import score
from fairseq_plugins.evaluation.search_part import SearchPart
from fairseq_plugins.evaluation.tokenised import scores_of_older_papers
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.manifest import PreparedCorpus
from fairseq_plugins.pipeline.run_folder import RunFolder
from fairseq_plugins.pipeline.training_config import digest_of_data

__all__ = ["Row", "Scoring", "evaluate_run"]

logger = logging.getLogger(__name__)


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
    if config.get("data_sha256") != digest_of_data(data, ("train", "valid")):
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
            "data_sha256": digest_of_data(self.data, (test_set.subset,)),
            "reference_sha256": test_set.reference_sha256,
        }

    def _translate(self, test_set: RunTestSet, identity: Row) -> Row:
        """Translate and score a whole subset; return its row."""
        references = test_set.references
        if not self.scoring.force:  # a fault of theirs should not wait for the search
            check_plain_text("reference", references)
            check_comparable(
                references, references, max_empty=self.scoring.max_empty
            )
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
