"""The web application: a page to try models on, and a JSON interface.

Nothing from a request is written to disk, and no path of a request names a file: all
files of the page are read when the application starts.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairseq_plugins.evaluation.report.page import join_scripts, read_asset
from fairseq_plugins.inference.translator import SearchOptions
from fairseq_plugins.serving.api import (
    EXPLORE_FIELDS,
    MAX_BEAM,
    MAX_TEXT,
    TRANSLATE_FIELDS,
    Field,
    openapi,
    parse_fields,
)
from fairseq_plugins.serving.served_run import ServedRun
from fairseq_plugins.utils.errors import UserError, did_you_mean

__all__ = ["MAX_BODY", "create_app", "is_loopback"]

MAX_BODY = 64 * 1024  # bytes: a few times the longest text in UTF-8
# So much of a longer body is read and dropped, so that its client gets the answer.
_MAX_DROPPED = 8 * 1024 * 1024
_BODY_SECONDS = 10.0

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("base.css", "sections.css", "explorer.css")
_SCRIPTS = ("dom.js", "theme.js", "differences.js", "tree.js", "steps.js", "search.js")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_app(
    runs: Sequence[ServedRun], *, queue_size: int = 32, is_local: bool = True
) -> ASGIApp:
    """Return the application.

    Args:
        runs: with different names and the same languages.
        queue_size: number of requests that may wait for the models; others get 503.
        is_local: whether only this computer can reach the server. Then a request must
            be addressed to it by a name of this computer.
    """
    application = _Application(runs, queue_size)
    starlette = Starlette(
        routes=application.routes(),
        exception_handlers={
            HTTPException: _answer_http_error,
            UserError: _answer_user_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_failure,
        },
    )
    return _Guard(starlette, is_local=is_local)


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is that of this computer for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Application:
    def __init__(self, runs: Sequence[ServedRun], queue_size: int) -> None:
        self._runs = {run.name: run for run in runs}
        self._queue = _ModelQueue(queue_size)

    def routes(self) -> list[Route]:
        page = (_ASSETS / "page.html").read_text(encoding="utf-8")
        style = "\n".join(
            [*map(read_asset, _STYLES), (_ASSETS / "page.css").read_text("utf-8")]
        )
        script = join_scripts(
            [*map(read_asset, _SCRIPTS), (_ASSETS / "page.js").read_text("utf-8")]
        )
        source, target = next(iter(self._runs.values())).languages
        description = {
            "runs": [
                {"label": run.name, "epsilon": run.epsilon}
                for run in self._runs.values()
            ],
            "languages": [source, target],
            "max_text": MAX_TEXT,
            "max_beam": MAX_BEAM,
        }
        return [
            _fixed("/", page, "text/html"),
            _fixed("/page.css", style, "text/css"),
            _fixed("/page.js", script, "text/javascript"),
            _fixed("/runs", JSONResponse(description).body, "application/json"),
            _fixed("/openapi.json", JSONResponse(openapi()).body, "application/json"),
            Route("/translate", self._translate, methods=["POST"]),
            Route("/explore", self._explore, methods=["POST"]),
        ]

    async def _translate(self, request: Request) -> Response:
        fields = await _read_fields(request, TRANSLATE_FIELDS)
        names = list(self._runs) if fields["run"] is None else [fields["run"]]
        runs = [self._run(name) for name in names]
        if fields["nbest"] > fields["beam"]:
            raise UserError(
                f"`nbest` must be at most `beam` ({fields['beam']}), but is "
                f"{fields['nbest']}."
            )
        options = SearchOptions(
            beam=fields["beam"], nbest=fields["nbest"], lenpen=fields["lenpen"]
        )
        return await self._queue.answer(
            request,
            lambda: {
                "translations": [run.translate(fields["text"], options) for run in runs]
            },
        )

    async def _explore(self, request: Request) -> Response:
        fields = await _read_fields(request, EXPLORE_FIELDS)
        run = self._run(fields["run"] or next(iter(self._runs)))
        explore = functools.partial(
            run.explore,
            fields["text"],
            reference=fields["reference"] or None,
            beam=fields["beam"],
            lenpen=fields["lenpen"],
            epsilon=fields["epsilon"],
        )
        return await self._queue.answer(request, explore)

    def _run(self, name: str) -> ServedRun:
        if name not in self._runs:
            listed = ", ".join(f"`{each}`" for each in self._runs)
            raise UserError(
                f"`run` must be one of {listed}.{did_you_mean(name, self._runs)}"
            )
        return self._runs[name]


class _ModelQueue:
    """Calls the models one at a time, in a thread; the event loop stays free."""

    def __init__(self, size: int) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._is_running = asyncio.Lock()
        self._size = size
        self._accepted = 0  # one that runs, and those that wait

    async def answer(self, request: Request, call: Callable[[], Any]) -> Response:
        if self._accepted > self._size:
            raise HTTPException(
                503,
                f"{self._size} requests are waiting already; try again later.",
                {"Retry-After": "1"},
            )
        self._accepted += 1
        try:
            async with self._is_running:
                if await request.is_disconnected():
                    raise ClientDisconnect()
                # A long description of a search takes a while to encode.
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, lambda: JSONResponse(call())
                )
        finally:
            self._accepted -= 1


class _Guard:
    """Refuses requests on behalf of other web pages; adds security headers.

    Any page that is open in a browser on this computer can send requests to it. They
    have an ``Origin``; or they have a ``Host`` of the page's, if that name was made to
    resolve to this computer.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool) -> None:
        self._app = app
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        app = self._app
        if not self._is_allowed(Headers(scope=scope)):
            app = _error("this request comes from another web page.", 403)
        await app(scope, receive, send_with_headers)

    def _is_allowed(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            names = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            return False
        if self._is_local and not is_loopback(names[0] or ""):
            return False
        return origin is None or names[1] == host


def _fixed(path: str, content: str | bytes, media_type: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, answer)


async def _read_fields(request: Request, fields: Mapping[str, Field]) -> dict[str, Any]:
    try:
        body = await asyncio.wait_for(_read_body(request), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, "the body did not arrive in time.") from None
    return parse_fields(fields, body)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY:
            body += chunk
        elif size > _MAX_DROPPED:
            break
    if size > MAX_BODY:
        raise HTTPException(413, f"the body must have at most {MAX_BODY:,} bytes.")
    return bytes(body)


def _error(
    message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.detail, error.status_code, error.headers)


async def _answer_user_error(request: Request, error: Exception) -> Response:
    return _error(str(error), 422)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return _error("the client closed the connection.", 400)


async def _answer_failure(request: Request, error: Exception) -> Response:
    return _error("the server failed; see its log.", 500)
