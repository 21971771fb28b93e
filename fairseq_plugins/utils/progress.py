"""Say now and then how far a long job has come."""

from __future__ import annotations

import logging
import time

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 15.0


class Progress:
    """Counts what is done; jobs of a few seconds report nothing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = 0
        self._started = self._reported = time.monotonic()

    def add(self, number: int) -> None:
        """Count ``number`` more, and report if the last report is long ago."""
        self._done += number
        now = time.monotonic()
        if now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            rate = self._done / (now - self._started)
            done = f"{self._done:,} {self._what}"
            logger.info("      %s, %s a second", done, f"{rate:,.0f}")
