"""Let a Python script find its environment: the running one, else ``.venv``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NEEDED = ("torch", "fairseq", "sacrebleu", "sentencepiece", "yaml")


def ensure() -> None:
    """Make the project importable, or restart the script inside ``.venv``.

    An environment of the user's own that has everything is used as it is. Otherwise
    ``.venv`` is used, and made by ``scripts/setup.sh`` if it is not there yet.
    """
    _speak_utf8()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        sys.path.insert(0, str(ROOT))
        return
    python = ROOT / ".venv" / "bin" / "python"
    if Path(sys.prefix) == ROOT / ".venv":
        sys.exit(f"error: .venv lacks {', '.join(missing)}; run bash scripts/setup.sh")
    if not (ROOT / ".venv" / ".complete").exists():
        print("No .venv yet: running scripts/setup.sh first.", file=sys.stderr)
        subprocess.run(["bash", str(ROOT / "scripts" / "setup.sh")], check=True)
    os.execv(python, [str(python), *sys.argv])


def _speak_utf8() -> None:
    """Restart in UTF-8 mode where Python was told to take all the world for ASCII.

    It leaves ASCII by itself in a C locale, unless PYTHONUTF8=0 forbids it; then a path
    with other letters could not be written to a manifest, nor a translation printed.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # of all that is started from here, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
