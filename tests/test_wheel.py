"""The installed wheel works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BUILT_FROM = ("fairseq_plugins", "data", "setup.cfg", "pyproject.toml", "README.md",
              "LICENSE")  # fmt: skip


def run(command: list[object], **options: object) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; the dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy])
    wheels = list(folder.glob("*.whl"))
    assert len(wheels) == 1
    shutil.rmtree(copy)
    run([*pip, "install", "--no-deps", "--target", folder / "site", wheels[0]])
    return folder / "site"


def test_an_installed_wheel_prepares_the_built_in_corpus(site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    options = {"cwd": tmp_path, "env": environment}
    place = run(["-c", "import fairseq_plugins as p; print(p.__file__)"], **options)
    assert Path(place.strip()) == site / "fairseq_plugins" / "__init__.py"
    run(["-m", "fairseq_plugins.corpus", "builtin-en-fr"], **options)
    data = tmp_path / "runs" / "data" / "builtin-en-fr"
    for language in ("en", "fr"):
        expected = (ROOT / "data" / "builtin" / f"train.{language}").read_bytes()
        assert (data / "raw" / f"train.{language}").read_bytes() == expected
    assert (data / "manifest.json").is_file()


def test_an_installed_wheel_knows_recipes_and_test_sets(site, tmp_path):
    program = (
        "from fairseq_plugins.corpus.recipe import load_recipe, recipe_names\n"
        "from fairseq_plugins.evaluation.test_sets import load_test_sets\n"
        "for name in recipe_names():\n"
        "    load_recipe(name)\n"
        "print(len(recipe_names()), len(load_test_sets()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = run(["-c", program], cwd=tmp_path, env=environment).split()
    recipes = list((ROOT / "data" / "recipes").glob("*.yaml"))
    assert int(found[0]) == len(recipes) and int(found[1]) > 0


@pytest.mark.parametrize("package", ["evaluation/report", "serving"])
def test_an_installed_wheel_has_the_files_of_the_pages(site: Path, package: str):
    folder = Path("fairseq_plugins") / package / "assets"
    expected = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*")}
    assert {path.relative_to(site) for path in (site / folder).rglob("*")} == expected
