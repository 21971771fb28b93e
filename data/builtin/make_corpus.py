"""Make the built-in English-French corpus from CLDR's localisation data.

    python data/builtin/make_corpus.py --out DIR

Sentences come from the grammar in ``grammar/`` and the words in ``lexicon.txt``; names,
dates, amounts and measures in them come from CLDR through the library Babel. The same
seed and the same Babel give the same bytes on every Python.
"""
from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]  # these modules, the project

from fairseq_plugins.utils.errors import UserError, run_command_line  # noqa: E402
from fairseq_plugins.utils.files import (  # noqa: E402
    sha256_of,
    write_atomically,
    write_lines,
)

BABEL_VERSION = "2.18.0"  # the one whose CLDR data SHA256SUMS records
SEED = 1
COUNTS = {"train": 6000, "valid": 500, "test": 1000}
RARE_SHARE = 0.25  # fraction of names in valid and test that train never contains
WORDS = range(4, 33)  # shorter sentences repeat each other, longer ones are unnatural

Pair = tuple[str, str]


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument(
        "--any-babel", action="store_true", help="accept another Babel (other bytes)"
    )
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"`--out` must be a folder, but `{options.out}` is a file.")
    check_babel(any_version=options.any_babel)
    write_corpus(options.out, make_corpus(options.seed))


def check_babel(*, any_version: bool) -> None:
    """Raise ``UserError`` unless the recorded version of Babel is installed."""
    if importlib.util.find_spec("babel") is None:
        raise UserError(
            f"`babel` must be installed, but is not: pip install babel=={BABEL_VERSION}"
        )
    import babel

    if babel.__version__ != BABEL_VERSION and not any_version:
        raise UserError(
            f"`babel` must be {BABEL_VERSION}, which made the recorded corpus, but is "
            f"{babel.__version__}. Pass --any-babel to make a different corpus."
        )


def make_corpus(seed: int) -> dict[str, list[Pair]]:
    """Return the pairs of each split; no two pairs share a side."""
    from synchronous import Dice, Grammar, read_rules
    from vocabulary import Vocabulary  # needs babel

    dice = Dice(seed)
    vocabulary = Vocabulary(HERE / "lexicon.txt", dice)
    rules = {}
    for path in sorted((HERE / "grammar").glob("*.txt")):
        rules.update(read_rules(path))
    taken: set[tuple[str, str]] = set()
    corpus: dict[str, list[Pair]] = {}
    for split, count in COUNTS.items():
        share = 0.0 if split == "train" else RARE_SHARE
        grammar = Grammar(rules, vocabulary.sources(rare_share=share))
        corpus[split] = []
        while len(corpus[split]) < count:
            english, french = grammar.sentence(dice)
            sides = {("en", english), ("fr", french)}
            lengths = [len(text.split()) for text in (english, french)]
            if not sides & taken and all(length in WORDS for length in lengths):
                taken |= sides
                corpus[split].append((english, french))
    return corpus


def write_corpus(out: Path, corpus: dict[str, list[Pair]]) -> None:
    """Write ``SPLIT.en`` and ``SPLIT.fr`` and, last, ``SHA256SUMS``."""
    paths = []
    for split, pairs in corpus.items():
        for side, language in enumerate(("en", "fr")):
            paths.append(out / f"{split}.{language}")
            write_lines(paths[-1], [pair[side] for pair in pairs])
    with write_atomically(out / "SHA256SUMS") as stream:
        stream.writelines(f"{sha256_of(path)}  {path.name}\n" for path in paths)


if __name__ == "__main__":
    run_command_line(main)
