"""scripts/score.py and compare.py agree with sacrebleu's own command line.

The texts, the expected scores and the commands that give them are in
``tests/data/translations``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = ROOT / "tests" / "data" / "translations"
REFERENCE = FOLDER / "reference.txt"
BLEU_SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
CHRF_SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:"
TER_SIGNATURE = "nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:"
FORCED = "Scored with --force: not comparable with other scores."


def run(script: str, *args: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("system", "bleu", "chrf", "ter", "length"),
    [
        ("system_a.txt", 82.7326, 89.3999, 10.7843, 338),
        ("system_b.txt", 83.0930, 90.3176, 10.4575, 337),
        ("system_c.txt", 31.8944, 64.1675, 36.6013, 312),
    ],
)
def test_scores_are_those_of_sacrebleu(
    system: str, bleu: float, chrf: float, ter: float, length: int
) -> None:
    scores = json.loads(run("score.py", FOLDER / system, REFERENCE, "--json"))
    found = [round(scores[name], 4) for name in ("bleu", "chrf", "ter")]
    assert found == [bleu, chrf, ter]
    assert (scores["hypothesis_tokens"], scores["reference_tokens"]) == (length, 344)
    assert scores["bleu_signature"].startswith(BLEU_SIGNATURE)
    assert scores["chrf_signature"].startswith(CHRF_SIGNATURE)
    assert scores["ter_signature"].startswith(TER_SIGNATURE)


def test_p_values_are_those_of_sacrebleu(tmp_path: Path) -> None:
    systems = [FOLDER / f"system_{letter}.txt" for letter in "abc"]
    table = run(
        "compare.py", *systems, "--reference", REFERENCE, "--json", tmp_path / "rows"
    )
    _, b, c = json.loads((tmp_path / "rows").read_text())
    assert b["bleu_p_value"] == pytest.approx(0.9233076692330767)
    assert b["chrf_p_value"] == pytest.approx(0.7105289471052895)
    assert c["bleu_p_value"] == c["chrf_p_value"] == pytest.approx(1 / 10001)
    assert "nrefs:1|ar:10000|seed:12345" in b["test_signature"]
    assert "0.9233" in table and b["test_signature"] in table


@pytest.mark.parametrize(
    ("script", "reference"), [("score.py", ()), ("compare.py", ("--reference",))]
)
@pytest.mark.parametrize(("word", "is_forced"), [("men@@", True), ("men", False)])
def test_only_scores_of_texts_that_look_wrong_are_marked_as_forced(
    tmp_path: Path, script: str, reference: tuple[str, ...], word: str, is_forced: bool
) -> None:
    hypotheses, references = tmp_path / "hyp", tmp_path / "ref"
    hypotheses.write_text(f"two {word} walk there\n")
    references.write_text("two men walk there\n")
    files = [*[hypotheses] * (1 + len(reference)), *reference, references]
    assert (FORCED in run(script, *files, "--force")) is is_forced
