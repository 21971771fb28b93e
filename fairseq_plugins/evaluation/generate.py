"""Translate binarised subsets, and score their references, by fairseq's own search."""
from __future__ import annotations

import json
import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

import fairseq_plugins
from fairseq_plugins.evaluation.found import Hypothesis, Reference, in_order
from fairseq_plugins.evaluation.search_part import SearchPart
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.process import Outcome
from fairseq_plugins.pipeline.worker import Worker

__all__ = ["Subset", "Translations", "Translator"]

logger = logging.getLogger(__name__)

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
