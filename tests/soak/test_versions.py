"""Set-up by other versions of Python and with fairseq 0.12.2, then the core tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Mapping

import pytest
from test_places import copy_checkout

pytestmark = pytest.mark.soak

# Operators, beam, fixes of fairseq, and all commands from text to a comparison.
CORE = ("operators_soft_topk", "beam_search", "compat", "end_to_end")
# The last release of fairseq, and the versions that it requires.
RELEASED = {
    "fairseq-fixed": "fairseq==0.12.2 --hash=sha256:"
    "34f1b18426bf3844714534162f065ab733e049597476daa35fffb4d06a92b524",
    "antlr4-python3-runtime": "antlr4-python3-runtime==4.8",
    "hydra-core": "hydra-core==1.0.7",
    "omegaconf": "omegaconf==2.0.6",
}


@pytest.mark.parametrize(
    ("python", "pins"),
    # pip of later versions of Python refuses the metadata of its dependencies.
    [("python3.10", {}), ("python3.12", {}), ("python3.10", RELEASED)],
    ids=["3.10", "3.12", "fairseq 0.12.2"],
)
def test_the_core_tests_pass_after_set_up(
    python: str, pins: Mapping[str, str], tmp_path: Path
) -> None:
    if shutil.which(python) is None:
        pytest.skip(f"no {python}")
    checkout = copy_checkout(tmp_path)
    setup = checkout / "scripts" / "setup.sh"
    if pins:
        requirements = checkout / "requirements.txt"
        lines = requirements.read_text().splitlines()
        lines = [pins.get(line.partition("==")[0], line) for line in lines]
        requirements.write_text("\n".join(lines) + "\n")
        # fairseq 0.12.2 must not see torch while it is built: it would then build two
        # extensions whose sources are not in its package.
        isolated = "--no-deps --require-hashes"
        text = setup.read_text().replace(f"--no-build-isolation {isolated}", isolated)
        setup.write_text(text)
    environment = {**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    tests = [f"tests/test_{name}.py" for name in CORE]
    for command in (
        ["bash", str(setup)],
        [str(checkout / ".venv/bin/python"), "-m", "pytest", "-n0", *tests],
    ):
        result = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
