"""Types for argparse, which then refuses wrong values before any work starts."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Callable, Sequence

from fairseq_plugins.utils.errors import UserError


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of whole numbers of at least ``least``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, but is {value}")
        return value

    parse.__name__ = "int"  # for argparse's "invalid int value"
    return parse


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, but is {value}")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, but is {value}")
    return value


def run_folders(text: str) -> Sequence[Path]:
    """Return the run folders of a system, which are separated by commas."""
    paths = [Path(part) for part in text.split(",") if part]
    if not paths:
        raise argparse.ArgumentTypeError(f"must name a system, but is `{text}`")
    return paths


def output_file(text: str) -> Path:
    """Return a path to write to, which must not be a folder."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, but `{text}` is a folder")
    return path


def parse_assignment(text: str) -> tuple[str, str]:
    """Split ``key=value``.

    Raises:
        UserError: there is no key or no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"`{text}` must be written as `key=value`.")
    return key, value
