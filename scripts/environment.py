"""Choose the environment of a script: the running one, otherwise ``.venv``."""

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

    A running environment that has all packages is used as it is. Otherwise ``.venv`` is
    used, which ``scripts/setup.sh`` creates if it does not exist.
    """
    _use_utf8()
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


def _use_utf8() -> None:
    """Restart in UTF-8 mode if Python uses ASCII for the names of files.

    Python does not use ASCII in a C locale unless PYTHONUTF8=0 forces it to. Then a
    path with other letters could not be written to a manifest, and a translation could
    not be printed.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # child processes inherit it
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
