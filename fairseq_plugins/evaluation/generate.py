"""Translate a binarised subset with ``fairseq-generate``."""
from __future__ import annotations

import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import fairseq_plugins
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.process import Outcome, run_logged

__all__ = ["Translations", "best_hypotheses", "translate"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 5.0
_MAX_LISTED = 5

_HYPOTHESIS = re.compile(r"H-(\d+)\t[^\t]*\t(.*)")
_SUMMARY = re.compile(
    r"Translated [\d,]+ sentences \(([\d,]+) tokens\) in ([\d.]+)s "
    r"\(.*?, ([\d.]+) tokens/s\)"
)
_TOO_LONG = re.compile(
    r"Size of sample #(\d+) is invalid \(=(.+?)\) since max_positions=(.+?), skip"
)


@dataclass(frozen=True)
class Translations:
    """What ``fairseq-generate`` gave.

    Attributes:
        pieces: each sentence's best hypothesis, subwords apart, in corpus order.
        tokens: length of all hypotheses with their end marks.
        seconds: time of the search alone, without loading the model.
        tokens_per_second: speed of the search.
    """

    pieces: list[str]
    tokens: int
    seconds: float
    tokens_per_second: float


def translate(
    checkpoint: Path,
    data: Path,
    *,
    languages: tuple[str, str],
    subset: str,
    sentences: int,
    beam: int,
    lenpen: float,
    max_tokens: int,
    log: Path,
) -> Translations:
    """Translate every sentence of a subset, none of them skipped.

    Args:
        checkpoint: a model trained by fairseq.
        data: binarised folder.
        languages: source and target.
        subset: such as ``test``.
        sentences: how many the raw text of the subset has.
        beam: hypotheses kept at each step, 1 is greedy search.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: size of a batch, in tokens.
        log: receives fairseq's whole output.

    Raises:
        UserError: fairseq fails, or does not give one hypothesis per sentence.
    """
    command = [
        sys.executable, "-m", "fairseq_cli.generate", str(data),
        "--user-dir", str(Path(fairseq_plugins.__file__).parent),
        "--source-lang", languages[0], "--target-lang", languages[1],
        "--path", str(checkpoint), "--gen-subset", subset,
        "--beam", str(beam), f"--lenpen={lenpen}",
        "--max-tokens", str(max_tokens), "--log-format", "none",
    ]  # fmt: skip
    watch = _Watch(f"{subset}, beam {beam}", sentences)
    outcome = run_logged(command, log=log, on_line=watch)
    if outcome.status:
        raise UserError(_why_failed(outcome, subset, log))
    if watch.summary is None:
        raise UserError(f"fairseq-generate did not say that it ended; see {log}.")
    tokens, seconds, speed = watch.summary.groups()
    return Translations(
        pieces=best_hypotheses(watch.hypotheses, subset=subset, sentences=sentences),
        tokens=int(tokens.replace(",", "")),
        seconds=float(seconds),
        tokens_per_second=float(speed),
    )


def best_hypotheses(lines: Iterable[str], *, subset: str, sentences: int) -> list[str]:
    """Return the first hypothesis of each sentence from fairseq's ``H-`` lines.

    fairseq translates in order of length and lists the best hypothesis first.

    Args:
        lines: output of ``fairseq-generate``; other lines are ignored.
        subset: for messages.
        sentences: how many there must be, numbered from 0.

    Raises:
        UserError: some have no hypothesis, or there are more than there should be.
    """
    found: dict[int, str] = {}
    for line in lines:
        match = _HYPOTHESIS.match(line)
        if match:
            found.setdefault(int(match[1]), match[2])
    missing = [number + 1 for number in range(sentences) if number not in found]
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        raise UserError(
            f"fairseq-generate gave no translation of {len(missing):,} of the "
            f"{sentences:,} sentences of `{subset}`: {listed}"
            f"{', ...' if len(missing) > _MAX_LISTED else ''}. The binarised data and "
            "the raw text do not belong together: prepare the corpus anew."
        )
    if len(found) > sentences:
        raise UserError(
            f"`{subset}` has {len(found):,} binarised but {sentences:,} raw sentences: "
            "prepare the corpus anew."
        )
    return [found[number] for number in range(sentences)]


class _Watch:
    """Collect the lines that matter and report progress every few seconds."""

    def __init__(self, name: str, sentences: int) -> None:
        self.hypotheses: list[str] = []
        self.summary: re.Match[str] | None = None
        self._name = name
        self._sentences = sentences
        self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        logger.info("%s: translating %s sentences", name, f"{sentences:,}")

    def __call__(self, line: str) -> None:
        if line.startswith("H-"):
            self.hypotheses.append(line)
        else:
            self.summary = _SUMMARY.search(line) or self.summary
        if time.monotonic() >= self._next_report:
            done, total = len(self.hypotheses), self._sentences
            logger.info("%s: %s of %s done", self._name, f"{done:,}", f"{total:,}")
            self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS


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
