"""Errors that users can correct, and the function that prints them."""

from __future__ import annotations

import difflib
import errno
import sys
from typing import Callable, Iterable, NoReturn

__all__ = ["UserError", "did_you_mean", "run_command_line"]


class UserError(Exception):
    """Wrong input or a wrong environment; the message names the value and the rule.

    Command lines print the message without a traceback and exit with status 2.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the closest choice, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""


def run_command_line(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its status, 2 for ``UserError`` or 130 for Ctrl-C.

    A full disk is also reported without a traceback, because only users can fix it.
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
        sys.exit(_fail("interrupted; run the same command to continue", 130))


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
