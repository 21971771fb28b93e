"""COMET scores, computed by an installation in another environment.

unbabel-comet needs gigabytes and other versions of packages. Therefore it is never
imported: its command line is called and its output parsed.
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
    """An installation of COMET and one of its models.

    Attributes:
        command: a ``comet-score``, or a Python that has the package ``comet``.
        model: name or path of a model, as ``comet-score --model`` takes it.
        gpus: as ``comet-score --gpus``.
    """

    command: str
    model: str = DEFAULT_MODEL
    gpus: int = 0

    def command_line(self) -> list[str]:
        """Return the command without files.

        Raises:
            UserError: the program does not exist.
        """
        program = shutil.which(os.path.expanduser(self.command))
        if program is None:
            raise UserError(
                "COMET must be given as a `comet-score` or the Python of an environment"
                f" that has it, but `{self.command}` does not exist."
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
    """Return COMET's score of a system, about 0 to 1 with current models.

    Args:
        comet: the installation.
        sources: raw source text.
        hypotheses: plain text.
        references: raw text.

    Raises:
        UserError: the program is missing, fails or prints no score.
    """
    arguments = comet.command_line()
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
        raise UserError(f"COMET printed no `score: NUMBER`. Its output:\n{end}")
    return float(found[-1][1])
