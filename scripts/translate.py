"""Translate raw text with trained models.

    python scripts/translate.py RUN [RUN ...] [FILE | -] [-o OUT] [--beam 5]

RUN is a folder of scripts/train.py; several runs are an ensemble. FILE is raw text, one
segment per line; without it, or with `-`, the standard input is read. Line n of the
output is the translation of line n of the input. Checkpoints that fairseq-train wrote
without this toolkit:

    python scripts/translate.py --path CHECKPOINT --data-bin DIR \\
        --sentencepiece-model MODEL [FILE | -]
"""

from __future__ import annotations

import environment

environment.ensure()

import argparse
import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import IO, Callable, Iterable, Iterator

from fairseq_plugins.inference.loading import load_data_bin, load_runs
from fairseq_plugins.inference.translator import (
    ON_LONG,
    SearchOptions,
    Translation,
    Translator,
)
from fairseq_plugins.utils.arguments import at_least
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import write_atomically
from fairseq_plugins.utils.progress import progress_bar

_FORMATS = ("text", "tsv", "jsonl")


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fairseq_plugins").setLevel(logging.INFO)
    arguments = _parse_arguments()
    runs, file = _split_positionals(arguments)
    options = SearchOptions(
        beam=arguments.beam,
        nbest=arguments.nbest,
        lenpen=arguments.lenpen,
        max_len_a=arguments.max_len_a,
        max_len_b=arguments.max_len_b,
    )
    num_lines = _check_text(file) if file is not None else None
    translator = _load(runs, arguments)
    if file is not None and arguments.on_long == "error":
        translator.check_lengths(_lines_of(file))
    limit_reached = 0
    with contextlib.ExitStack() as stack:
        output: IO[str] = sys.stdout
        if arguments.output is not None:
            output = stack.enter_context(write_atomically(arguments.output))
        lines = _lines_of(file) if file is not None else _lines(sys.stdin.buffer, "-")
        translations = translator.translate(
            lines,
            options,
            on_long=arguments.on_long,
            buffer_lines=1 if _is_interactive(arguments, file) else arguments.buffer,
        )
        progress = stack.enter_context(progress_bar("lines", total=num_lines))
        for number, translation in enumerate(translations, start=1):
            for row in _rows(number, translation, arguments):
                output.write(row + "\n")
            if output is sys.stdout and _is_interactive(arguments, file):
                output.flush()
            progress.update(1)
            limit_reached += translation.reached_limit
    if limit_reached:
        logging.warning(
            "Warning: %d translations reached the limit of `--max-len-a` and "
            "`--max-len-b` and may be cut off.",
            limit_reached,
        )


def _is_interactive(arguments: argparse.Namespace, file: Path | None) -> bool:
    return arguments.interactive or (file is None and sys.stdin.isatty())


def _rows(
    number: int, translation: Translation, arguments: argparse.Namespace
) -> Iterator[str]:
    hypotheses = translation.hypotheses
    if arguments.format == "text":
        best = hypotheses[0]
        yield f"{best.score:.4f}\t{best.text}" if arguments.score else best.text
    elif arguments.format == "tsv":
        for rank, each in enumerate(hypotheses, start=1):
            yield f"{number}\t{rank}\t{each.score:.4f}\t{each.text}"
    else:
        record = {
            "line": number,
            "source": translation.source,
            "hypotheses": [
                {
                    "text": each.text,
                    "score": round(each.score, 6),
                    "length": len(each.tokens),
                    "tokens": list(each.tokens),
                }
                for each in hypotheses
            ],
        }
        yield json.dumps(record, ensure_ascii=False)


def _check_text(file: Path) -> int:
    """Return the number of lines of a file; raise ``UserError`` unless it is UTF-8."""
    if not file.is_file():
        raise UserError(
            f"`{file}` must be a text file or a run folder, but is neither."
        )
    return sum(1 for _ in _lines_of(file))


def _lines_of(file: Path) -> Iterator[str]:
    with open(file, "rb") as stream:
        yield from _lines(stream, str(file))


def _lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"`{name}` must be UTF-8 text, but line {number} is not: "
                f"{error.reason} at byte {error.start + 1}."
            ) from None
        yield text.rstrip("\r\n")


def _load(runs: list[Path], arguments: argparse.Namespace) -> Translator:
    common = {"max_tokens": arguments.max_tokens, "use_gpu": not arguments.cpu}
    if arguments.path:
        return load_data_bin(
            arguments.path,
            arguments.data_bin,
            sentencepiece_model=arguments.sentencepiece_model,
            **common,
        )
    return load_runs(runs, checkpoint=arguments.checkpoint, **common)


def _split_positionals(arguments: argparse.Namespace) -> tuple[list[Path], Path | None]:
    """Return the run folders and the file, ``None`` for the standard input."""
    words = list(arguments.runs)
    file = None
    if words and words[-1] == "-":
        words.pop()
    elif words and (arguments.path or not Path(words[-1]).is_dir()):
        file = Path(words.pop())
    if bool(words) == bool(arguments.path):
        raise UserError("give one or more run folders, or `--path` and `--data-bin`.")
    if arguments.path and not (arguments.data_bin and arguments.sentencepiece_model):
        raise UserError("`--path` needs `--data-bin` and `--sentencepiece-model`.")
    if arguments.nbest > 1 and arguments.format == "text":
        raise UserError(
            f"`--nbest` must be 1 with `--format text`, but is {arguments.nbest}; use "
            "`--format tsv` or `jsonl`."
        )
    return [Path(word) for word in words], file


def _parse_arguments() -> argparse.Namespace:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    add(
        "runs", nargs="*", metavar="RUN", help="run folders, then the file to translate"
    )
    add("-o", "--output", type=Path, metavar="OUT", help="default: standard output")
    add(
        "--checkpoint",
        help="best, last, average or a path; default: best if the run chose it by "
        "validation BLEU, otherwise last",
    )
    add("--beam", type=at_least(1), default=5, help="default: %(default)s")
    add("--nbest", type=at_least(1), default=1, help="hypotheses per line")
    add("--lenpen", type=float, default=1.0, help="exponent of the length")
    add("--max-len-a", type=float, default=0.0, help="longest hypothesis: a * x + b")
    add("--max-len-b", type=at_least(1), default=200, help="default: %(default)s")
    add("--format", choices=_FORMATS, default="text", help="default: %(default)s")
    add("--score", action="store_true", help="with `text`: score, tab, translation")
    add(
        "--on-long",
        choices=ON_LONG,
        default="error",
        help="what to do with a line that is longer than the model can read",
    )
    add("--interactive", action="store_true", help="translate each line at once")
    add("--buffer", type=at_least(1), default=5000, metavar="LINES",
        help="lines that are sorted by length and translated together")  # fmt: skip
    add("--max-tokens", type=at_least(1), default=4000, help="size of a batch")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--path", type=Path, nargs="+", help="checkpoints of fairseq-train")
    add("--data-bin", type=Path, metavar="DIR", help="of fairseq-preprocess")
    add("--sentencepiece-model", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_command_line(main))
