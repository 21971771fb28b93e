"""Translate a binarised subset, or score its references, by ``fairseq-generate``."""
from __future__ import annotations

import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import fairseq_plugins
from fairseq_plugins.evaluation.generate_output import (
    Hypothesis,
    Reference,
    hypotheses_of,
    references_of,
)
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.process import Outcome, run_logged

__all__ = ["Subset", "Translations", "score_references", "translate"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 5.0

_SUMMARY = re.compile(
    r"Translated [\d,]+ sentences \(([\d,]+) tokens\) in ([\d.]+)s "
    r"\(.*?, ([\d.]+) tokens/s\)"
)
_TOO_LONG = re.compile(
    r"Size of sample #(\d+) is invalid \(=(.+?)\) since max_positions=(.+?), skip"
)
_OF_A_HYPOTHESIS = ("H-", "D-", "P-")


@dataclass(frozen=True)
class Subset:
    """What is to be translated.

    Attributes:
        data: binarised folder.
        languages: source and target.
        name: fairseq's, such as ``test``.
        sentences: how many its raw text has.
    """

    data: Path
    languages: tuple[str, str]
    name: str
    sentences: int


@dataclass(frozen=True)
class Translations:
    """What ``fairseq-generate`` gave.

    Attributes:
        nbest: for each sentence in corpus order all hypotheses of the beam that ended,
            best first.
        tokens: length of the best hypotheses with their end marks.
        seconds: time of the search alone, without loading the model.
        tokens_per_second: speed of the search.
    """

    nbest: list[list[Hypothesis]]
    tokens: int
    seconds: float
    tokens_per_second: float


def translate(
    checkpoint: Path,
    subset: Subset,
    *,
    beam: int,
    lenpen: float,
    max_tokens: int,
    log: Path,
) -> Translations:
    """Translate every sentence of a subset, none of them skipped.

    Args:
        checkpoint: a model trained by fairseq.
        subset: the sentences.
        beam: hypotheses kept at each step, 1 is greedy search.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: size of a batch, in tokens.
        log: receives fairseq's output, of hypotheses only each sentence's best.

    Raises:
        UserError: fairseq fails, or does not give hypotheses for every sentence.
    """
    options = ["--beam", str(beam), "--nbest", str(beam), f"--lenpen={lenpen}"]
    title = f"{subset.name}, beam {beam}"
    watch = _Watch(title, subset.sentences, kinds=("H-",))
    _generate(checkpoint, subset, options, max_tokens, watch=watch, log=log)
    if watch.summary is None:
        raise UserError(f"fairseq-generate did not say that it ended; see {log}.")
    tokens, seconds, speed = watch.summary.groups()
    return Translations(
        nbest=hypotheses_of(
            watch.lines, subset=subset.name, sentences=subset.sentences
        ),
        tokens=int(tokens.replace(",", "")),
        seconds=float(seconds),
        tokens_per_second=float(speed),
    )


def score_references(
    checkpoint: Path, subset: Subset, *, max_tokens: int, log: Path
) -> list[Reference]:
    """Return the model's log-probability of every reference, by teacher forcing.

    Raises:
        UserError: as :func:`translate`.
    """
    title = f"{subset.name}, references"
    watch = _Watch(title, subset.sentences, kinds=("H-", "P-"))
    options = ["--score-reference"]
    _generate(checkpoint, subset, options, max_tokens, watch=watch, log=log)
    return references_of(watch.lines, subset=subset.name, sentences=subset.sentences)


def _generate(
    checkpoint: Path,
    subset: Subset,
    options: Sequence[str],
    max_tokens: int,
    *,
    watch: _Watch,
    log: Path,
) -> None:
    source, target = subset.languages
    command = [
        sys.executable, "-m", "fairseq_cli.generate", str(subset.data),
        "--user-dir", str(Path(fairseq_plugins.__file__).parent),
        "--source-lang", source, "--target-lang", target,
        "--path", str(checkpoint), "--gen-subset", subset.name, *options,
        "--max-tokens", str(max_tokens), "--log-format", "none",
    ]  # fmt: skip
    outcome = run_logged(command, log=log, on_line=watch, is_logged=_OnlyTheBest())
    if outcome.status:
        raise UserError(_why_failed(outcome, subset.name, log))


class _Watch:
    """Collect the lines that matter and report progress every few seconds."""

    def __init__(self, title: str, sentences: int, *, kinds: tuple[str, ...]) -> None:
        self.lines: list[str] = []
        self.summary: re.Match[str] | None = None
        self._kinds = kinds
        self._title = title
        self._sentences = sentences
        self._done = 0
        self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        logger.info("%s: %s sentences", title, f"{sentences:,}")

    def __call__(self, line: str) -> None:
        if line.startswith(self._kinds):
            self.lines.append(line)
        elif line.startswith("S-"):
            self._done += 1
        else:
            self.summary = _SUMMARY.search(line) or self.summary
        if time.monotonic() >= self._next_report:
            done, total = f"{self._done:,}", f"{self._sentences:,}"
            logger.info("%s: %s of %s done", self._title, done, total)
            self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS


class _OnlyTheBest:
    """Tell which lines go to the log: of 50 hypotheses it would only get long."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, line: str) -> bool:
        if not line.startswith(_OF_A_HYPOTHESIS):
            return True
        name = line.partition("\t")[0]
        is_first = name not in self._seen
        self._seen.add(name)
        return is_first


def _why_failed(outcome: Outcome, subset: str, log: Path) -> str:
    match = _TOO_LONG.search("\n".join(outcome.last_lines))
    if match:
        return (
            f"sentence {int(match[1]) + 1:,} of `{subset}` must fit the model, but it "
            f"and its reference have {match[2]} tokens and the model takes {match[3]}. "
            "Train with greater `max_source_positions` and `max_target_positions`."
        )
    end = "\n".join(outcome.last_lines)
    return (
        f"fairseq-generate ended with status {outcome.status}. All of its output is in "
        f"{log}; its last lines:\n{end}"
    )
