"""The output of fairseq-train: measures, progress on the screen, and its error."""

from __future__ import annotations

import io
import sys

import pytest

from fairseq_plugins.training.train_log import (
    TrainingProgress,
    find_error,
    parse_line,
)

STAMP = "2026-01-01 00:00:00 | INFO |"


def inner(update: int) -> str:
    return (
        f"{STAMP} train_inner | epoch 002:  {update} / 100 loss=5.25, wps=1234.5, "
        f"num_updates={update}, lr=0.1\n"
    )


def valid(update: int) -> str:
    return (
        f"{STAMP} valid | epoch 002 | valid on 'valid' subset | loss 4.5 | bleu 11.5 | "
        f"num_updates {update}\n"
    )


def test_the_measures_of_a_line_have_its_epoch() -> None:
    line = parse_line(inner(20))
    assert line is not None and line.epoch_updates == 100
    assert line.values == {"loss": 5.25, "wps": 1234.5, "num_updates": 20, "lr": 0.1,
                           "epoch": 2}  # fmt: skip
    assert parse_line(f"{STAMP} fairseq_cli.train | model: LSTM") is None


def test_a_pipe_gets_a_few_lines_of_validation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with TrainingProgress(max_update=900) as progress:
        for update in range(10, 910, 10):
            progress(inner(update))
            progress(valid(update))
    assert caplog.messages == [
        f"epoch 2, update {update} of 900: validation loss 4.500, BLEU 11.50"
        for update in (300, 600, 900)
    ]
    assert progress.summary() == ": validation loss 4.500, BLEU 11.50"


def test_a_terminal_sees_one_line_of_progress_and_every_validation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with TrainingProgress(max_epoch=3) as progress:
        for update in (20, 40):
            progress(inner(update))
            progress(valid(update))
        progress(inner(60))
        progress._bar.refresh()
    shown = screen.getvalue().replace("\r", "\n").splitlines()
    line = next(each for each in reversed(shown) if each.startswith("epoch 2"))
    for part in ("60.0/300 ", "loss=5.250", "words/s=1,234", "BLEU=11.50"):
        assert part in line
    assert len(caplog.messages) == 2


TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
ValueError: `--rho` must be between 0 and 1, but is 1.5.
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("one\ntwo\n\n", "two"),
        ("", "no output"),
        # Later lines of a dying process are not the cause.
        (TRACEBACK + "terminate called without an active exception\n", None),
        (
            TRACEBACK
            + "\nThe above exception was the direct cause of the following:\n\n"
            + TRACEBACK.replace("ValueError: `--rho`", "Exception: please ensure"),
            None,
        ),
        (
            "Traceback (most recent call last):\n  File\n"
            "torch.multiprocessing.spawn.ProcessRaisedException: \n\n"
            "-- Process 1 terminated with the following error:\n" + TRACEBACK,
            None,
        ),
        ("".join(f"[rank1]: {line}\n" for line in TRACEBACK.splitlines()), None),
    ],
)
def test_the_error_is_the_first_that_was_raised(
    output: str, expected: str | None
) -> None:
    cause = "ValueError: `--rho` must be between 0 and 1, but is 1.5"
    assert find_error(output) == (expected or cause)


def test_the_first_detail_of_an_error_is_kept() -> None:
    output = TRACEBACK.replace(
        "ValueError: `--rho` must be between 0 and 1, but is 1.5.",
        "RuntimeError: Error(s) in loading state_dict:\n\tsize mismatch for x\n\tmore",
    )
    assert find_error(output) == (
        "RuntimeError: Error(s) in loading state_dict: size mismatch for x"
    )
