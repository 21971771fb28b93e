"""The web application with models that are not real, over real connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator

import pytest

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from fairseq_plugins.serving import app as app_module
from fairseq_plugins.serving.api import EXPLORE_FIELDS, TRANSLATE_FIELDS, openapi
from fairseq_plugins.serving.app import MAX_BODY, create_app
from fairseq_plugins.utils.errors import UserError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class FakeRun:
    """Repeats the text; `gate` can make it wait."""

    languages = ("en", "fr")
    epsilon = 2.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = self.most_running = 0

    def translate(self, text: str, options: Any) -> dict[str, Any]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.gate.wait(30)
        self.calls.append((text, options))
        self.running -= 1
        if text == "fail":
            raise RuntimeError("a secret of the server")
        return {"run": self.name, "hypotheses": [{"text": text}]}

    def explore(self, text: str, **options: Any) -> dict[str, Any]:
        if text == "long":
            raise UserError("the text must have at most 9 subwords, but has 10.")
        self.calls.append((text, options))
        return {"run": self.name, "search": options}


@contextlib.contextmanager
def serve(app: Any) -> Iterator[int]:
    """Yield the port of a server in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def request(
    port: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, bytes]:
    """Return status, headers and body; a dictionary is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def post(port: int, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    status, _, answer = request(port, "POST", path, body, **headers)
    return status, json.loads(answer)


@pytest.fixture
def runs() -> list[FakeRun]:
    return [FakeRun("control"), FakeRun("soft")]


@pytest.fixture
def port(runs: list[FakeRun]) -> Iterator[int]:
    with serve(create_app(runs, queue_size=3)) as port:
        yield port


def test_all_runs_translate_unless_one_is_named(port: int, runs: list[FakeRun]) -> None:
    status, answer = post(port, "/translate", {"text": " a\n\t b "})
    assert status == 200
    assert [each["run"] for each in answer["translations"]] == ["control", "soft"]
    assert answer["translations"][0]["hypotheses"] == [{"text": "a b"}]
    values = {"text": "c", "run": "soft", "beam": 7, "nbest": 4, "lenpen": 0.5}
    status, answer = post(port, "/translate", values)
    assert [each["run"] for each in answer["translations"]] == ["soft"]
    assert len(runs[0].calls) == 1
    text, options = runs[1].calls[-1]
    assert text == "c"
    assert (options.beam, options.nbest, options.lenpen) == (7, 4, 0.5)


def test_fields_of_the_explorer_are_passed_on(port: int) -> None:
    status, answer = post(port, "/explore", {"text": "a"})
    assert (status, answer["run"]) == (200, "control")
    assert answer["search"] == {
        "reference": None, "beam": 5, "lenpen": 1.0, "epsilon": None
    }  # fmt: skip
    chosen = {"reference": "b", "beam": 3, "lenpen": 2, "epsilon": 0.5}
    status, answer = post(port, "/explore", {"text": "a", "run": "soft", **chosen})
    assert (answer["run"], answer["search"]) == ("soft", chosen)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/translate", b"", "the body must be a JSON object in UTF-8."),
        ("/translate", b"{", "the body must be a JSON object"),
        ("/translate", b"[1]", "the body must be a JSON object"),
        ("/translate", b'{"text": "\xff"}', "the body must be a JSON object"),
        ("/translate", b"[" * 60_000, "the body must be a JSON object"),
        ("/translate", b'{"beam": ' + b"9" * 9000 + b"}", "must be a JSON object"),
        ("/translate", {}, "`text` must be given."),
        ("/translate", {"text": None}, "`text` must be given."),
        ("/translate", {"text": " \n"}, "`text` must have between 1 and 1,000 "),
        ("/translate", {"text": "a" * 1001}, "characters, but has 1,001."),
        ("/translate", {"text": 5}, "`text` must be text, but is `5`."),
        ("/translate", {"text": "a", "bean": 5}, "Did you mean `beam`?"),
        ("/translate", {"text": "a", "beam": 0}, "`beam` must be a whole number betw"),
        ("/translate", {"text": "a", "beam": 21}, "between 1 and 20, but is `21`."),
        ("/translate", {"text": "a", "beam": True}, "but is `true`."),
        ("/translate", {"text": "a", "beam": 2.5}, "but is `2.5`."),
        ("/translate", {"text": "a", "beam": "5"}, "`beam` must be a whole number"),
        ("/translate", {"text": "a", "nbest": 6}, "must be at most `beam` (5), but is"),
        ("/translate", {"text": "a", "run": "sof"}, "Did you mean `soft`?"),
        ("/translate", b'{"text": "a", "lenpen": NaN}', "but is `NaN`."),
        ("/translate", b'{"text": "a", "lenpen": 1e999}', "but is `Infinity`."),
        ("/explore", {"text": "a", "epsilon": 0}, "`epsilon` must be a number between"),
        ("/explore", {"text": "a", "nbest": 2}, "a field must be one of `text`, `beam"),
        ("/explore", {"text": "long"}, "must have at most 9 subwords, but has 10."),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_the_rule(
    port: int, runs: list[FakeRun], path: str, body: Any, message: str
) -> None:
    status, answer = post(port, path, body)
    assert status == 422
    assert message in answer["error"]
    assert not any(run.calls for run in runs)


def test_half_a_surrogate_pair_is_no_failure(port: int) -> None:
    status, answer = post(port, "/translate", b'{"text": "a \\ud800"}')
    assert status == 200
    assert answer["translations"][0]["hypotheses"] == [{"text": "a ?"}]


@pytest.mark.parametrize("size", [MAX_BODY + 1, 1_000_000, 6_000_000])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_long_body_is_refused(
    port: int, runs: list[FakeRun], size: int, in_chunks: bool
) -> None:
    body = b'{"text": "' + b"a" * size + b'"}'
    parts = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    status, answer = post(port, "/translate", parts if in_chunks else body)
    assert status == 413
    assert answer["error"] == f"the body must have at most {MAX_BODY:,} bytes."
    assert not any(run.calls for run in runs)


def test_a_body_that_does_not_arrive_is_not_awaited(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = (
            "POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_calls_wait_for_each_other_and_the_queue_is_bounded(
    port: int, runs: list[FakeRun]
) -> None:
    runs[0].gate.clear()
    values = {"text": "a", "run": "control"}
    with ThreadPoolExecutor(8) as clients:
        accepted = [clients.submit(post, port, "/translate", values) for _ in range(4)]
        for _ in range(300):  # until one runs and three wait
            status, headers, answer = request(port, "POST", "/translate", {
                "text": "b", "run": "no"})  # fmt: skip
            assert status == 422  # answered while the model is busy
            refused = clients.submit(request, port, "POST", "/translate", values)
            with contextlib.suppress(TimeoutError):
                status, headers, answer = refused.result(0.1)
                break
            accepted.append(refused)
        assert status == 503
        assert headers["Retry-After"] == "1"
        assert "3 requests are waiting already" in json.loads(answer)["error"]
        runs[0].gate.set()
        statuses = [each.result()[0] for each in accepted]
    assert statuses.count(200) == 4
    assert set(statuses) <= {200, 503}
    assert runs[0].most_running == 1
    assert post(port, "/translate", values)[0] == 200


def test_a_client_that_has_gone_is_not_translated_for(
    port: int, runs: list[FakeRun]
) -> None:
    runs[0].gate.clear()
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, port, "/translate", {"text": "first"})
        while not runs[0].running:
            time.sleep(0.01)
        gone = http.client.HTTPConnection("127.0.0.1", port)
        gone.request("POST", "/translate", b'{"text": "gone"}')
        # It is read before this one, which is answered without a model.
        assert post(port, "/translate", {"text": ""})[0] == 422
        gone.close()
        time.sleep(0.2)
        runs[0].gate.set()
        assert first.result()[0] == 200
    assert post(port, "/translate", {"text": "last"})[0] == 200
    assert [text for text, _ in runs[0].calls] == ["first", "last"]


def test_200_clients_at_once_are_answered(runs: list[FakeRun]) -> None:
    with serve(create_app(runs, queue_size=20)) as port:
        barrier = threading.Barrier(200)

        def ask(number: int) -> tuple[int, Any]:
            barrier.wait()
            return number, post(port, "/translate", {"text": str(number)})

        with ThreadPoolExecutor(200) as clients:
            answers = list(clients.map(ask, range(200)))
        assert {status for _, (status, _) in answers} <= {200, 503}
        for number, (status, answer) in answers:
            if status == 200:
                hypotheses = [each["hypotheses"] for each in answer["translations"]]
                assert hypotheses == [[{"text": str(number)}]] * 2
        assert sum(status == 200 for _, (status, _) in answers) >= 20
        assert runs[0].most_running == 1
        assert post(port, "/translate", {"text": "a"})[0] == 200


def test_every_answer_has_security_headers(port: int) -> None:
    answers = [
        request(port, "GET", "/"),
        request(port, "GET", "/page.js"),
        request(port, "GET", "/../../etc/passwd"),
        request(port, "GET", "/translate"),
        request(port, "POST", "/translate", {"text": HOSTILE}),
        request(port, "POST", "/translate", {"text": "fail"}),
        request(port, "POST", "/translate", b"a" * 100_000),
        request(port, "POST", "/translate", {"text": "a"}, Origin="http://evil"),
    ]
    assert [status for status, _, _ in answers] == [
        200, 200, 404, 405, 200, 500, 413, 403
    ]  # fmt: skip
    for _, headers, body in answers:
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert b"secret" not in body
    assert answers[4][1]["Content-Type"] == "application/json"


def test_other_web_pages_cannot_use_the_server(port: int, runs: list[FakeRun]) -> None:
    for headers in (
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Host": "example.org"},
        {"Host": f"127.0.0.1.example.org:{port}"},
        {"Host": "[::1"},
    ):
        status, answer = post(port, "/translate", {"text": "a"}, **headers)
        assert status == 403, headers
        assert "another web page" in answer["error"]
    assert not any(run.calls for run in runs)
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert post(port, "/translate", {"text": "a"}, **headers)[0] == 200
    with serve(create_app(runs, is_local=False)) as public:
        assert post(public, "/translate", {"text": "a"}, Host="gpu7:8000")[0] == 200


def test_the_page_has_no_inline_scripts_and_names_only_files_of_the_server(
    port: int,
) -> None:
    _, _, page = request(port, "GET", "/")
    text = page.decode()
    assert re.findall(r'(?:src|href)="([^"#]+)"', text) == [
        "data:,", "page.css", "page.js"
    ]  # fmt: skip
    assert re.findall(r"<script[^>]*>", text) == ['<script src="page.js" defer>']
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        status, headers, content = request(port, "GET", f"/{name}")
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert b"innerHTML" not in content and b"://" not in content.replace(
            b"http://www.w3.org/2000/svg", b""
        )


def test_requests_open_no_files(port: int) -> None:
    opened: list[Any] = []
    is_watching = False

    def watch(event: str, arguments: Any) -> None:
        if is_watching and event == "open":
            opened.append(arguments)

    sys.addaudithook(watch)
    bodies = ({"text": HOSTILE}, {"text": "fail"}, b"a" * 900_000, b"{")
    for is_watching in (False, True):  # the first round may import modules
        for path in ("/", "/page.js", "/runs", "/openapi.json", "/..%2f..%2fetc"):
            request(port, "GET", path)
        for body in bodies:
            request(port, "POST", "/translate", body)
            request(port, "POST", "/explore", body)
        time.sleep(0.1)
    is_watching = False
    assert opened == []


def test_the_description_has_the_fields_and_their_limits(port: int) -> None:
    _, _, answer = request(port, "GET", "/openapi.json")
    description = json.loads(answer)
    assert description == json.loads(json.dumps(openapi()))
    for path, fields in (
        ("/translate", TRANSLATE_FIELDS),
        ("/explore", EXPLORE_FIELDS),
    ):
        body = description["paths"][path]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(fields)
        assert schema["required"] == ["text"]
        values = {"text": "a"}
        for name, field in schema["properties"].items():
            if field["type"] != "string":
                values[name] = field["maximum"]
        assert post(port, path, values)[0] == 200
