"""Take a folder for results: never a stranger's, and never for two runs at once."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import Iterator

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["claimed"]

logger = logging.getLogger(__name__)

# It also marks a folder as ours, so it stays when the run has ended.
_LOCK = ".prepare.lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder if need be and keep other runs out of it.

    Files are replaced and deleted in it, so that it must be new, empty or from an
    earlier run.

    Raises:
        UserError: the folder cannot be made, is in use or holds something else.
    """
    # fairseq splits lists of paths at these.
    whole = folder.absolute()
    for separator in {",", os.pathsep} & set(str(whole)):
        raise UserError(f"`--out` must not contain `{separator}`, but is `{whole}`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_ours = (folder / _LOCK).exists() or not any(folder.iterdir())
        if not is_ours:
            raise UserError(
                "`--out` must be a new or empty folder or one that scripts/prepare.py "
                f"made, but `{folder}` holds other files."
            )
        lock = open(folder / _LOCK, "w")
    except FileExistsError:
        raise UserError(f"`--out` must be a folder, not a file: `{folder}`.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"`--out` must be a folder that can be written, but `{folder}` is not: "
            f"{error.strerror}."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another scripts/prepare.py is at work in `{folder}`."
            ) from None
        except OSError:
            logger.warning("`%s` cannot be locked: start one run at a time.", folder)
        yield
