"""Inspect this system and a recipe. If one inspection fails, the others continue."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable
from urllib.parse import urlsplit

__all__ = [
    "ROOT",
    "Gpu",
    "RecipeNeeds",
    "System",
    "Torch",
    "find_connection_error",
    "inspect_recipe",
    "inspect_system",
]

ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = ROOT / "runs" / "downloads"  # the default of scripts/prepare.py
_SECONDS = 120
_NETWORK_SECONDS = 5.0

_PYTHON_PROBE = """
import importlib.metadata as metadata, json, os, sys, sysconfig
found = {}
for name in ("sacrebleu", "sentencepiece"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
print(json.dumps({"version": list(sys.version_info[:3]), "packages": found,
                  "headers": os.path.isfile(header)}))
"""
_TORCH_PROBE = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "sees_gpu": torch.cuda.is_available(),
                  "architectures": torch.cuda.get_arch_list()}))
"""
_FAIRSEQ_PROBE = """
import fairseq_plugins
fairseq_plugins.register()
print("true")
"""
# The imports come before the change of folder: it may hold modules of the same names.
_RECIPE_PROBE = """
import json, os, sys
from pathlib import Path
from fairseq_plugins.corpus.extract import locate, source_folder
from fairseq_plugins.corpus.recipe import load_recipe
from fairseq_plugins.utils.errors import UserError
where, name, source, downloads = sys.argv[1:]
os.chdir(where)
found = {"archives": [], "lines": [], "cause": "", "fault": ""}
try:
    found["cause"] = "recipe"
    file, recipe = load_recipe(name)
    found["lines"] = [part.lines for part in recipe.train]
    found["cause"] = "source"
    folder = source_folder(file, recipe, Path(source) if source else None)
    located = locate(recipe, folder, downloads=None if folder else Path(downloads))
    found["archives"] = [[archive.bytes, archive.url]
                         for path, archive in located.archives.items()
                         if not path.is_file()]
except UserError as error:
    found["fault"] = str(error)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU as ``nvidia-smi`` lists it; memory in MiB."""

    name: str
    memory: int
    free_memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """torch's version, and the CUDA version and architectures it was built for."""

    version: str
    cuda: str | None
    sees_gpu: bool
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """What was found. ``*_error`` is the reason why something does not work."""

    python: str
    python_version: tuple[int, ...]
    packages: dict[str, str] = field(default_factory=dict)
    torch: Torch | None = None
    torch_error: str | None = None
    fairseq_error: str | None = None
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    driver_cuda: str | None = None
    driver_error: str | None = None
    compiler: str | None = None
    headers: bool = False
    disk: int = 0
    out_error: str | None = None
    shared_memory: int | None = None
    host_errors: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeNeeds:
    """What the preparation of a recipe needs.

    Attributes:
        download: bytes to be downloaded, of the archives with a known size.
        unknown_archives: number of the other archives to be downloaded.
        pairs: sentence pairs of the training parts with a known length.
        unknown_parts: number of the other training parts.
        hosts: the servers of the archives to be downloaded.
        fault: why the recipe cannot be prepared.
        cause: of the fault: ``recipe`` (unknown or invalid), ``source`` (its files are
            missing) or ``python`` (the interpreter does not run).
    """

    download: int = 0
    unknown_archives: int = 0
    pairs: int = 0
    unknown_parts: int = 0
    hosts: tuple[str, ...] = ()
    fault: str = ""
    cause: str = ""


def inspect_system(python: Path, out: Path, hosts: Iterable[str]) -> System:
    """Inspect this system; takes seconds, and downloads and changes nothing.

    Args:
        python: the interpreter that trains.
        out: folder for results, which need not exist.
        hosts: servers to connect to, for at most five seconds each.
    """
    facts, python_error = _run_probe(python, _PYTHON_PROBE)
    torch, torch_error = _run_probe(python, _TORCH_PROBE)
    _, fairseq_error = _run_probe(python, _FAIRSEQ_PROBE)
    out = out.absolute()
    existing = next(each for each in (out, *out.parents) if os.path.lexists(each))
    out_error = None
    if not existing.is_dir():
        out_error = f"`--out` must be a folder, but `{existing}` is not one"
        existing = existing.parent
    elif not os.access(existing, os.W_OK | os.X_OK):
        out_error = f"`{existing}` is not writable"
    shared = Path("/dev/shm")
    if torch:
        torch = Torch(**{**torch, "architectures": tuple(torch["architectures"])})
    return System(
        python=str(python),
        python_version=tuple(facts["version"]) if facts else (),
        packages=facts["packages"] if facts else {},
        torch=torch,
        torch_error=python_error or torch_error,
        fairseq_error=python_error or fairseq_error,
        compiler=next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None),
        headers=bool(facts and facts["headers"]),
        disk=shutil.disk_usage(existing).free,
        out_error=out_error,
        shared_memory=shutil.disk_usage(shared).free if shared.is_dir() else None,
        host_errors={host: find_connection_error(host) for host in hosts},
        **_inspect_gpus(),
    )


