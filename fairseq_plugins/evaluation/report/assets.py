"""The page's parts, put together to one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

__all__ = ["render_page", "safe_json"]

_FOLDER = Path(__file__).parent / "assets"
# Chart.js 4.6.1; assets/vendor/README.md says where it is from.
_CHARTS = "vendor/chart.umd.min.js"
_CHARTS_SHA256 = "87364cc2b2a76a6684929e7d6b80b18a897794db38400caff1fcf1791c6925d2"
_STYLES = ("base.css", "sections.css", "explorer.css")
# In this order: each may use what stands before it.
_SCRIPTS = (
    "dom.js", "theme.js", "charts.js", "summary.js", "curves.js", "samples.js",
    "tree.js", "steps.js", "explorer.js", "making.js", "main.js",
)  # fmt: skip
# What ends a script or begins a comment inside of one, and JavaScript's line ends.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026",
            "\u2028": "\\u2028", "\u2029": "\\u2029"}  # fmt: skip


def render_page(data: Any, *, title: str) -> str:
    """Return the page as HTML.

    Text out of the data reaches the page as JSON only, and the scripts never take it
    for markup. A policy in the page allows these very scripts and no others, and no
    connection to anywhere.

    Args:
        data: whatever ``json.dumps`` takes.
        title: of the window, plain text.

    Raises:
        ValueError: the charting library is not the one that was chosen.
    """
    library, program = _library(), _program()
    hashes = " ".join(_policy_hash(script) for script in (library, program))
    parts = {
        "title": html.escape(title),
        "policy": (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "styles": "\n".join(_read(name) for name in _STYLES),
        "library": library,
        "program": program,
        "data": safe_json(data),
    }
    page = _read("page.html")
    # Not one after the other: what is put in must not be taken for a place.
    pieces = page.split("@@")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def safe_json(data: Any) -> str:
    """Return JSON that is safe inside of a ``<script>`` element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return text


def _library() -> str:
    text = _read(_CHARTS)
    if hashlib.sha256(text.encode()).hexdigest() != _CHARTS_SHA256:
        raise ValueError(f"`{_FOLDER / _CHARTS}` must have sha256 {_CHARTS_SHA256}.")
    code, _, _ = text.partition("\n//# sourceMappingURL=")  # another file: not here
    return code


def _program() -> str:
    """Return the page's own scripts as one, whose names nothing else can see."""
    parts = "\n".join(_read(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def _policy_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    with open(_FOLDER / name, encoding="utf-8", newline="") as stream:
        return stream.read()
