"""Put the parts of a report into one HTML file that makes no network requests."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any, Iterable

__all__ = ["join_scripts", "read_asset", "render_page", "safe_json"]

_ASSETS = Path(__file__).parent / "assets"
# Chart.js 4.6.1; see assets/vendor/README.md.
_CHARTS = "vendor/chart.umd.min.js"
_CHARTS_SHA256 = "87364cc2b2a76a6684929e7d6b80b18a897794db38400caff1fcf1791c6925d2"
_STYLES = ("base.css", "sections.css", "explorer.css")
# Each script may use those before it.
_SCRIPTS = (
    "dom.js", "data.js", "theme.js", "charts.js", "summary.js", "curves.js",
    "differences.js", "samples.js", "tree.js", "steps.js", "search.js", "explorer.js",
    "reproduction.js", "main.js",
)  # fmt: skip
# These characters can end a script element, begin a comment in it or end a line.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render_page(data: Any, *, title: str) -> str:
    """Return the HTML file.

    Text from ``data`` enters the file as JSON only, and the scripts never treat it as
    markup. A content security policy allows these scripts and no others, and no
    connection.

    Args:
        data: anything that ``json.dumps`` accepts.
        title: of the window, as plain text.

    Raises:
        ValueError: the file of the charting library has been changed.
    """
    library = read_asset(_CHARTS)
    if hashlib.sha256(library.encode()).hexdigest() != _CHARTS_SHA256:
        raise ValueError(f"`{_ASSETS / _CHARTS}` must have sha256 {_CHARTS_SHA256}.")
    library, _, _ = library.partition("\n//# sourceMappingURL=")  # an external file
    program = join_scripts(map(read_asset, _SCRIPTS))
    hashes = " ".join(map(_policy_hash, (library, program)))
    parts = {
        "title": html.escape(title),
        "policy": (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "styles": "\n".join(map(read_asset, _STYLES)),
        "library": library,
        "program": program,
        "data": safe_json(data),
    }
    # All at once, so that @@ in the data is not taken for a placeholder.
    pieces = read_asset("page.html").split("@@")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def join_scripts(scripts: Iterable[str]) -> str:
    """Return one script without global names; each part may use those before it."""
    joined = "\n".join(scripts)
    return f'(() => {{\n"use strict";\n{joined}\n}})();'


def read_asset(name: str) -> str:
    """Return the text of a file of the report's page."""
    with open(_ASSETS / name, encoding="utf-8", newline="") as stream:
        return stream.read()


def safe_json(data: Any) -> str:
    """Return JSON that is safe inside a ``<script>`` element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _policy_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
