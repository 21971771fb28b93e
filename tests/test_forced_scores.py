"""What was scored by --force says so where files are scored and compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTE = "Scored by --force: not comparable with other scores."


@pytest.mark.parametrize(
    ("script", "reference"), [("score.py", ()), ("compare.py", ("--reference",))]
)
@pytest.mark.parametrize(("word", "is_forced"), [("men@@", True), ("men", False)])
def test_only_scores_of_texts_that_look_wrong_are_marked(
    tmp_path: Path, script: str, reference: tuple[str, ...], word: str, is_forced: bool
) -> None:
    hypotheses, references = tmp_path / "hyp", tmp_path / "ref"
    hypotheses.write_text(f"two {word} walk there\n")
    references.write_text("two men walk there\n")
    files = [*[hypotheses] * (1 + len(reference)), *reference, references]
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, files), "--force"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (NOTE in result.stdout) is is_forced
