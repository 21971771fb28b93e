"""Translate prepared subsets, and score their references, with fairseq's own search."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, TypeVar

import fairseq_plugins
from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import Outcome, Worker

__all__ = [
    "Hypothesis",
    "PartialSearch",
    "Reference",
    "Subset",
    "Translations",
    "Translator",
    "make_detokenizer",
    "sort_by_sentence",
]

logger = logging.getLogger(__name__)

_MAX_LISTED = 5
_SECONDS_BETWEEN_REPORTS = 5.0
_KILLED = 137

# The worker must import this package, whatever its working directory is.
_WORKER = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from fairseq_plugins.evaluation.search_worker import main
main()
"""
_TOO_LONG = re.compile(
    r"Size of sample #(\d+) is invalid \(=(.+?)\) since max_positions=(.+?), skip"
)

Batch = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Hypothesis:
    """A translation of a sentence.

    Attributes:
        score: log-probability in nats, divided by its length (with end-of-sentence
            token) to the power of lenpen.
        pieces: subwords separated by spaces.
    """

    score: float
    pieces: str


@dataclass(frozen=True)
class Reference:
    """The model's score of a reference.

    Attributes:
        log_prob: its log-probability in nats.
        tokens: its length in subwords, with end-of-sentence token.
    """

    log_prob: float
    tokens: int


def sort_by_sentence(
    found: Iterable[tuple[int, T]], *, subset: str, sentences: int
) -> list[T]:
    """Return the results of the sentences in corpus order.

    Args:
        found: pairs of sentence number, from 0, and result, in any order.
        subset: for messages.
        sentences: the number of sentences of the raw text.

    Raises:
        UserError: results are missing, or there are more of them than sentences.
    """
    by_number = dict(found)
    missing = [n + 1 for n in range(sentences) if n not in by_number]
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        raise UserError(
            f"fairseq returned nothing for {len(missing):,} of the {sentences:,} "
            f"sentences of `{subset}`: {listed}"
            f"{', ...' if len(missing) > _MAX_LISTED else ''}. The binarized data and "
            "the raw text do not match: prepare the corpus again."
        )
    if len(by_number) > sentences:
        raise UserError(
            f"`{subset}` has {len(by_number):,} binarized but {sentences:,} raw "
            "sentences: prepare the corpus again."
        )
    return [by_number[number] for number in range(sentences)]


class PartialSearch:
    """The finished batches of a search, kept in a file until they are scored.

    The first line of the file is ``identity``, each other line a batch, as JSON.

    Args:
        path: the file, which may not exist yet.
        identity: everything the batches depend on. A file with another identity is
            removed.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._head = json.dumps(identity, sort_keys=True).encode()

    def read(self) -> list[Batch]:
        """Return the finished batches, without an incomplete last line."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        end = content.rfind(b"\n") + 1
        head, *lines = content[:end].splitlines() or [b""]
        try:
            batches = [json.loads(line) for line in lines]
        except ValueError:  # the disk was full, or lost power
            batches = []
        if head != self._head or not batches:
            self.remove()
            return []
        os.truncate(self._path, end)
        # Two processes at the same time may both have finished a batch.
        return list({batch["sentences"][0][0]: batch for batch in batches}.values())

    def add(self, batch: Batch) -> None:
        line = json.dumps(batch).encode() + b"\n"
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = self._head + b"\n" + line
        with open(self._path, "ab", buffering=0) as stream:
            stream.write(line)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Subset:
    """A part of a prepared corpus.

    Attributes:
        name: fairseq's name, such as ``test``.
        sentences: the number of sentences of its raw text.
    """

    name: str
    sentences: int


@dataclass(frozen=True)
class Translations:
    """The result of a search.

    Attributes:
        nbest: for each sentence in corpus order all finished hypotheses of the beam,
            best first.
        tokens: length of the best hypotheses with their end-of-sentence tokens.
        seconds: time of the search, without loading the model.
    """

    nbest: list[list[Hypothesis]]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return round(self.tokens / self.seconds, 2) if self.seconds else 0.0


