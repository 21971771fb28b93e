"""scripts/serve.py with real models: its answers, and its page in a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browsers import CONTRAST, start_browser
from test_inference import ROOT, run_script, train
from test_serving_app import HOSTILE, post, request

TEXT, REFERENCE = "The report is late.", "Le rapport est en retard."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("serve")
    corpus = folder / "corpus"
    done = run_script("prepare.py", "builtin-en-fr", "--smoke", "--out", corpus)
    assert done.returncode == 0, done.stderr
    return [train(folder, corpus, arch) for arch in ("lstm", "transformer_topk")]


@pytest.fixture(scope="module")
def port(runs: list[Path]) -> Iterator[int]:
    """Start the script; at the end, Ctrl-C must end it without a traceback."""
    command = [sys.executable, ROOT / "scripts" / "serve.py", *runs, "--port", "0"]
    command += ["--checkpoint", "last", "--cpu"]
    started = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+) \(Ctrl-C ends\)\n", line)
        assert found, line + started.communicate(timeout=30)[1]
        yield int(found[1])
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
        assert "Traceback" not in errors, errors
    finally:
        started.kill()


def test_the_answer_is_that_of_translate(port: int, runs: list[Path]) -> None:
    values = {"text": TEXT, "beam": 3, "nbest": 2, "lenpen": 0.6}
    status, answer = post(port, "/translate", values)
    assert status == 200
    options = ["--beam", 3, "--nbest", 2, "--lenpen", 0.6, "--format", "jsonl"]
    for run, translation in zip(runs, answer["translations"], strict=True):
        done = run_script(
            "translate.py", run, *options, "--checkpoint", "last", "--cpu",
            input=TEXT, text=True, encoding="utf-8",
        )  # fmt: skip
        assert translation["run"] == run.name
        expected = json.loads(done.stdout)["hypotheses"]
        for ours, theirs in zip(translation["hypotheses"], expected, strict=True):
            assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-4)
            assert ours == theirs


@pytest.mark.parametrize("beam", [1, 4])
def test_the_explorer_finds_the_translations(
    port: int, runs: list[Path], beam: int
) -> None:
    values = {"text": TEXT, "beam": beam, "lenpen": 0.8}
    _, answer = post(port, "/translate", {**values, "nbest": beam})
    for translation in answer["translations"]:
        scores = [each["score"] for each in translation["hypotheses"]]
        for reference in (None, REFERENCE, "☃ unknown"):
            chosen = {"run": translation["run"], "reference": reference, "epsilon": 0.4}
            status, answer = post(port, "/explore", {**values, **chosen})
            assert status == 200, answer
            search = answer["search"]
            assert search["epsilons"] == pytest.approx([0.1, 0.4, 1.6])
            found = [each["score"] for each in search["finished"]]
            assert found == pytest.approx(scores, abs=1e-3)
            assert (search["gold"] is None) == (reference is None)


def test_a_long_text_is_translated_in_parts_but_not_explored(port: int) -> None:
    text = "The report is late. " * 30
    status, answer = post(port, "/translate", {"text": text})
    assert status == 200
    assert all(len(each["hypotheses"]) == 1 for each in answer["translations"])
    status, answer = post(port, "/explore", {"text": text})
    assert status == 422
    assert "the text must have at most 99 subwords, but has" in answer["error"]
    long_reference = {"text": "a", "reference": text}
    assert post(port, "/explore", {**long_reference, "run": "lstm1"})[0] == 422


def test_200_clients_at_once_are_answered_or_refused(port: int) -> None:
    barrier = threading.Barrier(200)
    values = {"text": "hello", "run": "lstm1", "beam": 1}

    def ask(_: int) -> tuple[int, Any]:
        barrier.wait()
        return post(port, "/translate", values)

    with ThreadPoolExecutor(200) as clients:
        answers = list(clients.map(ask, range(200)))
    assert {status for status, _ in answers} <= {200, 503}
    good = [answer for status, answer in answers if status == 200]
    assert len(good) >= 32
    assert all(answer == good[0] for answer in good)
    assert post(port, "/translate", values) == (200, good[0])


def test_hostile_bodies_do_not_end_the_server(port: int) -> None:
    for body, status in (
        (b"a" * 1_000_000, 413),
        (b"\x00\xff", 422),
        (b'{"text": "\\u0000\\u202e\\ud800"}', 200),
        ({"text": HOSTILE, "beam": 1}, 200),
    ):
        assert post(port, "/translate", body)[0] == status
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"\x16\x03 no HTTP at all\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert request(port, "GET", "/")[0] == 200


def test_mistakes_are_reported_without_a_traceback(
    runs: list[Path], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ([tmp_path], "must be a run folder of scripts/train.py"),
            ([runs[0], "--port", port], f"with `127.0.0.1` and {port} the error is"),
            ([runs[0], "--port", 70_000], "must be at most 65535, but is 70000"),
        ):
            done = run_script("serve.py", *arguments, text=True)
            assert done.returncode == 2
            assert message in done.stderr
            assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


@pytest.fixture
def open_page(browser: Any, port: int) -> Iterator[Callable[..., Any]]:
    """Open the page; a message on the console, or another server, is an error."""
    opened, messages = [], []

    def open_tab(width: int = 1280, scheme: str = "light") -> Any:
        tab = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        own = f"http://127.0.0.1:{port}/"
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        tab.on("request", lambda sent: messages.append(f"request {sent.url}")
               if not sent.url.startswith((own, "data:")) else None)  # fmt: skip
        tab.goto(own)
        tab.wait_for_selector("html[data-ready=true]", state="attached")
        opened.append(tab)
        return tab

    yield open_tab
    for tab in opened:
        tab.close()
    assert messages == []


def translate(tab: Any, text: str, reference: str = "") -> None:
    tab.fill("#text", text)
    tab.fill("#reference", reference)
    tab.locator("#text").press("Enter")
    tab.wait_for_selector("#submit:enabled")
    tab.wait_for_selector("#search:not([aria-busy]) #tree svg")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_translations_and_the_beam(
    open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    tab = open_page(width, scheme)
    translate(tab, TEXT)
    cards = tab.locator(".answer")
    names = [card.get_attribute("data-run") for card in cards.all()]
    assert names == ["lstm1", "transformer_topk1"]
    assert tab.locator(".answer li").count() == 2 * 2  # ranks 2 and 3
    left, right = (card.bounding_box() for card in cards.all())
    assert (left["y"] == right["y"]) == (width == 1280)  # side by side
    assert tab.locator(".tree .node").count() > 3
    assert tab.locator("#candidates tbody tr").count() > 5
    assert tab.locator("#fate").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ratio, where = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


def test_a_reference_is_followed_in_the_beam_of_each_run(
    open_page: Callable[..., Any],
) -> None:
    tab = open_page()
    tab.fill("#epsilon", "0.7")
    translate(tab, TEXT, REFERENCE)
    assert "eference" in tab.locator("#fate").text_content()
    assert tab.locator(".tree .node.gold").count() >= 1
    assert "ε = 0.7" in tab.locator(".stepper .segments").text_content()
    assert "transformer_topk1" in tab.locator("#beam-note").text_content()
    tab.locator("#system button").first.click()
    tab.wait_for_selector("#beam-note:has-text('lstm1')")
    tab.locator("#tree").focus()
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.locator(".tree .node.chosen").count() == 1
    assert "nats" in tab.locator("#description").text_content()


def test_markup_in_the_text_is_shown_as_text(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    translate(tab, HOSTILE, HOSTILE)
    assert tab.locator("#search .pair p").all_text_contents() == [HOSTILE] * 2
    assert tab.locator("img").count() == 0
    assert tab.locator("main script").count() == 0


def test_a_failure_is_shown_and_the_next_text_is_translated(
    browser: Any, port: int
) -> None:
    tab = browser.new_page()  # Chromium itself reports status 422 on the console
    tab.goto(f"http://127.0.0.1:{port}/")
    tab.wait_for_selector("html[data-ready=true]", state="attached")
    tab.fill("#text", "The report is late. " * 30)
    tab.click("#submit")
    tab.wait_for_selector("#failure:visible")
    shown = tab.locator("#failure").text_content()
    assert shown.startswith("The text must have at most 99 subwords")
    assert tab.locator(".answer").count() == 2
    translate(tab, TEXT)
    assert not tab.locator("#failure").is_visible()
    tab.close()
