"""Prepare a corpus for fairseq-train: from raw text to a binarized folder.

    python scripts/prepare.py RECIPE [--source DIR] [--out DIR] [--stage NAME] [--smoke]

See ``docs/data.md``; the command line is ``fairseq_plugins/corpus/__main__.py``.
"""

from __future__ import annotations

import environment

environment.ensure()

from fairseq_plugins.corpus.__main__ import prepare_corpus
from fairseq_plugins.utils.errors import run_command_line


def main() -> None:
    prepare_corpus(runs=environment.ROOT / "runs")


if __name__ == "__main__":
    run_command_line(main)