class Translator:
    """Translates a corpus with a checkpoint; a context manager.

    One process loads both at the first request and answers all requests.

    Args:
        checkpoint: a model trained by fairseq.
        data: folder of the binarized data.
        languages: source and target.
        max_tokens: size of a batch, in tokens.
    """

    def __init__(
        self,
        checkpoint: Path,
        data: Path,
        languages: tuple[str, str],
        *,
        max_tokens: int,
    ) -> None:
        source, target = languages
        setup = {
            "data": str(data),
            "source_lang": source,
            "target_lang": target,
            "path": str(checkpoint),
            "max_tokens": str(max_tokens),
        }
        root = Path(fairseq_plugins.__file__).resolve().parents[1]
        command = [sys.executable, "-c", _WORKER, str(root), json.dumps(setup)]
        self._worker = Worker(command)

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.__exit__(*error)

    def translate(
        self,
        subset: Subset,
        *,
        beam: int,
        lenpen: float,
        log: Path,
        part: PartialSearch,
    ) -> Translations:
        """Translate every sentence of a subset; none is skipped.

        Args:
            subset: the sentences.
            beam: hypotheses kept at each step, 1 is greedy search.
            lenpen: exponent of the length by which scores are divided.
            log: file for fairseq's output.
            part: batches that were finished before an interruption; new batches are
                added at once.

        Raises:
            UserError: fairseq fails, or returns no hypotheses for a sentence.
        """
        title = f"{subset.name}, beam {beam}"
        batches = part.read()
        known = sum(len(batch["sentences"]) for batch in batches)
        if known < subset.sentences:
            request = {
                "beam": beam,
                "lenpen": lenpen,
                "done": [batch["sentences"][0][0] for batch in batches],
            }

            def keep(batch: Any) -> None:
                part.add(batch)
                batches.append(batch)

            progress = _Progress(title, subset.sentences, known)
            self._ask(subset, request, log, progress, keep)
        return Translations(
            nbest=sort_by_sentence(
                (
                    (number, [Hypothesis(*each) for each in ranked])
                    for batch in batches
                    for number, ranked in batch["sentences"]
                ),
                subset=subset.name,
                sentences=subset.sentences,
            ),
            tokens=sum(batch["tokens"] for batch in batches),
            seconds=round(sum(batch["seconds"] for batch in batches), 3),
        )

    def score_references(self, subset: Subset, *, log: Path) -> list[Reference]:
        """Return the model's log-probability of every reference (teacher forcing).

        Raises:
            UserError: as in :meth:`translate`.
        """
        found: list[tuple[int, Reference]] = []

        def keep(batch: Any) -> None:
            found.extend((n, Reference(*scored)) for n, scored in batch["sentences"])

        progress = _Progress(f"{subset.name}, references", subset.sentences)
        self._ask(subset, {"done": []}, log, progress, keep)
        return sort_by_sentence(found, subset=subset.name, sentences=subset.sentences)

    def _ask(
        self,
        subset: Subset,
        request: Mapping[str, Any],
        log: Path,
        progress: _Progress,
        keep: Callable[[Any], None],
    ) -> None:
        def on_batch(batch: Any) -> None:
            keep(batch)
            progress.add(len(batch["sentences"]))

        outcome = self._worker.ask(
            {"subset": subset.name, **request}, log=log, on_record=on_batch
        )
        if outcome is not None:
            raise UserError(_explain_failure(outcome, subset.name, log))


class _Progress:
    """Logs progress every few seconds."""

    def __init__(self, title: str, sentences: int, done: int = 0) -> None:
        self._title, self._total, self._done = title, f"{sentences:,}", done
        self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        before = f", {done:,} of them done before" if done else ""
        logger.info("%s: %s sentences%s", title, self._total, before)

    def add(self, sentences: int) -> None:
        self._done += sentences
        if time.monotonic() >= self._next_report:
            done = f"{self._done:,}"
            logger.info("%s: %s of %s done", self._title, done, self._total)
            self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS


def _explain_failure(outcome: Outcome, subset: str, log: Path) -> str:
    end = "\n".join(outcome.last_lines)
    match = _TOO_LONG.search(re.sub(r"np\.int\d+\((\d+)\)", r"\1", end))
    if match:
        return (
            f"sentence {int(match[1]) + 1:,} of `{subset}` must fit the model, but it "
            f"and its reference have {match[2]} tokens and the model takes {match[3]}. "
            "Train with larger `max_source_positions` and `max_target_positions`."
        )
    killed = (
        " It was killed, perhaps because memory ran out: a smaller `--max-tokens` "
        "needs less."
        if outcome.status == _KILLED
        else ""
    )
    return (
        f"the fairseq process ended with status {outcome.status}.{killed} Finished "
        f"batches are kept, and the same command resumes the search. Its output is in "
        f"{log}. The last lines:\n{end}"
    )


def make_detokenizer(corpus: PreparedCorpus) -> Callable[[str], str]:
    """Return a function from pieces separated by spaces to one line of text.

    Raises:
        UserError: the pieces are subword-nmt's, after Moses' tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(corpus.spm_model))

    def detokenize(pieces: str) -> str:
        # Byte pieces can decode to line feeds.
        text: str = model.decode(pieces.split(" "))
        return text.replace("\n", " ").replace("\t", " ")

    return detokenize
