"""From text to a report in unusual surroundings: the results are the usual ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, Sequence

import pytest
from conftest import ROOT
from soak_tools import (
    TRAINING,
    differences,
    files_in,
    last_checkpoint,
    write_corpus,
    write_yaml,
)

pytestmark = pytest.mark.soak

NOBODY = 64_999  # a user id without a name, as in a container
NOT_COPIED = (".git", ".venv", "runs", "build", "results", "*.egg-info", ".*cache",
              "__pycache__", ".hypothesis")  # fmt: skip
CONFIG = {**TRAINING, "criterion": "soft_beam_search", "beam": 2, "beam_max_len_b": 3,
          "max_update": 4}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Surroundings of the commands.

    Attributes:
        folder: name of the folder with checkout, text and results.
        variables: changes of the environment; None removes a variable.
        relative: paths are relative, from another folder.
        wrapper: the command that starts the others, given the checkout.
    """

    folder: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    relative: bool = False
    wrapper: Callable[[Path], Sequence[str]] = lambda checkout: ()


def mount_read_only(checkout: Path) -> Sequence[str]:
    """Mount the checkout read-only: root may write whatever the modes are."""
    script = (
        'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && '
        'if touch "$0/written" 2>/dev/null; then exit 99; fi; exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(checkout)]


def become_nobody(checkout: Path) -> Sequence[str]:
    # It may read all, since Python may lie in the home folder of root.
    only = "-all,+dac_read_search"
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            f"--inh-caps={only}", f"--ambient-caps={only}"]  # fmt: skip


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}  # fmt: skip
PLACES = {
    "spaces and letters": Place("with spaces and Ümläuts 日本語"),
    "read-only": Place("read_only", wrapper=mount_read_only),
    "no home": Place("no_home", {"HOME": None, "XDG_CACHE_HOME": None}),
    "no name": Place("no_name", {"HOME": None, "USER": None, "LOGNAME": None},
                     wrapper=become_nobody),
    "C locale": Place("c_locale", C_LOCALE),
    "C locale and letters": Place("Ümläuts in C", C_LOCALE),
    "other folder": Place("other_folder", relative=True),
}  # fmt: skip


def copy_checkout(folder: Path) -> Path:
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return checkout


def go_through(place: Place, work: Path) -> Path:
    """Prepare, train, evaluate and report in a place; return its folder."""
    folder = work / place.folder
    checkout = copy_checkout(folder)
    recipe = write_corpus(folder / "corpus", pairs={"train": 300, "dev": 10, "new": 12})
    start = folder / "elsewhere" if place.relative else folder
    start.mkdir(exist_ok=True)

    def given(path: Path) -> str:
        return os.path.relpath(path, start) if place.relative else str(path)

    data, run = given(folder / "data"), given(folder / "run")
    config = write_yaml(folder / "beam.yaml", {**CONFIG, "data": data})
    steps = {
        "prepare": [given(recipe), "--out", data],
        "train": [given(config), f"run={run}"],
        "evaluate": [run, "--beam", "2"],
        "report": [run, "-o", given(folder / "report.html"), "--explore", "2"],
    }
    if place.wrapper is become_nobody:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    given_variables = {**os.environ, **place.variables}
    variables = {k: v for k, v in given_variables.items() if v is not None}
    for name, arguments in steps.items():
        program = str(checkout / "scripts" / f"{name}.py")
        command = [*place.wrapper(checkout), sys.executable, program, *arguments]
        result = subprocess.run(command, cwd=start, env=variables, capture_output=True)
        assert result.returncode == 0, (result.stdout + result.stderr).decode()
    return folder


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go_through(Place("usual"), tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("name", PLACES)
def test_the_results_are_those_of_an_ordinary_place(
    name: str, usual: Path, tmp_path: Path
) -> None:
    place = PLACES[name]
    probe = [*place.wrapper(Path("/mnt")), sys.executable, "-c", "import torch"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a folder read-only or become another user")
    tmp_path.chmod(0o755)
    folder = go_through(place, tmp_path)
    models = [last_checkpoint(each / "run")["model"] for each in (usual, folder)]
    assert differences(*models) == []
    assert files_in(folder / "data" / "bin") == files_in(usual / "data" / "bin")
    texts = [
        [path.read_bytes() for path in sorted((each / "run" / "eval").rglob("*hyp*"))]
        for each in (usual, folder)
    ]
    assert texts[0] and texts[0] == texts[1]
    assert (folder / "report.html").exists()
    assert not list(folder.rglob("*.partial"))
