"""A search gives one result per sentence, in corpus order, or a clear error."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fairseq_plugins.evaluation import translate
from fairseq_plugins.evaluation.translate import (
    Hypothesis,
    PartialSearch,
    Reference,
    Subset,
    Translations,
    Translator,
    sort_by_sentence,
)
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.process import Worker

SUBSET = Subset("test", 3)
BATCHES = [
    {
        "sentences": [
            [2, [[-0.5, "▁third \u2028 one"], [-0.9, "▁worse"]]],
            [0, [[-math.inf, "▁first"]]],
        ],
        "tokens": 7,
        "seconds": 1.5,
    },
    {"sentences": [[1, [[-0.25, ""]]]], "tokens": 3, "seconds": 0.5},
]
# Answers a request with the batches that are not done, then runs the ending.
WORKER = """
import json, os, sys
from fairseq_plugins.utils.process import answer_requests
batches, ending = json.loads(sys.argv[1])
def answer(request):
    print("asked", json.dumps(request), flush=True)
    for batch in batches:
        if not {n for n, _ in batch["sentences"]} & set(request["done"]):
            yield batch
    exec(ending)
answer_requests(answer)
"""


def test_results_are_in_corpus_order() -> None:
    found = [(2, "c"), (0, "a"), (1, "b")]
    assert sort_by_sentence(found, subset="test", sentences=3) == ["a", "b", "c"]


def test_a_missing_sentence_is_named() -> None:
    found = [(n, "") for n in range(3)]
    with pytest.raises(UserError, match="nothing for 2 of the 5 .*: 4, 5. "):
        sort_by_sentence(found, subset="test", sentences=5)
    with pytest.raises(UserError, match="97 of the 100 .*: 4, 5, 6, 7, 8, .... The"):
        sort_by_sentence(found, subset="test", sentences=100)


def test_more_sentences_than_references_are_refused() -> None:
    with pytest.raises(UserError, match="3 binarized but 2 raw sentences"):
        sort_by_sentence([(n, "") for n in range(3)], subset="test", sentences=2)


class Fake:
    """A Translator with a replacement for the fairseq process."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.part_path = folder / "part"
        self.translator = Translator(Path("m"), Path("d"), ("x", "y"), max_tokens=9)

    def install(self, batches: Any = BATCHES, ending: str = "") -> None:
        command = [sys.executable, "-c", WORKER, json.dumps([batches, ending])]
        self.translator._worker.__exit__(None, None, None)
        self.translator._worker = Worker(command)

    def part(self, **identity: Any) -> PartialSearch:
        return PartialSearch(self.part_path, {"beam": 5, **identity})

    def translate(self, part: PartialSearch | None = None) -> Translations:
        return self.translator.translate(
            SUBSET, beam=5, lenpen=-0.5, log=self.log, part=part or self.part()
        )

    def asked(self) -> dict[str, Any]:
        line = self.log.read_text(encoding="utf-8").partition("asked ")[2]
        return json.loads(line.splitlines()[0])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(Path(translate.__file__).parents[2]))
    fake = Fake(tmp_path)
    fake.install()
    with fake.translator:
        yield fake


def test_batches_of_a_search_become_hypotheses_and_speed(fake: Any) -> None:
    found = fake.translate()
    assert found.nbest == [
        [Hypothesis(-math.inf, "▁first")],
        [Hypothesis(-0.25, "")],
        [Hypothesis(-0.5, "▁third \u2028 one"), Hypothesis(-0.9, "▁worse")],
    ]
    assert (found.tokens, found.seconds, found.tokens_per_second) == (10, 2.0, 5.0)
    assert fake.asked() == {"subset": "test", "beam": 5, "lenpen": -0.5, "done": []}


def test_one_process_answers_all_requests(fake: Any) -> None:
    fake.translate()
    pid = fake.translator._worker._process.pid
    fake.translate(fake.part(beam=6))
    assert fake.translator._worker._process.pid == pid


def test_references_need_only_their_own_request(fake: Any) -> None:
    fake.install([{"sentences": [[1, [-6.0, 4]], [0, [-0.5, 2]], [2, [-1.0, 1]]]}])
    found = fake.translator.score_references(SUBSET, log=fake.log)
    assert found == [Reference(-0.5, 2), Reference(-6.0, 4), Reference(-1.0, 1)]
    assert fake.asked() == {"subset": "test", "done": []}


def test_a_killed_search_resumes_with_the_missing_batches(
    fake: Any,
) -> None:
    whole = fake.translate(fake.part(beam=0))
    fake.part().remove()
    fake.install(BATCHES[:1], "os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="status 137. It was killed, .* are kept"):
        fake.translate()
    # The kill cut the last line short.
    with open(fake.part_path, "ab") as stream:
        stream.write(b'{"sentences": [[1')
    fake.install()
    assert fake.translate() == whole
    assert fake.asked()["done"] == [2]
    # A finished search starts no process.
    fake.install([], "sys.exit(1)")
    assert fake.translate() == whole


def test_batches_of_another_search_are_not_used(fake: Any) -> None:
    fake.translate()
    fake.translate(fake.part(lenpen=0.6))
    assert fake.asked()["done"] == []


def test_a_missing_sentence_in_an_answer_is_refused(fake: Any) -> None:
    fake.install(BATCHES[:1])
    with pytest.raises(UserError, match="nothing for 1 of the 3 .*: 2. "):
        fake.translate()


def test_a_failure_shows_the_last_lines(fake: Any) -> None:
    fake.install([], "raise RuntimeError('out of memory')")
    with pytest.raises(UserError, match=r"(?s)status 1\..*Error: out of memory$"):
        fake.translate()


def test_progress_is_reported(
    fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(translate, "_SECONDS_BETWEEN_REPORTS", 0.0)
    fake.install(BATCHES[:1], "sys.exit(1)")
    with pytest.raises(UserError):
        fake.translate()
    fake.install()
    fake.translate()
    assert caplog.messages == [
        "test, beam 5: 3 sentences",
        "test, beam 5: 2 of 3 done",
        "test, beam 5: 3 sentences, 2 of them done before",
        "test, beam 5: 3 of 3 done",
    ]


def test_ctrl_c_ends_the_search_and_its_process(fake: Any) -> None:
    # Tests that a shell has started in the background ignore SIGINT, and so would it.
    fake.install(BATCHES, "import signal, time; "
                 "signal.signal(signal.SIGINT, signal.default_int_handler); "
                 f"os.kill({os.getpid()}, {int(signal.SIGINT)}); "
                 "any(map(time.sleep, [0.1] * 600))")  # fmt: skip
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fake.translate()
    assert time.monotonic() - started < 50
    assert fake.translator._worker._process is None
