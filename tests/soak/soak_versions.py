"""The set-up by other Pythons and with fairseq 0.12.2, and the core of the tests."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Mapping

from soak_places import copy_checkout

__all__ = ["PARTS", "counts", "repin"]

logger = logging.getLogger("fairseq_plugins.soak")

# Operators, beam, mends of fairseq, and all commands from text to a comparison.
_CORE = ("operators_soft_topk", "beam_search", "compat", "end_to_end")
_VERSIONS = (
    "import json, platform, torch, fairseq; "
    "print(json.dumps([platform.python_version(), torch.__version__, "
    "fairseq.__version__]))"
)
# The last release of fairseq, and the versions of what it builds on that it asks for.
_RELEASED = {
    "fairseq-fixed": "fairseq==0.12.2 --hash=sha256:"
    "34f1b18426bf3844714534162f065ab733e049597476daa35fffb4d06a92b524",
    "antlr4-python3-runtime": "antlr4-python3-runtime==4.8",
    "hydra-core": "hydra-core==1.0.7",
    "omegaconf": "omegaconf==2.0.6",
}


def _part(name: str, version: str, *, pins: Mapping[str, str]) -> Any:
    """Return a part of the soak: set-up by a Python, with other pins if any."""

    def run(work: Path) -> Any:
        found = shutil.which(f"python{version}")
        if found is None:
            return {"not_tried": f"no python{version} on PATH", "passed": False}
        return _set_up_and_test(found, (work / name).resolve(), pins)

    run.__doc__ = f"Set-up by Python {version} ({name}) and the core of the tests."
    return run


def _set_up_and_test(
    python: str, folder: Path, pins: Mapping[str, str]
) -> dict[str, Any]:
    """Make `folder/checkout` and its `.venv` (what is there is kept), and test."""
    checkout = (folder / "checkout").resolve()
    if not (checkout / "scripts").exists():
        copy_checkout(folder)
    if pins:
        repin(checkout / "requirements.txt", pins)
        _isolate_builds(checkout / "scripts" / "setup.sh")
    setup = ["bash", str(checkout / "scripts" / "setup.sh")]
    problem = _problem(setup, checkout, PYTHON=python)
    if problem:
        return {"set_up": problem, "passed": False}
    own = str(checkout / ".venv" / "bin" / "python")
    names = json.loads(subprocess.check_output([own, "-c", _VERSIONS], cwd=checkout))
    tests = [f"tests/test_{name}.py" for name in _CORE]
    result = subprocess.run(
        [own, "-m", "pytest", "-n0", *tests], cwd=checkout, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (folder / "tests.log").write_text(result.stdout + result.stderr)
    found = counts(result.stdout)
    versions = dict(zip(("tried_python", "tried_torch", "tried_fairseq"), names))
    good = result.returncode == 0 and found.get("tests_passed", 0) > 0
    return {**versions, "core": list(_CORE), **found, "passed": good}


def repin(requirements: Path, pins: Mapping[str, str]) -> None:
    """Replace the lines of packages in a file of requirements; done twice, no harm."""
    lines = requirements.read_text().splitlines()
    lines = [pins.get(line.partition("==")[0], line) for line in lines]
    requirements.write_text("\n".join(lines) + "\n")


def _isolate_builds(setup: Path) -> None:
    """Have fairseq built where it does not see torch.

    Where it does, it builds two extensions more, whose sources 0.12.2 has left out of
    its package.
    """
    script = setup.read_text()
    fairseqs = "--no-deps --require-hashes"
    setup.write_text(script.replace(f"--no-build-isolation {fairseqs}", fairseqs))


def counts(printed: str) -> dict[str, Any]:
    """Return how many tests passed, failed and so on, and the names of the failed."""
    last = (printed.strip().splitlines() or [""])[-1]
    kinds = re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)
    found: dict[str, Any] = {f"tests_{kind}": int(count) for count, kind in kinds}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.M)
    return {**found, **({"failed": failed} if failed else {})}


def _problem(command: list[str], folder: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    end = (result.stdout + result.stderr).splitlines()[-15:]
    return "\n".join(end) if result.returncode else ""


PARTS = {
    name: _part(name, version, pins=pins)
    for name, version, pins in (
        ("python3.10", "3.10", {}),
        ("python3.12", "3.12", {}),
        # Its dependencies' metadata is refused by the pip of later Pythons.
        ("fairseq0.12.2", "3.10", _RELEASED),
    )
}
