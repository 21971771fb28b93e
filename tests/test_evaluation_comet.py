"""COMET gets the right files, and its output is parsed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairseq_plugins.evaluation.comet import Comet, comet_score
from fairseq_plugins.utils.errors import UserError

# As comet-score prints it with --only_system.
STAND_IN = """\
#!{python}
import sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
texts = [open(words[o], newline="\\n").read().split("\\n") for o in ("-s", "-t", "-r")]
assert [len(t) for t in texts] == [3, 3, 3], texts
assert [len(t[0].splitlines()) for t in texts] == [1, 1, 1]
print("Fetching 5 files: score: 9")
print(words["-t"] + "\\tscore: 0.8417")
assert words["--model"] == "some/model" and words["--gpus"] == "0"
{end}
"""


def program(tmp_path: Path, end: str = "") -> Path:
    path = tmp_path / "comet-score"
    path.write_text(STAND_IN.format(python=sys.executable, end=end))
    path.chmod(0o755)
    return path


def run(path: Path) -> float:
    comet = Comet(str(path), model="some/model")
    return comet_score(comet, ["a\u2028b", "c"], ["d", "e"], ["f", "g"])


def test_the_system_score_is_read(tmp_path: Path) -> None:
    assert run(program(tmp_path)) == 0.8417


def test_a_python_runs_the_module_of_comet() -> None:
    arguments = Comet(sys.executable).command_line()
    assert arguments[1:3] == ["-m", "comet.cli.score"]


def test_failures_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`.*nowhere` does not exist"):
        run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="ended with status 3:\n(.*\n)*.*no model"):
        run(program(tmp_path, end="sys.exit(print('no model') or 3)"))
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho done\n")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="printed no `score: NUMBER`. Its output:"):
        run(silent)
    # This Python has no COMET.
    with pytest.raises(UserError, match="status 1:\n.*No module named"):
        run(Path(sys.executable))
