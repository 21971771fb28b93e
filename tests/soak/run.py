"""Put the project through faults and hostile input, and keep what was measured.

    python tests/soak/run.py [SECTION[.PART] ...] [--again] [--kills 20] [--work DIR]

Sections consist of parts, and each part's figures are merged into
results/reliability.json when it ends; parts that are there already are not done again.
A part that did not pass stands there with "passed": false, and the status is then 1.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import platform
import sys
import time
from pathlib import Path
from typing import Any, Callable, Mapping

import soak_distribution
import soak_hostile
import soak_memory
import soak_numbers
import soak_overflow
import soak_places
import soak_resume
import soak_versions
from soak_common import ROOT, keep_part, known_parts

from fairseq_plugins.utils.errors import UserError, did_you_mean, run_command_line

SECTIONS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "resume": soak_resume.PARTS,
    "hostile": soak_hostile.PARTS,
    "numbers": {**soak_numbers.PARTS, **soak_overflow.PARTS},
    "memory": soak_memory.PARTS,
    "places": soak_places.PARTS,
    "versions": soak_versions.PARTS,
    "distribution": soak_distribution.PARTS,
}
logger = logging.getLogger("fairseq_plugins.soak")


def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    arguments = _parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in vars(arguments).items()
             if key in ("work", "kills", "seed", "examples", "updates")}  # fmt: skip
    failed = []
    for section, part in _chosen(arguments.sections or list(SECTIONS)):
        known = known_parts(arguments.results, section).get(part)
        if known is not None and not arguments.again:
            logger.info("%s.%s: known already", section, part)
        else:
            known = _run(section, part, given)
            keep_part(arguments.results, section, part, known)
        if not known["passed"]:
            failed.append(f"{section}.{part}")
    if failed:
        logger.error("not passed: %s", ", ".join(failed))
    return 1 if failed else 0


def _run(section: str, part: str, given: Mapping[str, Any]) -> dict[str, Any]:
    job = SECTIONS[section][part]
    logger.info("%s.%s: %s", section, part, (inspect.getdoc(job) or "").split("\n")[0])
    begin = time.monotonic()
    asked = inspect.signature(job).parameters
    figures = job(**{key: value for key, value in given.items() if key in asked})
    seconds = round(time.monotonic() - begin, 1)
    logger.info("%s.%s: %s", section, part, figures)
    return {**figures, "seconds": seconds, **_versions()}


def _versions() -> dict[str, str]:
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def _chosen(names: list[str]) -> list[tuple[str, str]]:
    parts = {f"{s}.{p}": (s, p) for s, found in SECTIONS.items() for p in found}
    chosen: list[tuple[str, str]] = []
    for name in names:
        if name in SECTIONS:
            chosen += [(name, part) for part in SECTIONS[name]]
        elif name in parts:
            chosen.append(parts[name])
        else:
            known = [*SECTIONS, *parts]
            raise UserError(
                f"there is no section `{name}`.{did_you_mean(name, known)} There are "
                f"{', '.join(known)}."
            )
    return chosen


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, root = parser.add_argument, ROOT
    add("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    add("--again", action="store_true", help="do what is known once more")
    add("--kills", type=int, default=20, metavar="N", help="of each program")
    add("--examples", type=int, default=10_000, metavar="N", help="to each reader")
    add("--updates", type=int, default=0, metavar="N", help="instead of each part's")
    add("--seed", type=int, default=1, metavar="N")
    add("--work", type=Path, default=root / "runs" / "soak", metavar="DIR")
    add("--results", type=Path, default=root / "results" / "reliability.json",
        metavar="FILE")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
