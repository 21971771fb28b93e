"""Headless Chromium for the tests of HTML pages, and a check of contrast."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import warnings
from typing import Any, Iterator

import pytest

# Run as root, and do not connect to the servers of the vendor.
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Returns the lowest contrast of all text, and where it is.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) =>
      (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgb(getComputedStyle(e).backgroundColor));
    }
    return layers.reverse().reduce((under, [r, g, b, a = 1]) =>
      [r, g, b].map((v, i) => a * v + (1 - a) * under[i]), [255, 255, 255]);
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("main *, nav a")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || e.disabled || !e.getClientRects().length) continue;
    if (e.closest("svg, .hidden, [aria-hidden]")) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const where = `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`;
    if (ratio < worst[0]) worst = [ratio, where];
  }
  return worst;
}"""


@contextlib.contextmanager
def start_browser() -> Iterator[Any]:
    """Yield Chromium, or skip the test with a warning if it is not installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        reason = "needs Chromium and the Python package playwright"
        warnings.warn(f"HTML pages are NOT tested in a browser: {reason}", stacklevel=1)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield started
        started.close()
