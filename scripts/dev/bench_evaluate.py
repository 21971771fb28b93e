"""Time from a checkpoint to scores.json, as a ratio to that of fairseq-generate alone.

    python scripts/dev/bench_evaluate.py RUN --json results/evaluation/one_thread.json

RUN is any run folder of scripts/train.py, such as that of configs/multi30k_lstm.yaml.
The test set is the first pairs of one of its texts (--subset). Both search with one
beam and the same batches: fairseq-generate prints its translations to a file, as a user
would have it; scripts/evaluate.py does all that it does. The translations must be the
same. CPU seconds are the measure on a machine that has other work, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from tree_usage import Usage, run_measured

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import read_json, read_lines, write_json, write_lines

_SCRIPTS = Path(__file__).resolve().parent


def main() -> None:
    arguments = _parse_arguments()
    corpus = PreparedCorpus.load(Path(RunFolder(arguments.run).read_config()["data"]))
    result: dict[str, Any] = {
        "command": "python scripts/dev/bench_evaluate.py RUN",
        "run": arguments.run.name,
        "recipe": corpus.recipe,
        "subset": arguments.subset,
        "sentences": arguments.sentences,
        "beam": arguments.beam,
        "max_tokens": arguments.max_tokens,
        "threads": arguments.threads,
        "cpus": len(os.sched_getaffinity(0)),
        "torch": version("torch"),
        "load_before": os.getloadavg(),
        "turns": [],
    }
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        run = _set_up(arguments, corpus, Path(scratch))
        for _ in range(arguments.turns):
            theirs = _generate(arguments, corpus, run)
            ours = _evaluate(arguments, run)
            _check_same(run, arguments.sentences)
            result["turns"].append(_turn(theirs, ours))
            row = read_json(run / "eval" / "scores.json")[0]
            result["bleu"], result["signature"] = row["bleu"], row["bleu_signature"]
            write_json(arguments.json, result)
            shutil.rmtree(run / "eval")
    result["load_after"] = os.getloadavg()
    for name in ("seconds", "cpu_seconds"):
        sums = [sum(turn[who][name] for turn in result["turns"])
                for who in ("evaluate", "fairseq_generate")]  # fmt: skip
        result[f"ratio_of_{name}"] = sums[0] / sums[1]
    write_json(arguments.json, result)
    json.dump(result, sys.stdout, indent=2)


def _turn(theirs: Usage, ours: Usage) -> dict[str, Any]:
    return {
        "fairseq_generate": theirs._asdict(),
        "evaluate": ours._asdict(),
        "ratio_of_cpu_seconds": ours.cpu_seconds / theirs.cpu_seconds,
    }


def _set_up(
    arguments: argparse.Namespace, corpus: PreparedCorpus, scratch: Path
) -> Path:
    """Write a run like the given one whose only test set are some pairs of a text."""
    from sentencepiece import SentencePieceProcessor

    data, run, pieces = (scratch / name for name in ("corpus", "run", "pieces"))
    model = SentencePieceProcessor(model_file=str(corpus.spm_model))
    _, text = corpus.subset(arguments.subset)
    sides = {corpus.source_lang: text.source, corpus.target_lang: text.target}
    for language, path in sides.items():
        lines = read_lines(path)[: arguments.sentences]
        if len(lines) < arguments.sentences:
            raise UserError(f"`{path}` has {len(lines):,} lines only: see --sentences.")
        write_lines(data / f"test.{language}", lines)
        encoded = [" ".join(each) for each in model.encode(lines, out_type=str)]
        write_lines(pieces / f"test.{language}", encoded)
    _binarise(corpus, pieces, data / "bin")
    manifest = read_json(corpus.folder / "manifest.json")
    manifest["spm_model"] = str(corpus.spm_model)
    manifest["bin_dir"] = "bin"
    manifest["subsets"] = {
        "test": {
            "title": f"first {arguments.sentences} pairs",
            "source": f"test.{corpus.source_lang}",
            "target": f"test.{corpus.target_lang}",
            "pairs": arguments.sentences,
        }
    }
    write_json(data / "manifest.json", manifest)
    config = RunFolder(arguments.run).read_config()
    run.mkdir()
    text_of_config = yaml.safe_dump({**config, "data": str(data), "run": str(run)})
    (run / "config.yaml").write_text(text_of_config)
    (run / "checkpoints").symlink_to((arguments.run / "checkpoints").resolve())
    return run


def _binarise(corpus: PreparedCorpus, pieces: Path, folder: Path) -> None:
    """Binarise the test set, beside the training data that the model belongs to."""
    dictionaries = corpus.bin_dir / f"dict.{corpus.source_lang}.txt"
    source, target = corpus.source_lang, corpus.target_lang
    subprocess.run(
        [
            sys.executable, "-m", "fairseq_cli.preprocess", "-s", source, "-t", target,
            "--srcdict", dictionaries, "--tgtdict",
            corpus.bin_dir / f"dict.{target}.txt",
            "--testpref", pieces / "test", "--destdir", folder,
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for pattern in ("train.*", "valid.*"):
        for path in corpus.bin_dir.glob(pattern):
            (folder / path.name).symlink_to(path)


def _generate(
    arguments: argparse.Namespace, corpus: PreparedCorpus, run: Path
) -> Usage:
    command = [
        sys.executable, "-m", "fairseq_cli.generate", str(run.parent / "corpus/bin"),
        # Without its mends fairseq loads no checkpoint on today's torch.
        "--user-dir", str(_SCRIPTS.parent / "fairseq_plugins"),
        "--source-lang", corpus.source_lang, "--target-lang", corpus.target_lang,
        "--path", str(run / "checkpoints" / "checkpoint_best.pt"),
        "--beam", str(arguments.beam), "--max-tokens", str(arguments.max_tokens),
    ]  # fmt: skip
    with open(run / "generate.txt", "w") as output:
        return run_measured(command, stdout=output)


def _evaluate(arguments: argparse.Namespace, run: Path) -> Usage:
    return run_measured([
        sys.executable, str(_SCRIPTS / "evaluate.py"), str(run),
        "--beam", str(arguments.beam), "--max-tokens", str(arguments.max_tokens),
    ])  # fmt: skip


def _check_same(run: Path, sentences: int) -> None:
    """Compare the best hypotheses, without spaces and the marks of subwords."""
    theirs: dict[int, str] = {}
    for line in read_lines(run / "generate.txt"):
        if line.startswith("H-"):
            name, _, pieces = line.split("\t")
            theirs[int(name[2:])] = pieces
    row = read_json(run / "eval" / "scores.json")[0]
    ours = dict(enumerate(read_lines(run / "eval" / row["hypotheses"])))
    for number in range(sentences):
        if _letters(theirs.get(number, "")) != _letters(ours.get(number, "")):
            raise UserError(f"sentence {number + 1:,} was translated in two ways.")


def _letters(text: str) -> str:
    for old, new in ((" ", ""), ("▁", ""), ("<unk>", "⁇")):
        text = text.replace(old, new)
    return text


def _parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN")
    add("--json", type=Path, required=True, metavar="FILE")
    add("--subset", default="train", metavar="NAME", help="default: train")
    for name, default in (("sentences", 3003), ("beam", 5), ("max-tokens", 4000),
                          ("turns", 1), ("threads", 1)):  # fmt: skip
        add(f"--{name}", type=at_least(1), default=default, metavar="N",
            help="default: %(default)s")  # fmt: skip
    add("--scratch", type=Path, metavar="DIR", help="for the corpus")
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main)
