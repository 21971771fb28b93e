"""Look at the machine: every fact by itself, and none of them may stop the others.

What a recipe asks for, found as scripts/prepare.py does, but without downloads.
"""

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
    "Machine",
    "RecipeFault",
    "RecipeNeeds",
    "Torch",
    "ask",
    "examine",
    "recipe_needs",
]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sacrebleu", "sentencepiece")
_SECONDS = 120
_NETWORK_SECONDS = 5.0

_PYTHON_PROBE = """
import importlib.metadata as metadata, json, os, sys, sysconfig
found = {}
for name in sys.argv[1:]:
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
import json, fairseq_plugins
from fairseq.criterions import CRITERION_REGISTRY
fairseq_plugins.register()
print(json.dumps({"registered": "soft_beam_search" in CRITERION_REGISTRY}))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as ``nvidia-smi`` shows it; memory in MiB."""

    name: str
    memory: int
    free_memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """What torch says of itself: its version, and which CUDA it was built for."""

    version: str
    cuda: str | None
    sees_gpu: bool
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Facts; ``*_error`` says why something does not work, ``None`` that it does."""

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


def examine(python: Path, out: Path, hosts: Iterable[str]) -> Machine:
    """Look at this machine; takes seconds, and nothing is downloaded or changed.

    Args:
        python: the interpreter that would train.
        out: folder for results, which need not exist.
        hosts: to which a connection is tried, and given up after five seconds.
    """
    facts, python_error = ask(python, _PYTHON_PROBE, *PACKAGES)
    torch, torch_error = ask(python, _TORCH_PROBE)
    fairseq, fairseq_error = ask(python, _FAIRSEQ_PROBE)
    if fairseq and not fairseq["registered"]:
        fairseq_error = "the criterion soft_beam_search is not registered"
    gpus, driver, driver_cuda, driver_error = _nvidia()
    place = _existing(out)
    return Machine(
        python=str(python),
        python_version=tuple(facts["version"]) if facts else (),
        packages=facts["packages"] if facts else {},
        torch=_torch(torch) if torch else None,
        torch_error=python_error or torch_error,
        fairseq_error=python_error or fairseq_error,
        gpus=gpus,
        driver=driver,
        driver_cuda=driver_cuda,
        driver_error=driver_error,
        compiler=next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None),
        headers=bool(facts and facts["headers"]),
        disk=shutil.disk_usage(place).free,
        out_error=_why_no_folder(out) or _why_not_writable(place),
        shared_memory=_shared_memory(),
        host_errors={host: _why_unreachable(host) for host in hosts},
    )


def ask(python: Path, code: str, *arguments: str) -> tuple[Any, str | None]:
    """Run a probe in the interpreter; a crash in there is an answer, too.

    Returns:
        what the probe printed last, as JSON, or ``None`` and what went wrong.
    """
    command = [str(python), "-c", code, *arguments]
    try:
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS,
            env={**os.environ, "PYTHONPATH": _with_root()},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if result.returncode == 0:
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(result.stdout.strip().splitlines()[-1]), None
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    ended = f"it ended with status {result.returncode} and without an answer"
    return None, lines[-1] if lines else ended


def _with_root() -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), given] if given else [str(ROOT)])


def _torch(found: dict[str, Any]) -> Torch:
    return Torch(**{**found, "architectures": tuple(found["architectures"])})


def _nvidia() -> tuple[tuple[Gpu, ...], str | None, str | None, str | None]:
    """Return GPUs, the driver's version and newest CUDA, and what is wrong with it."""
    if shutil.which("nvidia-smi") is None:
        return (), None, None, None
    query = "name,memory.total,memory.free,compute_cap,driver_version"
    try:
        listed = _output("nvidia-smi", f"--query-gpu={query}",
                         "--format=csv,noheader,nounits")  # fmt: skip
        shown = re.search(r"CUDA Version:\s*([\d.]+)", _output("nvidia-smi"))
        rows = list(csv.reader(listed.splitlines(), skipinitialspace=True))
        gpus = tuple(
            Gpu(name, int(total), int(free), _version(capability))
            for name, total, free, capability, _ in rows
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stdout", None) or str(error)
        return (), None, None, (said.strip() or str(error)).splitlines()[0]
    driver = rows[0][4] if rows else None
    return gpus, driver, shown[1] if shown else None, None


def _output(*command: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=True
    )
    return result.stdout


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _existing(path: Path) -> Path:
    """Return the folder itself or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _why_no_folder(out: Path) -> str | None:
    """Say which of the folder and those above it is something else."""
    path = out.absolute()
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if os.path.isdir(nearest):
        return None
    return f"`--out` must be a folder, but `{nearest}` is none"


def _why_not_writable(folder: Path) -> str | None:
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    return f"`{folder}` cannot be written"


def _shared_memory() -> int | None:
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _why_unreachable(host: str) -> str | None:
    """Ask for headers only, through a proxy if the environment names one."""
    request = urllib.request.Request(f"https://{host}/", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return None


_DOWNLOADS = ROOT / "runs" / "downloads"  # the default of scripts/prepare.py

# Paths mean what they mean where the command was typed. The imports come first: what
# lies there must not be taken for one of them.
_PROBE = """
import json, os, sys
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.corpus.recipe import load_recipe
from fairseq_plugins.corpus.extract import locate, source_folder
from pathlib import Path
where, name, source, downloads = sys.argv[1:]
os.chdir(where)
found = {"archives": [], "lines": None, "fault": None}
cause = "recipe"
try:
    file, recipe = load_recipe(name)
    found["lines"] = [part.lines for part in recipe.train]
    cause = "source"
    folder = source_folder(file, recipe, Path(source) if source else None)
    located = locate(recipe, folder, downloads=None if folder else Path(downloads))
    found["archives"] = [{"bytes": each.bytes, "url": each.url}
                         for path, each in located.archives.items()
                         if not path.is_file()]
except UserError as error:
    found["fault"] = [cause, str(error)]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class RecipeNeeds:
    """What a recipe asks for.

    Attributes:
        download: bytes of the archives to be downloaded whose size is known.
        unknown: number of archives to be downloaded whose size is not known.
        pairs: lines of the training parts whose number is known.
        unknown_parts: number of training parts whose lines are not known.
        hosts: where the archives come from.
    """

    download: int
    unknown: int
    pairs: int
    unknown_parts: int
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class RecipeFault:
    """Why a recipe cannot be prepared.

    Attributes:
        cause: ``recipe`` (there is none of this name, or it is wrong), ``source`` (its
            files are not there) or ``python`` (nothing could be asked).
        message: what scripts/prepare.py would say, or the interpreter said.
    """

    cause: str
    message: str


def recipe_needs(
    python: Path, recipe: str, source: Path | None = None
) -> tuple[RecipeNeeds | None, RecipeFault | None]:
    """Return what a recipe asks for, as far as that is known, and what is wrong.

    Args:
        python: the interpreter that would prepare it.
        recipe: its name or file.
        source: what ``--source`` of scripts/prepare.py would be.
    """
    given = str(source) if source is not None else ""
    found, error = ask(python, _PROBE, os.getcwd(), recipe, given, str(_DOWNLOADS))
    if not found:
        return None, RecipeFault("python", error or "it gave no answer")
    fault = RecipeFault(*found["fault"]) if found["fault"] else None
    if found["lines"] is None:
        return None, fault
    sizes = [each["bytes"] for each in found["archives"]]
    hosts = [urlsplit(each["url"]).hostname for each in found["archives"]]
    needs = RecipeNeeds(
        download=sum(filter(None, sizes)),
        unknown=sizes.count(None),
        pairs=sum(filter(None, found["lines"])),
        unknown_parts=found["lines"].count(None),
        hosts=tuple(dict.fromkeys(filter(None, hosts))),
    )
    return needs, fault