def inspect_recipe(
    python: Path, recipe: str, source: Path | None = None
) -> RecipeNeeds:
    """Return what a recipe needs, read as scripts/prepare.py reads it.

    Args:
        python: the interpreter that prepares it.
        recipe: its name or file.
        source: the option ``--source`` of scripts/prepare.py.
    """
    arguments = os.getcwd(), recipe, str(source or ""), str(DOWNLOADS)
    found, error = _run_probe(python, _RECIPE_PROBE, *arguments)
    if error is not None:
        return RecipeNeeds(fault=error, cause="python")
    sizes = [size for size, _ in found["archives"]]
    hosts = [urlsplit(url).hostname or "" for _, url in found["archives"]]
    return RecipeNeeds(
        download=sum(filter(None, sizes)),
        unknown_archives=sizes.count(None),
        pairs=sum(filter(None, found["lines"])),
        unknown_parts=found["lines"].count(None),
        hosts=tuple(dict.fromkeys(hosts)),
        fault=found["fault"],
        cause=found["cause"] if found["fault"] else "",
    )


def _run_probe(python: Path, code: str, *arguments: str) -> tuple[Any, str | None]:
    """Return the last line that a program prints, as JSON, or the error."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        result = subprocess.run(
            [str(python), "-c", code, *arguments], cwd=ROOT, capture_output=True,
            text=True, timeout=_SECONDS, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if result.returncode == 0:
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(result.stdout.strip().splitlines()[-1]), None
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    ended = f"it ended with status {result.returncode} and without an answer"
    return None, lines[-1] if lines else ended


def _inspect_gpus() -> dict[str, Any]:
    """Return the fields of :class:`System` that ``nvidia-smi`` knows."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = "name,memory.total,memory.free,compute_cap,driver_version"
    try:
        listed, overview = (
            subprocess.run(
                ["nvidia-smi", *options],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=True,
            ).stdout
            for options in (
                [f"--query-gpu={query}", "--format=csv,noheader,nounits"],
                [],
            )
        )
        rows = list(csv.reader(listed.splitlines(), skipinitialspace=True))
        gpus = []
        for name, total, free, capability, _ in rows:
            major, _, minor = capability.partition(".")
            gpus.append(Gpu(name, int(total), int(free), (int(major), int(minor or 0))))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        printed = (getattr(error, "stdout", None) or "").strip() or str(error)
        return {"driver_error": printed.splitlines()[0]}
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", overview)
    return {
        "gpus": tuple(gpus),
        "driver": rows[0][4] if rows else None,
        "driver_cuda": cuda[1] if cuda else None,
    }


def find_connection_error(host: str) -> str | None:
    """Request headers from a server, through a proxy if the environment names one."""
    request = urllib.request.Request(f"https://{host}/", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # the server answers
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return None
