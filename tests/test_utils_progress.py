"""The progress of long jobs where standard error is not a terminal."""

from __future__ import annotations

import logging

import pytest

from fairseq_plugins.utils import progress


@pytest.fixture
def messages(monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, logger="fairseq_plugins")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_short_job_reports_nothing(messages):
    with progress.progress_bar("lines") as bar:
        for _ in range(1000):
            bar.update(1)
    assert messages() == []


def test_a_long_job_reports_plain_lines(messages, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.progress_bar("lines", total=3000, done=1000) as bar:
        bar.update(1000)
        bar.update(1000)
    done = ["1.00k/3.00k", "2.00k/3.00k", "3.00k/3.00k"]
    assert [line.split()[1] for line in messages()] == done
    assert not any("\r" in line for line in messages())
