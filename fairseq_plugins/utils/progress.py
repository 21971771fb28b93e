"""The progress of a long job: a bar on a terminal, otherwise an occasional line."""

from __future__ import annotations

import io
import logging
import sys

from tqdm import tqdm

__all__ = ["progress_bar"]

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


def progress_bar(
    unit: str, *, total: int | None = None, done: int = 0, title: str | None = None
) -> tqdm:
    """Return a bar, a context manager, whose ``update(n)`` adds ``n`` to the count.

    If standard error is not a terminal, the bar logs a line every 15 seconds, so short
    jobs log nothing.

    Args:
        unit: name of the things that are counted.
        total: their number, if known.
        done: number of things that were done earlier.
        title: text before the bar.
    """
    is_terminal = sys.stderr.isatty()
    return _Bar(
        desc=title,
        total=total,
        initial=done,
        unit=f" {unit}",
        unit_scale=True,
        miniters=1,
        mininterval=0.2 if is_terminal else SECONDS_BETWEEN_LINES,
        delay=0 if is_terminal else SECONDS_BETWEEN_LINES,
        ncols=None if is_terminal else 0,  # 0: numbers only
        file=sys.stderr if is_terminal else _LogLines(),
        leave=False,
    )


class _Bar(tqdm):
    monitor_interval = 0  # no thread: the jobs fork


class _LogLines(io.StringIO):
    """Logs each state of a bar as a line."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.info("      %s", text.strip())
        return len(text)
