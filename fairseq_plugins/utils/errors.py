"""Errors that a person can act on, and the one place that prints them."""

from __future__ import annotations

import difflib
import errno
import sys
from typing import Callable, Iterable, NoReturn

__all__ = ["UserError", "did_you_mean", "run_command_line"]


class UserError(Exception):
    """Input or surroundings are wrong; the message names the thing and the rule.

    Command lines print the message without a traceback and exit with status 2.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""


def run_command_line(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit: 0, its own status, 2 for a user's error, 130 for Ctrl-C.

    A full disk is reported like a user's error, since only the user can mend it.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        sys.exit(_fail(f"{error.strerror}{where}. Free some space and run again.", 1))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; run the same command to go on", 130))


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
