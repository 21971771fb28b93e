"""Read a training configuration: YAML files that build on each other, and overrides.

A file holds lines of ``key: value``. These keys belong to this project, and all others
are options of ``fairseq-train``:

* ``base``: a file or a list of files to start with, relative to the file that names
  them. A later file of the list wins over an earlier one, and the naming file over all;
* ``data``: the folder that ``scripts/prepare.py`` or ``fairseq-preprocess`` wrote;
* ``run``: the folder for the results;
* ``start_from``: optional, the checkpoint with the initial weights. It also gives the
  architecture and its sizes, if the configuration does not;
* ``batches_per_update``: optional, replaces ``update_freq``, which becomes this number
  divided by the number of processes: any number of GPUs gives the same training.

``data_sha256``, ``start_from_sha256`` and ``processes`` are filled in when a run
starts. They are part of ``RUN/config.yaml``, so that results are never mistaken for
results with other data, another initial checkpoint or other batches.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
from pathlib import Path
from typing import Any, Iterable

from fairseq_plugins.corpus.manifest import (
    MANIFEST,
    PreparedCorpus,
    refuse_split_path,
)
from fairseq_plugins.utils.arguments import parse_assignment
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import sha256_of
from fairseq_plugins.utils.typed_yaml import parse_yaml, read_yaml

__all__ = [
    "PROJECT_KEYS",
    "Config",
    "Layer",
    "compute_batches_per_update",
    "find_binarized_folder",
    "digest_data",
    "merge_layers",
    "format_config",
    "pin_inputs",
    "read_config",
    "read_layers",
    "compute_update_freq",
    "parse_whole_numbers",
]

Config = dict[str, Any]
Layer = tuple[str, Config]  # where the values come from, and the values

PROJECT_KEYS = (
    "batches_per_update",
    "data",
    "data_sha256",
    "processes",
    "run",
    "start_from",
    "start_from_sha256",
)
_PATHS = ("data", "run", "start_from")


def read_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Return the flat configuration of a file and ``key=value`` overrides.

    Keys have underscores, ``data``, ``run`` and ``start_from`` are absolute paths. An
    override wins over the files, and a key whose value is null is left out.

    Raises:
        UserError: a file is missing or broken; bases form a cycle; an override is not
            ``key=value``; ``data`` or ``run`` is missing.
    """
    return merge_layers(path, read_layers(path, overrides))


def read_layers(path: Path, overrides: Iterable[str] = ()) -> list[Layer]:
    """Return the values of all bases, of the file and of the overrides, in this order.

    Raises:
        UserError: see :func:`read_config`.
    """
    changes: Config = {}
    for override in overrides:
        key, text = parse_assignment(override)
        key = _normalize(key)
        if key == "base":
            raise UserError("`base` must be given in a file, not as `base=...`.")
        # YAML would read a folder `007` as the number 7.
        is_path = key in _PATHS and text not in ("", "null")
        changes[key] = text if is_path else parse_yaml(text, override)
    return [*_read_file(path, ()), ("command line", changes)]


def merge_layers(path: Path, layers: Iterable[Layer]) -> Config:
    """Return the configuration that these layers of a file make, later ones winning.

    Raises:
        UserError: ``data`` or ``run`` is missing.
    """
    config: Config = {}
    for _, values in layers:
        config |= values
    config = {key: value for key, value in config.items() if value is not None}
    for key in ("data", "run"):
        if key not in config:
            raise UserError(f"`{path}` must give `{key}`, or add `{key}=...`.")
    for key in _PATHS:
        if key in config:
            config[key] = str(Path(str(config[key])).expanduser().resolve())
    return config


def format_config(config: Config, layers: Iterable[Layer]) -> str:
    """Return one line of YAML for each key, with the origin of its value as a comment.

    Keys that no layer gives were filled in: digests, processes and, from the checkpoint
    ``start_from``, the architecture.
    """
    origins = {key: origin for origin, values in layers for key in values}
    lines = [f"{key}: {value}" for key, value in config.items()]
    width = min(60, max(map(len, lines)))
    return "".join(
        f"{line:<{width}}  # {origins.get(key, 'filled in')}\n"
        for key, line in zip(config, lines)
    )


