"""What a search finds, and what a model thinks of references, in corpus order.

The finished batches of a search, kept until its scores are.

Translate binarised subsets, and score their references, by fairseq's own search.

Text out of the pieces that a model translates into.
"""

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
    "Reference",
    "SearchPart",
    "Subset",
    "Translations",
    "Translator",
    "detokeniser",
    "in_order",
]

logger = logging.getLogger(__name__)

_MAX_LISTED = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Hypothesis:
    """One way to translate a sentence.

    Attributes:
        score: natural logarithm of its probability, divided by its length (with end
            mark) to the power of lenpen.
        pieces: subwords with spaces between them.
    """

    score: float
    pieces: str


@dataclass(frozen=True)
class Reference:
    """What the model thinks of a reference.

    Attributes:
        log_prob: natural logarithm of its probability.
        tokens: its length in subwords, with end mark.
    """

    log_prob: float
    tokens: int


def in_order(found: Iterable[tuple[int, T]], *, subset: str, sentences: int) -> list[T]:
    """Return what was found for each sentence, in corpus order.

    Args:
        found: with numbers from 0, in any order.
        subset: for messages.
        sentences: how many there must be.

    Raises:
        UserError: nothing was found for some, or there are more than there should be.
    """
    by_number = dict(found)
    missing = [n + 1 for n in range(sentences) if n not in by_number]
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        raise UserError(
            f"fairseq gave nothing for {len(missing):,} of the {sentences:,} sentences "
            f"of `{subset}`: {listed}{', ...' if len(missing) > _MAX_LISTED else ''}. "
            "The binarised data and the raw text do not belong together: prepare the "
            "corpus anew."
        )
    if len(by_number) > sentences:
        raise UserError(
            f"`{subset}` has {len(by_number):,} binarised but {sentences:,} raw "
            "sentences: prepare the corpus anew."
        )
    return [by_number[number] for number in range(sentences)]


Batch = dict[str, Any]


class SearchPart:
    """A file of lines of JSON: what is searched, and then the batches that are done.

    Args:
        path: the file, which need not be there.
        identity: all that the batches depend on. The file of anything else is of no
            use, and is removed.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._head = json.dumps(identity, sort_keys=True).encode()

    def read(self) -> list[Batch]:
        """Return the batches that are done; a line that a kill cut short is none."""
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
        # Of two processes at one time both may have done a batch.
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


_SECONDS_BETWEEN_REPORTS = 5.0
_KILLED = 137

# It must find this very package, wherever it is started.
_WORKER = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from fairseq_plugins.evaluation.search_worker import main
main()
"""
_TOO_LONG = re.compile(
    r"Size of sample #(\d+) is invalid \(=(.+?)\) since max_positions=(.+?), skip"
)


@dataclass(frozen=True)
class Subset:
    """What is to be translated.

    Attributes:
        name: fairseq's, such as ``test``.
        sentences: how many its raw text has.
    """

    name: str
    sentences: int


@dataclass(frozen=True)
class Translations:
    """What a search found.

    Attributes:
        nbest: for each sentence in corpus order all hypotheses of the beam that ended,
            best first.
        tokens: length of the best hypotheses with their end marks.
        seconds: time of the search alone, without loading the model.
    """

    nbest: list[list[Hypothesis]]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return round(self.tokens / self.seconds, 2) if self.seconds else 0.0


class Translator:
    """A checkpoint on a corpus; a context manager.

    One process loads them, once, at the first search or scoring of references.

    Args:
        checkpoint: a model trained by fairseq.
        data: binarised folder.
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
        self, subset: Subset, *, beam: int, lenpen: float, log: Path, part: SearchPart
    ) -> Translations:
        """Translate every sentence of a subset, none of them skipped.

        Args:
            subset: the sentences.
            beam: hypotheses kept at each step, 1 is greedy search.
            lenpen: exponent of the length that scores are divided by.
            log: receives what fairseq prints.
            part: what was found before an interruption; it gets what is found now, as
                soon as it is. That of a finished search needs no process.

        Raises:
            UserError: fairseq fails, or does not give hypotheses for every sentence.
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
            nbest=in_order(
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
        """Return the model's log-probability of every reference, by teacher forcing.

        Raises:
            UserError: as :meth:`translate`.
        """
        found: list[tuple[int, Reference]] = []

        def keep(batch: Any) -> None:
            found.extend((n, Reference(*scored)) for n, scored in batch["sentences"])

        progress = _Progress(f"{subset.name}, references", subset.sentences)
        self._ask(subset, {"done": []}, log, progress, keep)
        return in_order(found, subset=subset.name, sentences=subset.sentences)

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
            raise UserError(_why_failed(outcome, subset.name, log))


class _Progress:
    """Report progress every few seconds."""

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


def _why_failed(outcome: Outcome, subset: str, log: Path) -> str:
    end = "\n".join(outcome.last_lines)
    match = _TOO_LONG.search(end)
    if match:
        return (
            f"sentence {int(match[1]) + 1:,} of `{subset}` must fit the model, but it "
            f"and its reference have {match[2]} tokens and the model takes {match[3]}. "
            "Train with greater `max_source_positions` and `max_target_positions`."
        )
    killed = (
        " It was killed, perhaps for want of memory: a smaller `--max-tokens` needs "
        "less."
        if outcome.status == _KILLED
        else ""
    )
    return (
        f"the process of fairseq ended with status {outcome.status}.{killed} What it "
        f"had found is kept, and the same command goes on from there. All of its "
        f"output is in {log}; its last lines:\n{end}"
    )


def detokeniser(corpus: PreparedCorpus) -> Callable[[str], str]:
    """Return what makes one line of text of pieces with spaces between them.

    Raises:
        UserError: subword-nmt made the pieces, after Moses' tokeniser.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(corpus.spm_model))

    def detokenised(pieces: str) -> str:
        # A model with pieces for single bytes can make line feeds.
        text: str = model.decode(pieces.split(" "))
        return text.replace("\n", " ").replace("\t", " ")

    return detokenised
