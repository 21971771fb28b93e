"""``scripts/setup.sh``: its help, the interpreters it accepts, and the pins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT


def set_up(python: object, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup.sh"), *options],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("version", ["3.9", "3.13", "2.7"])
def test_another_python_is_refused_by_its_version(version, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    result = set_up(python)
    assert result.returncode == 1
    assert f"must be 3.10, 3.11 or 3.12, but `{python}` is {version}" in result.stderr


def test_a_missing_or_broken_python_is_named(tmp_path):
    assert "`no-such-python` was not found" in set_up("no-such-python").stderr
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert f"`{broken}` does not run" in set_up(broken).stderr


def test_help_changes_nothing_and_a_typing_error_is_refused():
    result = set_up("no-such-python", "--help")
    assert result.returncode == 0
    for text in ("PYTHON", "Downloads", "build of the platform", ".venv/setup.log"):
        assert text in result.stdout
    result = set_up("no-such-python", "--hlep")
    assert result.returncode == 2
    assert "unknown argument `--hlep`" in result.stderr


def test_a_failed_build_names_the_missing_tools(tmp_path):
    text = (ROOT / "scripts" / "setup.sh").read_text()
    function = re.search(r"^explain_failed_build\(\) \{.*?^\}$", text, re.M | re.S)
    assert function is not None
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho /no/such/Python.h\n")
    python.chmod(0o755)
    for name in ("df", "awk", "bash"):  # and no compiler
        (python.parent / name).symlink_to(shutil.which(name) or "")
    result = subprocess.run(
        ["bash", "-c", f"{function[0]}\nvenv={tmp_path}\nexplain_failed_build"],
        env={"PATH": str(python.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Missing: a C++ compiler" in result.stdout
    assert "Missing: Python's headers, /no/such/Python.h" in result.stdout
    assert "disk space" not in result.stdout


@pytest.mark.skipif(
    not (ROOT / ".venv" / ".complete").exists(), reason="no .venv in this checkout"
)
def test_the_second_set_up_does_nothing():
    result = set_up(ROOT / ".venv" / "bin" / "python")
    assert result.returncode == 0
    assert result.stdout == ".venv is ready.\n"


def test_every_pin_is_exact_and_within_the_ranges_of_setup_cfg():
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line.split(" --hash")[0])
            assert re.fullmatch(r"==[\w.+]+", str(requirement.specifier)), line
            version = str(requirement.specifier).removeprefix("==")
            pins[requirement.name.lower()] = version
    section = (ROOT / "setup.cfg").read_text().split("[options.extras_require]")
    needed = section[0].split("install_requires =")[1].split("[options")[0]
    for line in filter(None, map(str.strip, needed.splitlines())):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line


def test_shell_scripts_parse():
    for script in sorted((ROOT / "scripts").glob("*.sh")):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert Path(script).read_text().startswith("#")
