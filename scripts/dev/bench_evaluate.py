"""Time from a checkpoint to scores, as a ratio to that of fairseq-generate alone.

    python scripts/dev/bench_evaluate.py RUN [--subset test] [--turns 2]

RUN is a run folder of scripts/train.py. Both commands translate the same text with one
beam size and the same batches: fairseq-generate prints its translations to a file, and
scripts/evaluate.py does everything that it does. The translations must be the same.
Compare CPU seconds on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Usage, create_parser, describe_machine, measure_command
from results_tables import ROOT, merge_rows

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json, read_lines

KEY = ("corpus", "run", "subset", "beam", "turn", "command", "threads", "device")


def main() -> None:
    arguments = _parse_arguments()
    corpus = PreparedCorpus.load(Path(RunFolder(arguments.run).read_config()["data"]))
    name, text = corpus.subset(arguments.subset)
    machine = describe_machine(threads=arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    for turn in range(1, arguments.turns + 1):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            run = _copy_run(arguments.run, Path(scratch) / "run")
            usages = {
                "fairseq-generate": _generate(arguments, corpus, name, run),
                "evaluate.py": _evaluate(arguments, run),
            }
            row = read_json(run / "eval" / "scores.json")[0]
            _check_same(run, row, len(read_lines(text.source)))
        rows: list[dict[str, Any]] = [
            {
                "corpus": corpus.recipe, "run": arguments.run.name, "subset": name,
                "sentences": row["sentences"], "beam": arguments.beam, "turn": turn,
                "command": command, **usage._asdict(), "bleu": row["bleu"], **machine,
            }
            for command, usage in usages.items()
        ]  # fmt: skip
        merge_rows(arguments.output, rows, KEY)
        theirs, ours = (usage.cpu_seconds for usage in usages.values())
        print(f"turn {turn}: {ours / theirs:.2f} x the CPU seconds", flush=True)


def _copy_run(run: Path, copy: Path) -> Path:
    """Return a run folder with the same checkpoints, in which nothing is evaluated."""
    copy.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (copy / name).symlink_to((run / name).resolve())
    return copy


def _generate(
    arguments: argparse.Namespace, corpus: PreparedCorpus, subset: str, run: Path
) -> Usage:
    command = [
        sys.executable, "-m", "fairseq_cli.generate", str(corpus.bin_dir),
        # Without its fixes fairseq loads no checkpoint on recent versions of torch.
        "--user-dir", str(ROOT / "fairseq_plugins"), "--gen-subset", subset,
        "--source-lang", corpus.source_lang, "--target-lang", corpus.target_lang,
        "--path", str(run / "checkpoints" / "checkpoint_best.pt"),
        "--beam", str(arguments.beam), "--max-tokens", str(arguments.max_tokens),
    ]  # fmt: skip
    with open(run / "generate.txt", "w") as output:
        return measure_command(command, stdout=output)


def _evaluate(arguments: argparse.Namespace, run: Path) -> Usage:
    return measure_command([
        sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(run),
        "--subset", arguments.subset,
        "--beam", str(arguments.beam), "--max-tokens", str(arguments.max_tokens),
    ])  # fmt: skip


def _check_same(run: Path, row: dict[str, Any], sentences: int) -> None:
    """Compare the best hypotheses, without spaces and the marks of subwords."""
    theirs: dict[int, str] = {}
    for line in read_lines(run / "generate.txt"):
        if line.startswith("H-"):
            name, _, pieces = line.split("\t")
            theirs[int(name[2:])] = pieces
    ours = read_lines(run / "eval" / row["hypotheses"])
    for number in range(sentences):
        if _letters(theirs[number]) != _letters(ours[number]):
            raise UserError(f"the translations of sentence {number + 1:,} differ.")


def _letters(text: str) -> str:
    for old, new in ((" ", ""), ("▁", ""), ("<unk>", "⁇")):
        text = text.replace(old, new)
    return text


def _parse_arguments() -> argparse.Namespace:
    parser = create_parser(__doc__, "evaluation.csv")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    add("--subset", default="test", metavar="NAME", help="default: test")
    for name, default in (("beam", 5), ("max-tokens", 4000), ("turns", 1),
                          ("threads", 1)):  # fmt: skip
        add(f"--{name}", type=at_least(1), default=default, metavar="N",
            help="default: %(default)s")  # fmt: skip
    add("--scratch", type=Path, metavar="DIR", help="for temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
