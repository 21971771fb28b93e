"""COMET by the user's own installation of it, in another environment.

unbabel-comet brings gigabytes and versions of its own, so that it is never imported
here: its command line is called, and what it prints is read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_lines
from fairseq_plugins.utils.process import run_logged

__all__ = ["DEFAULT_MODEL", "Comet", "comet_score"]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Unbabel/wmt22-comet-da"

_SCORE = re.compile(r"score:\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)\s*$")


@dataclass(frozen=True)
class Comet:
    """Where COMET is and which of its models to use.

    Attributes:
        command: a ``comet-score``, or a Python that can ``import comet``.
        model: name or path of a model, as ``comet-score --model`` takes it.
        gpus: as ``comet-score --gpus``.
    """

    command: str
    model: str = DEFAULT_MODEL
    gpus: int = 0

    def arguments(self) -> list[str]:
        """Return the command without files.

        Raises:
            UserError: there is no such program.
        """
        program = shutil.which(os.path.expanduser(self.command))
        if program is None:
            raise UserError(
                "COMET must be given as a `comet-score` or the Python of an environment"
                f" that has it, but `{self.command}` is no program."
            )
        start = [program]
        if Path(program).name.startswith("python"):
            start += ["-m", "comet.cli.score"]
        return [*start, "--model", self.model, "--gpus", str(self.gpus)]


def comet_score(
    comet: Comet,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
) -> float:
    """Return COMET's system score, as it prints it: about 0 to 1 by current models.

    Args:
        comet: the installation.
        sources: raw text that was translated.
        hypotheses: plain text.
        references: raw text.

    Raises:
        UserError: the program is missing, fails or prints no score.
    """
    arguments = comet.arguments()
    logger.info("COMET: %s", comet.model)
    with tempfile.TemporaryDirectory(prefix="comet-") as name:
        folder = Path(name)
        texts = {"-s": sources, "-t": hypotheses, "-r": references}
        for option, lines in texts.items():
            # COMET's own reader splits at every Unicode line separator.
            path = folder / f"text{option}.txt"
            write_lines(path, [" ".join(line.splitlines()) for line in lines])
            arguments += [option, str(path)]
        lines_out: list[str] = []
        log = folder / "log"
        command = [*arguments, "--only_system", "--quiet"]
        outcome = run_logged(command, log=log, on_line=lines_out.append)
    end = "\n".join(outcome.last_lines)
    if outcome.status:
        raise UserError(f"COMET ended with status {outcome.status}:\n{end}")
    found = [match for match in map(_SCORE.search, lines_out) if match]
    if not found:
        raise UserError(f"COMET printed no `score: NUMBER`. It said:\n{end}")
    return float(found[-1][1])