def _read_file(path: Path, chain: tuple[Path, ...]) -> list[Layer]:
    """Read a file after its bases; ``chain`` holds the files that led here."""
    if path.resolve() in (each.resolve() for each in chain):
        cycle = " -> ".join(f"`{each}`" for each in (*chain, path))
        raise UserError(
            f"`base` must not lead back to the same file, but does: {cycle}."
        )
    if not path.exists():
        named = f", which `{chain[-1]}` names as `base`, does" if chain else " does"
        raise UserError(f"`{path}`{named} not exist.{_suggest_file(path)}")
    values = read_yaml(path, normalize_key=_normalize)
    if not isinstance(values, dict):
        raise UserError(f"`{path}` must hold lines of `key: value`.")
    values = {_normalize(key): value for key, value in values.items()}
    bases = values.pop("base", None)
    layers: list[Layer] = []
    for base in bases if isinstance(bases, list) else [bases] if bases else []:
        if not isinstance(base, str):
            raise UserError(f"`base` of `{path}` must name files, but has `{base}`.")
        layers += _read_file(path.parent / base, (*chain, path))
    return [*layers, (str(path), values)]


def _normalize(key: object) -> str:
    return str(key).strip().lstrip("-").replace("-", "_")


def _suggest_file(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f" Did you mean `{path.with_name(near[0])}`?" if near else ""


def find_binarized_folder(data: Path) -> Path:
    """Return the folder that fairseq reads: that of the corpus, or ``data`` itself.

    Raises:
        UserError: there is no data, its preparation was not completed, or fairseq would
            split its path.
    """
    refuse_split_path(data)
    if (data / MANIFEST).is_file():
        return PreparedCorpus.load(data).bin_dir
    if any(data.glob("dict.*.txt")):
        return data
    found = "holds neither" if data.is_dir() else "does not exist"
    raise UserError(
        "`data` must be a folder that scripts/prepare.py finished (with manifest.json) "
        f"or that fairseq-preprocess wrote (with dict.*.txt), but `{data}` {found}."
    )


def digest_data(data: Path, subsets: Iterable[str]) -> str:
    """Return a digest of the dictionaries and of the sizes of the binary files.

    The binary files may have gigabytes and are not read.

    Raises:
        UserError: fairseq cannot read this folder.
    """
    folder = find_binarized_folder(data)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("dict.*.txt")):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    for subset in subsets:
        for path in sorted(folder.glob(f"{subset}.*.bin")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def pin_inputs(
    config: Config, *, recorded: Config | None, processes: int = 1
) -> Config:
    """Return the configuration with the digests of its data and initial checkpoint.

    Args:
        config: as :func:`read_config` returns it.
        recorded: the configuration of the results that the run folder already holds.
            They no longer need their initial checkpoint.
        processes: the number of processes that share a batch now; replaces the number
            in the configuration.

    Raises:
        UserError: an input is missing, or has another digest than the configuration
            gives.
    """
    pinned = {key: value for key, value in config.items() if key != "processes"}
    if processes > 1:
        pinned["processes"] = processes
    _pin(pinned, "data", digest_data(Path(config["data"]), ("train", "valid")))
    if "start_from" in config:
        start = Path(config["start_from"])
        if start.is_file():
            _pin(pinned, "start_from", sha256_of(start))
        elif recorded and recorded.get("start_from") == config["start_from"]:
            _pin(pinned, "start_from", recorded["start_from_sha256"])
        else:
            raise UserError(f"`start_from` must be a file, but `{start}` is none.")
    return pinned


def _pin(config: Config, key: str, digest: str) -> None:
    expected = config.setdefault(f"{key}_sha256", digest)
    if expected != digest:
        raise UserError(
            f"`{key}_sha256` is {expected}, but `{config[key]}` now holds {digest}."
        )


def compute_batches_per_update(config: Config) -> list[int]:
    """Return the number of batches of all processes per update, one entry per epoch.

    The last entry holds for all later epochs. Eight processes with one batch each give
    the same gradient as one process that accumulates eight.

    Raises:
        UserError: one of these options is not a whole number.
    """
    if "batches_per_update" in config:
        return parse_whole_numbers(config, "batches_per_update")
    processes = int(config.get("processes", 1))
    return [processes * each for each in parse_whole_numbers(config, "update_freq", 1)]


def parse_whole_numbers(config: Config, key: str, default: int = 0) -> list[int]:
    """Return an option as a list of numbers; it may be a number, a list or text.

    Raises:
        UserError: it is anything else.
    """
    value = config.get(key, default)
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
        found = found if isinstance(found, (list, tuple)) else [found]
        numbers = [int(each) for each in found]
    except (ValueError, TypeError, SyntaxError, OverflowError):
        numbers = []
    if not numbers:
        raise UserError(f"`{key}` must be a whole number, but is `{value}`.")
    return numbers


def compute_update_freq(batches: object, processes: int) -> int:
    """Return the number of batches that each process accumulates.

    Raises:
        UserError: ``batches`` is not a positive multiple of ``processes``.
    """
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UserError(
            f"`batches_per_update` must be a positive whole number, but is `{batches}`."
        )
    if batches % processes:
        raise UserError(
            "`batches_per_update` must be a multiple of the number of processes, but "
            f"is {batches} for {processes}."
        )
    return batches // processes
