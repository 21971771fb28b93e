"""fairseq-generate's output becomes one hypothesis per sentence, in order, or fails."""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.evaluation import generate
from fairseq_plugins.evaluation.generate import Subset, score_references, translate
from fairseq_plugins.evaluation.generate_output import Hypothesis, hypotheses_of
from fairseq_plugins.pipeline.errors import UserError

OUTPUT = """\
2026-01-01 00:00:00 | INFO | fairseq_cli.generate | H-0 is not a hypothesis
S-2\t▁c
T-2\t▁c
H-2\t-0.5\t▁third \u2028 one
H-2\t-0.9\t▁worse
D-2\t-0.5\t▁third one
P-2\t-0.1 -0.2
H-0\t-inf\t▁first
H-1\t-0.25\t
"""
SUMMARY = (
    "2026-01-01 | INFO | fairseq_cli.generate | Translated 1,003 sentences "
    "(12,345 tokens) in 2.5s (401.20 sentences/s, 4938.25 tokens/s)\n"
)


SUBSET = Subset(Path("bin"), ("xx", "yy"), "test", 3)


def parse(text: str, sentences: int) -> list[list[Hypothesis]]:
    lines = text.split("\n")
    return hypotheses_of(lines, subset="test", sentences=sentences)


def test_hypotheses_come_in_corpus_order_best_first() -> None:
    first, second, third = parse(OUTPUT, 3)
    assert first == [Hypothesis(-math.inf, "▁first")]
    assert [item.pieces for item in second] == [""]
    assert [item.pieces for item in third] == ["▁third \u2028 one", "▁worse"]
    # fairseq's logarithms are binary: 2 ** -0.5 = e ** score.
    assert math.exp(third[0].score) == pytest.approx(2**-0.5)


def test_a_missing_sentence_is_named() -> None:
    with pytest.raises(UserError, match="no translation of 2 of the 5 .*: 4, 5. "):
        parse(OUTPUT, 5)
    with pytest.raises(UserError, match="of 97 of the 100 .*: 4, 5, 6, 7, 8, .... The"):
        parse(OUTPUT, 100)


def test_more_sentences_than_references_are_refused() -> None:
    with pytest.raises(UserError, match="3 binarised but 2 raw sentences"):
        parse(OUTPUT, 2)


def call(tmp_path: Path, **changes: Any) -> generate.Translations:
    options: dict[str, Any] = {
        "beam": 5,
        "lenpen": -0.5,
        "max_tokens": 100,
        "log": tmp_path / "log",
    }
    return translate(tmp_path / "model.pt", SUBSET, **{**options, **changes})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a command that prints this text stand in for fairseq-generate."""
    commands: list[list[str]] = []
    run = generate.run_logged

    def install(text: str, *, status: int = 0) -> list[list[str]]:
        code = f"import sys; print({text!r}, end=''); sys.exit({status})"

        def stand_in(command: list[str], **options: Any) -> Any:
            commands.append(command)
            return run([sys.executable, "-c", code], **options)

        monkeypatch.setattr(generate, "run_logged", stand_in)
        return commands

    return install


def test_speed_is_the_one_that_fairseq_reports(tmp_path: Path, fake: Any) -> None:
    commands = fake(OUTPUT + SUMMARY)
    result = call(tmp_path)
    assert result.nbest[0][0].pieces == "▁first"
    assert (result.tokens, result.seconds) == (12345, 2.5)
    assert result.tokens_per_second == 4938.25
    # Of each sentence the log has the best hypothesis only.
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert log == (OUTPUT + SUMMARY).replace("H-2\t-0.9\t▁worse\n", "")
    words = commands[0]
    assert words[words.index("--nbest") + 1] == words[words.index("--beam") + 1] == "5"
    assert "--lenpen=-0.5" in commands[0]
    # No sentence may be left out, however long.
    assert not [word for word in commands[0] if "skip-invalid" in word]


def test_output_that_stops_early_is_no_success(tmp_path: Path, fake: Any) -> None:
    fake(OUTPUT)
    with pytest.raises(UserError, match="did not say that it ended"):
        call(tmp_path)


def test_a_failure_shows_the_last_lines(tmp_path: Path, fake: Any) -> None:
    fake("Traceback\nRuntimeError: out of memory\n", status=1)
    with pytest.raises(UserError, match="status 1.*\nTraceback\nRuntimeError: out of"):
        call(tmp_path)


def test_progress_is_reported(
    tmp_path: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(generate, "_SECONDS_BETWEEN_REPORTS", 0.0)
    fake(OUTPUT + SUMMARY)
    call(tmp_path)
    assert caplog.messages[0] == "test, beam 5: 3 sentences"
    assert "test, beam 5: 1 of 3 done" in caplog.messages


REFERENCES = """\
S-1\t▁b
H-1\t-1.5\t▁b ▁b ▁b
P-1\t-1.0000 -2.0000 -1.0000 -2.0000
H-0\t-0.25\t▁a
P-0\t-0.5000 0.0000
"""


def test_references_get_the_sum_of_their_tokens(tmp_path: Path, fake: Any) -> None:
    commands = fake(REFERENCES + SUMMARY)
    subset = replace(SUBSET, sentences=2)
    first, second = score_references(
        tmp_path / "model.pt", subset, max_tokens=100, log=tmp_path / "log"
    )
    assert "--score-reference" in commands[0]
    assert (first.tokens, second.tokens) == (2, 4)
    assert first.log_prob == pytest.approx(-0.5 * math.log(2))
    assert second.log_prob == pytest.approx(-6.0 * math.log(2))
