"""The output of ``fairseq-train``: its measures, its progress and its error."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from typing import Any, Iterable, NamedTuple

from tqdm import tqdm

from fairseq_plugins.utils.progress import progress_bar

__all__ = ["LogLine", "TrainingProgress", "find_error", "parse_line"]

logger = logging.getLogger(__name__)

# "train_inner" comes every --log-interval updates, the others once per epoch.
_LINE = re.compile(r"\| INFO \| (train_inner|train|valid[^ ]*) \| (.*)")
_PAIR = re.compile(r"(\w+)(?:=| )([-+\d.e]+|inf|nan)(?=,| \||$)")
_PLACE = re.compile(r"epoch (\d+)(?::\s+\d+ / (\d+))?")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_SECONDS_BETWEEN_LINES = 600.0


class LogLine(NamedTuple):
    """Measures in the log: ``kind`` is train_inner, train, or a validation subset."""

    kind: str
    values: dict[str, float]
    epoch_updates: int | None = None  # updates per epoch

    @property
    def is_validation(self) -> bool:
        return not self.kind.startswith("train")


def parse_line(line: str) -> LogLine | None:
    """Return the measures of a line in one of fairseq's formats, if it has some.

    The number of updates is ``num_updates``.
    """
    match = _LINE.search(line)
    if match is None:
        return None
    kind, text = match[1], match[2].strip()
    if text.startswith("{"):
        try:
            given: dict[str, Any] = json.loads(text)
        except ValueError:  # a killed run can end within a line
            return None
        pairs: Iterable[tuple[str, Any]] = given.items()
    else:
        pairs = _PAIR.findall(text)
    values = {}
    for name, value in pairs:
        try:
            values[name.removeprefix(f"{kind}_")] = float(value)
        except (TypeError, ValueError):
            continue
    place = _PLACE.match(text)
    if place:
        values["epoch"] = float(place[1])
    size = int(place[2]) if place and place[2] else None
    return LogLine(kind, values, size)


class TrainingProgress:
    """Shows a training: a progress line on a terminal, otherwise a few plain lines.

    Call it with each line of the output, and use it as a context manager.

    Args:
        max_update: the number of updates at the end, if it is limited.
        max_epoch: the number of epochs at the end, if it is limited.
    """

    def __init__(self, *, max_update: int = 0, max_epoch: int = 0) -> None:
        self._total = max_update or None
        self._max_epoch = max_epoch
        self._bar: tqdm | None = None
        self._postfix: dict[str, str] = {}
        self._last_update, self._last_time = 0.0, time.monotonic()
        self._validation = ""

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def summary(self) -> str:
        """Return the result of the last validation, after a colon; "" without any."""
        return f": validation {self._validation}" if self._validation else ""

    def __call__(self, line: str) -> None:
        parsed = parse_line(line)
        if parsed is None or not math.isfinite(parsed.values.get("num_updates", 0.0)):
            return
        if parsed.epoch_updates and self._max_epoch:
            by_epochs = parsed.epoch_updates * self._max_epoch
            self._total = min(self._total or by_epochs, by_epochs)
        if parsed.is_validation:
            self._validation = _describe(parsed.values)
            if "bleu" in parsed.values:
                self._postfix["BLEU"] = f"{parsed.values['bleu']:.2f}"
        elif parsed.kind == "train_inner":
            self._postfix["loss"] = f"{parsed.values.get('loss', math.nan):.3f}"
            self._postfix["words/s"] = f"{parsed.values.get('wps', math.nan):,.0f}"
        else:
            return
        if sys.stderr.isatty():
            self._draw(parsed)
        elif self._is_due(parsed):
            self._report(parsed)

    def _draw(self, line: LogLine) -> None:
        update = int(line.values.get("num_updates", 0))
        if self._bar is None:
            self._bar = progress_bar("updates", total=self._total, done=update)
        self._bar.total = self._total
        self._bar.set_description(f"epoch {line.values.get('epoch', 1):.0f}", False)
        self._bar.set_postfix(self._postfix, refresh=False)
        self._bar.update(update - self._bar.n)
        if line.is_validation:
            with tqdm.external_write_mode(file=sys.stderr):
                self._report(line)

    def _is_due(self, line: LogLine) -> bool:
        """Return whether a third of the training or ten minutes have passed."""
        if time.monotonic() - self._last_time >= _SECONDS_BETWEEN_LINES:
            return True
        updates = line.values.get("num_updates", 0) - self._last_update
        return bool(line.is_validation and updates >= (self._total or math.inf) / 3)

    def _report(self, line: LogLine) -> None:
        update = line.values.get("num_updates", 0.0)
        self._last_update, self._last_time = update, time.monotonic()
        total = f" of {self._total:,}" if self._total else ""
        logger.info(
            "epoch %.0f, update %s%s: %s%s",
            line.values.get("epoch", 1),
            f"{update:,.0f}",
            total,
            "validation " if line.is_validation else "training ",
            _describe(line.values),
        )


def _describe(values: dict[str, float]) -> str:
    names = {"loss": "loss {:.3f}", "bleu": "BLEU {:.2f}"}
    shown = [
        text.format(values[name]) for name, text in names.items() if name in values
    ]
    return ", ".join(shown)


def find_error(output: str) -> str:
    """Return the error that ended a program, from its output.

    That is the first error in the first chain of tracebacks. The others were raised
    while it was handled, or by processes that ended because of it. Without a traceback
    it is the last line that is not empty.
    """
    lines = [_RANK.sub("", line) for line in output.splitlines()]
    in_traceback = False
    for index, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last):"):
            in_traceback = True
        elif in_traceback and line and not line[0].isspace():
            in_traceback = False
            if not line.rstrip().endswith("ProcessRaisedException:"):  # holds another
                more = lines[index + 1 : index + 2]
                detail = " ".join(each.strip() for each in more if each[:1] == "\t")
                return f"{line.strip()} {detail}".rstrip(" .")
    return next(filter(str.strip, reversed(lines)), "no output").strip().rstrip(".")
