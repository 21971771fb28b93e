"""Downloads from a server that breaks off, sends other bytes, redirects or fails."""

from __future__ import annotations

import hashlib
import http.server
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from conftest import ROOT

from fairseq_plugins.corpus.fetch import fetch, verify
from fairseq_plugins.corpus.recipe import Archive
from fairseq_plugins.utils.errors import UserError

CONTENT = bytes(i * i % 251 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """``/good``, ``/wrong``, ``/short``, ``/cut`` (the first answer ends early),
    ``/norange``, ``/slow``, ``/away`` (redirects to another protocol) and ``/500``.
    Nothing else exists."""

    def do_GET(self) -> None:
        server = self.server
        kind = self.path.strip("/")
        asked = self.headers.get("Range")
        server.requests.append((kind, asked))
        if kind == "away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x")
            self.end_headers()
            return
        if kind == "500":
            self.send_error(500)
            return
        if kind not in ("good", "wrong", "short", "cut", "norange", "slow"):
            self.send_error(404)
            return
        content = {"wrong": CONTENT[::-1], "short": CONTENT[:-9]}.get(kind, CONTENT)
        start = 0
        if asked and kind != "norange":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = 100_000 if kind == "cut" and len(server.requests) == 1 else len(content)
        if kind == "slow":
            for place in range(start, len(content), 3000):
                self.wfile.write(content[place : place + 3000])
                time.sleep(0.02)
        else:
            self.wfile.write(content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def archive(server, *kinds: str, **facts: object) -> Archive:
    urls = [f"{server.url}/{kind}" for kind in kinds]
    return Archive("a.tgz", urls[0], tuple(urls[1:]), **facts)  # type: ignore[arg-type]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "facts", [{}, {"sha256": SHA256}, {"md5": MD5, "bytes": 300_000}]
)
def test_a_download_is_whole_and_recorded_and_done_once(server, tmp_path, facts):
    expected = archive(server, "good", **facts)
    for _ in range(2):
        fetch(expected, tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    assert server.requests == [("good", None)]
    record = json.loads((tmp_path / "a.tgz.json").read_text())
    assert (record["sha256"], record["bytes"]) == (SHA256, 300_000)
    assert record["url"].endswith("/good")
    assert files(tmp_path) == {"a.tgz", "a.tgz.json"}


def test_a_broken_download_is_continued(server, tmp_path):
    fetch(archive(server, "cut", sha256=SHA256), tmp_path / "a.tgz", pause=0)
    assert server.requests == [("cut", None), ("cut", "bytes=100000-")]
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["good", "norange"])
@pytest.mark.parametrize("have", [1, 299_999, 300_000])
def test_a_partial_file_of_an_earlier_run_is_continued_if_the_server_can(
    server, tmp_path, kind, have
):
    (tmp_path / ".a.tgz.partial").write_bytes(CONTENT[:have])
    fetch(archive(server, kind, sha256=SHA256), tmp_path / "a.tgz", pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    assert server.requests[0] == (kind, f"bytes={have}-")


def test_a_partial_file_of_other_bytes_is_deleted_and_the_next_place_tried(
    server, tmp_path
):
    (tmp_path / ".a.tgz.partial").write_bytes(b"?" * 1000)
    expected = archive(server, "good", "good", sha256=SHA256)
    fetch(expected, tmp_path / "a.tgz", pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_mirrors_are_tried_in_their_order(server, tmp_path):
    expected = archive(server, "404", "500", "wrong", "good", sha256=SHA256)
    fetch(expected, tmp_path / "a.tgz", pause=0)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    record = json.loads((tmp_path / "a.tgz.json").read_text())
    assert record["url"].endswith("/good")


@pytest.mark.parametrize(
    "kind, facts, message",
    [
        ("404", {}, "HTTP status 404"),
        ("500", {}, "HTTP status 500"),
        ("away", {}, "redirects to `ftp:"),
        ("wrong", {"sha256": SHA256}, f"must have sha256 {SHA256}, but has"),
        ("wrong", {"md5": MD5}, f"must have md5 {MD5}, but has"),
        ("short", {"bytes": 300_000}, "must have 300,000 bytes, but has 299,991"),
    ],
)
def test_a_failure_names_the_place_and_leaves_no_file(
    server, tmp_path, kind, facts, message
):
    with pytest.raises(UserError) as error:
        fetch(archive(server, kind, **facts), tmp_path / "a.tgz", pause=0)
    assert message in str(error.value) and f"{server.url}/{kind}" in str(error.value)
    assert not files(tmp_path) - {".a.tgz.partial"}


def test_a_closed_port_is_named(tmp_path):
    with pytest.raises(UserError, match="http://127.0.0.1:9/x: .*refused"):
        fetch(Archive("a", "http://127.0.0.1:9/x"), tmp_path / "a", pause=0)


def test_a_file_that_was_changed_after_its_download_is_refused(server, tmp_path):
    path = tmp_path / "a.tgz"
    fetch(archive(server, "good"), path)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=f"must have sha256 {SHA256}, but has"):
        fetch(archive(server, "good"), path)
    with pytest.raises(UserError, match="Delete it and run again"):
        verify(archive(server, "good", bytes=5), path)


@pytest.mark.parametrize("url", ["ftp://x/y", "file:///etc/passwd", "x", "http:///x"])
def test_only_web_addresses_are_accepted(url):
    with pytest.raises(UserError, match="must begin with http or https"):
        Archive("a", url)


PROGRAM = (
    "import sys; from pathlib import Path; "
    "from fairseq_plugins.corpus.fetch import fetch; "
    "from fairseq_plugins.corpus.recipe import Archive; "
    "fetch(Archive('a.tgz', sys.argv[1]), Path(sys.argv[2]))"
)


def test_a_killed_download_is_continued(server, tmp_path):
    path, partial = tmp_path / "a.tgz", tmp_path / ".a.tgz.partial"
    command = [sys.executable, "-c", PROGRAM, f"{server.url}/slow", str(path)]
    running = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 1:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert files(tmp_path) == {".a.tgz.partial"}
    have = partial.stat().st_size
    fetch(archive(server, "good", sha256=SHA256), path)
    assert server.requests[-1] == ("good", f"bytes={have}-" if have else None)
    assert path.read_bytes() == CONTENT


def test_a_full_disk_ends_the_download_and_keeps_its_beginning(server, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{server.url}/good", tmp_path / "a.tgz"],
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert "File too large" in result.stderr and result.returncode == 1
    assert len(server.requests) == 1
    assert files(tmp_path) == {".a.tgz.partial"}


def test_a_file_that_the_user_put_there_is_recorded_and_not_read_again(
    server, tmp_path, monkeypatch
):
    (tmp_path / "a.tgz").write_bytes(CONTENT)
    expected = archive(server, "good", sha256=SHA256)
    fetch(expected, tmp_path / "a.tgz")
    monkeypatch.setattr("fairseq_plugins.corpus.fetch.hash_file", None)
    fetch(expected, tmp_path / "a.tgz")
    assert not server.requests


def test_a_later_download_must_have_the_digest_of_the_first_one(server, tmp_path):
    fetch(archive(server, "good"), tmp_path / "a.tgz")
    (tmp_path / "a.tgz").unlink()
    with pytest.raises(UserError, match=f"must have sha256 {SHA256}, but has"):
        fetch(archive(server, "wrong"), tmp_path / "a.tgz", pause=0)
    assert not (tmp_path / "a.tgz").exists()
    fetch(archive(server, "good"), tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_two_runs_at_once_download_once(server, tmp_path):
    expected = archive(server, "slow", sha256=SHA256)
    runs = [
        threading.Thread(target=fetch, args=(expected, tmp_path / "a.tgz"))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    assert server.requests == [("slow", None)]
