"""From text to a report in surroundings that programs often forget."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from soak_common import ROOT, TRAINING, write_corpus, write_yaml
from soak_resume import _last, _tree, difference

__all__ = ["PARTS", "PLACES", "Place", "compare", "go_through", "not_here"]

logger = logging.getLogger("fairseq_plugins.soak")

_PAIRS = {"train": 300, "dev": 10, "new": 12}
_UPDATES = 4
_BEAM = {"criterion": "soft_beam_search", "beam": 2, "beam_max_len_b": 3}
_NOT_COPIED = (".git", ".venv", "runs", "build", "results", "*.egg-info", ".*cache",
               "__pycache__", ".hypothesis")  # fmt: skip
_NOBODY = 64_999  # a user id that has no name, as in a container


@dataclass(frozen=True)
class Place:
    """Surroundings of the commands.

    Attributes:
        folder: name of the folder that holds checkout, text and results.
        variables: of the environment; None takes one away.
        relative: commands are given relative paths, from a folder of its own.
        wrapper: what the commands are started by, given the checkout.
    """

    folder: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    relative: bool = False
    wrapper: Callable[[Path], Sequence[str]] = lambda checkout: ()


def _read_only(checkout: Path) -> Sequence[str]:
    """Mount the checkout read-only for the command: root may write to any mode."""
    script = (
        'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && '
        'if touch "$0/written" 2>/dev/null; then exit 99; fi; exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(checkout)]


def _without_name(checkout: Path) -> Sequence[str]:
    user = ["--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups"]
    # It may read, since Python may lie in the home folder of root, but not write.
    only = "-all,+dac_read_search"
    caps = [f"--inh-caps={only}", f"--ambient-caps={only}"]
    return ["setpriv", *user, *caps]


_C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0",
             "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}  # fmt: skip
PLACES = {
    "ordinary": Place("ordinary"),
    "spaces_and_letters": Place("with spaces and Ümläuts 日本語"),
    "read_only": Place("read_only", wrapper=_read_only),
    "no_home": Place("no_home", {"HOME": None, "XDG_CACHE_HOME": None}),
    "no_name": Place("no_name", {"HOME": None, "USER": None, "LOGNAME": None},
                     wrapper=_without_name),
    "c_locale": Place("c_locale", _C_LOCALE),
    "c_locale_and_letters": Place("Ümläuts in C", _C_LOCALE),
    "other_folder": Place("other_folder", relative=True),
}  # fmt: skip


def copy_checkout(place: Path) -> Path:
    """Copy what is in the repository into a folder of the place."""
    checkout = place / "checkout"
    ignore = shutil.ignore_patterns(*_NOT_COPIED)
    shutil.copytree(ROOT, checkout, ignore=ignore)
    return checkout


def go_through(place: Place, work: Path) -> dict[str, Any]:
    """Prepare, train, evaluate and report; tell which steps failed, and how."""
    folder = (work / "places" / place.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkout = copy_checkout(folder)
    recipe = write_corpus(folder / "corpus", pairs=_PAIRS)
    start = folder
    if place.relative:
        start = folder / "elsewhere"
        start.mkdir()
    if place.wrapper is _without_name:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)

    def given(path: Path) -> str:
        return os.path.relpath(path, start) if place.relative else str(path)

    data, run = given(folder / "data"), given(folder / "run")
    config = {**TRAINING, **_BEAM, "data": data, "max_update": _UPDATES}
    path = write_yaml(folder / "beam.yaml", config)
    steps: dict[str, list[str]] = {
        "prepare": [given(recipe), "--out", data],
        "train": [given(path), f"run={run}"],
        "evaluate": [run, "--beam", "2"],
        "report": [run, "-o", given(folder / "report.html"), "--explore", "2"],
    }
    failed = {}
    for name, arguments in steps.items():
        program = str(checkout / "scripts" / f"{name}.py")
        command = [*place.wrapper(checkout), sys.executable, program, *arguments]
        problem = _run(command, start, place.variables)
        if problem:
            failed[name] = problem
            break
    return {"folder": str(folder), "failed": failed}


def _run(command: list[str], start: Path, variables: Mapping[str, str | None]) -> str:
    """Run a command; return the end of what it printed if it failed."""
    environment = {**os.environ}
    for name, value in variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    result = subprocess.run(command, cwd=start, env=environment, capture_output=True)
    text = (result.stdout + result.stderr).decode(errors="replace")
    return "\n".join(text.splitlines()[-25:]) if result.returncode else ""


def _part(name: str) -> Any:
    def run(work: Path) -> Any:
        place = PLACES[name]
        reason = not_here(place)
        if reason:
            return {"not_tried": reason, "passed": False}
        usual, found = _ordinary(work), go_through(place, work)
        if found["failed"]:
            return {"failed": found["failed"], "passed": False}
        return compare(Path(usual["folder"]), Path(found["folder"]))

    run.__doc__ = f"From text to a report in this place: {name.replace('_', ' ')}."
    return run


def _ordinary(work: Path) -> dict[str, Any]:
    """Go through the ordinary place once."""
    folder = (work / "places" / PLACES["ordinary"].folder).resolve()
    if (folder / "report.html").exists():
        return {"folder": str(folder)}
    found = go_through(PLACES["ordinary"], work)
    if found["failed"]:
        raise RuntimeError(f"it fails in an ordinary place, too: {found['failed']}")
    return found


def compare(usual: Path, other: Path) -> dict[str, Any]:
    """Compare all that the steps left with what they left in an ordinary place."""
    models = [_last(each / "run")["model"] for each in (usual, other)]
    parameters = difference(*models)
    same_data = _tree(usual / "data" / "bin") == _tree(other / "data" / "bin")
    texts = [sorted((each / "run" / "eval").rglob("*hyp*")) for each in (usual, other)]
    contents = [[path.read_bytes() for path in paths] for paths in texts]
    same_texts = contents[0] == contents[1] and bool(contents[0])
    left = sorted(p.name for p in other.rglob("*.partial"))
    return {"commands": 4, "parameters_differing": parameters, "same_data": same_data,
            "same_translations": same_texts, "left_behind": left,
            "passed": not parameters and same_data and same_texts and not left
            and (other / "report.html").exists()}  # fmt: skip


def not_here(place: Place) -> str:
    if place.wrapper not in (_read_only, _without_name):
        return ""
    if os.getuid() != 0:
        return "only root may mount a folder read-only or become another user"
    probe = [*place.wrapper(Path("/mnt")), sys.executable, "-c", "import torch"]
    result = subprocess.run(probe, capture_output=True, text=True)
    return "" if result.returncode == 0 else (result.stderr.splitlines() or [""])[-1]


PARTS = {name: _part(name) for name in PLACES if name != "ordinary"}
