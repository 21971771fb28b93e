"""Does top-k attention pay? Train, translate and compare, with everything kept.

    python scripts/dev/study_topk_attention.py --source FOLDER [--variants plain ...]

On Multi30k English-German: a small plain Transformer, then equally many more updates
from its checkpoint by each variant and seed. k and epsilon are chosen by BLEU on the
validation text; the tests are translated by all, and compared with the plain one of
the same seed. Runs lie under --out, their results as JSON under --results, where
summary.json has all scores in rows; docs/topk_attention.md gets their table. What is
done already is not done again, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from choice import chosen_variants
from study import (
    CONFIGS,
    ROOT,
    beams_with_earlier,
    evaluated,
    parser_of_study,
    prepare,
    summary_rows,
    train,
    write_result,
)
from study_table import study_table

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_between, write_json

RESULTS = ROOT / "results" / "topk_attention"
PAGE = ROOT / "docs" / "topk_attention.md"
RECIPE = "multi30k-en-de"
TESTS = ("test_2016_flickr", "test_2017_flickr")


class Variant(NamedTuple):
    """A system with its k and epsilon, where it has them."""

    system: str
    k: float | None = None
    epsilon: float | None = None
    attentions: str | None = None

    @property
    def name(self) -> str:
        if self.system == "start":
            return "start: where all others start"
        parts = [f"k = {self.k:g}"] if self.k else []
        parts += [f"epsilon = {self.epsilon:g}"] if self.epsilon else []
        parts += [self.attentions.replace(",", ", ")] if self.attentions else []
        return f"{self.system}: {', '.join(parts)}" if parts else self.system

    @property
    def config(self) -> Path:
        end = "" if self.system == "soft_topk" else f"_{self.system}"
        return CONFIGS / f"multi30k_transformer_topk{end}.yaml"

    def changes(self) -> dict[str, object]:
        values = {
            "topk_k": self.k,
            "topk_epsilon": self.epsilon,
            "topk_attentions": self.attentions,
        }
        return {key: value for key, value in values.items() if value is not None}


ALL = "cross,decoder,encoder"
VARIANTS = {
    "start": Variant("start"),
    "plain": Variant("plain"),
    "soft4": Variant("soft_topk", 4, 1.0),
    "hard4": Variant("hard", 4),
    "entmax15": Variant("entmax15"),
    "soft8": Variant("soft_topk", 8, 1.0),
    "soft4sharp": Variant("soft_topk", 4, 0.2),
    "soft2": Variant("soft_topk", 2, 1.0),
    "hard8": Variant("hard", 8),
    "soft4all": Variant("soft_topk", 4, 1.0, ALL),
}

logger = logging.getLogger("study")


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    options = _parse()
    for variant, seed in _runs(options):
        if not options.summary_only:
            prepare(RECIPE, options.out / "data" / RECIPE, options.source)
            _train(variant, seed, options)
            _evaluate(variant, seed, options)
        _write_summary(options.results)


def _parse() -> argparse.Namespace:
    parser = parser_of_study(
        __doc__, out=Path("runs/study-attention"), results=RESULTS, beams=(1, 5)
    )
    variants = [name for name in VARIANTS if name != "start"]
    add = parser.add_argument
    add("--variants", nargs="+", choices=variants, default=variants, metavar="NAME",
        help=f"out of {', '.join(variants)}")  # fmt: skip
    add("--start-epochs", type=int, help="of the start; default: the configuration's")
    return parser.parse_args()


def _runs(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield what everything starts from, then one seed of all variants, and so on."""
    yield "start", 1
    for seed in options.seeds:
        for variant in options.variants:
            yield variant, seed


def _run_name(variant: str, seed: int) -> str:
    return f"en-de_transformer_{variant}" + ("" if variant == "start" else f"_{seed}")


def _train(variant: str, seed: int, options: argparse.Namespace) -> None:
    changes: dict[str, object] = {
        "data": options.out / "data" / RECIPE,
        "run": options.out / _run_name(variant, seed),
        "seed": seed,
        **VARIANTS[variant].changes(),
    }
    if variant != "start":
        start = options.out / _run_name("start", 1)
        changes["start_from"] = start / "checkpoints" / "checkpoint_best.pt"
        if options.updates is not None:
            changes["max_update"] = changes["total_num_update"] = options.updates
    elif options.start_epochs is not None:
        changes["max_epoch"] = options.start_epochs
    logger.info("== %s", _run_name(variant, seed))
    train(VARIANTS[variant].config, **changes)


def _evaluate(variant: str, seed: int, options: argparse.Namespace) -> None:
    """Translate and write the run's JSON; the start's best checkpoint, others' last.

    Variants are compared after the same number of updates.
    """
    name = _run_name(variant, seed)
    path = options.results / f"{name}.json"
    is_compared = variant not in ("start", "plain")
    scores = evaluated(
        options.out / name,
        subsets=("valid", *TESTS),
        beams=beams_with_earlier(path, options.beams),
        checkpoint="best" if variant == "start" else "last",
        control=options.out / _run_name("plain", seed) if is_compared else None,
    )
    chosen = VARIANTS[variant]
    identity = {
        "pair": "en-de",
        "model": "transformer",
        "variant": chosen.name,
        **{key: getattr(chosen, key) for key in ("system", "k", "epsilon")},
        "seed": seed,
    }
    write_result(path, options.out / name, identity, scores)


def _write_summary(results: Path) -> None:
    identity = ("pair", "model", "system", "variant", "k", "epsilon", "seed")
    rows = summary_rows(results, identity)
    if not rows:
        return
    chosen = chosen_variants([row for row in rows if row["test"] not in TESTS])
    for row in rows:
        row["chosen"] = row["variant"] in chosen
    write_json(results / "summary.json", rows)
    if results == RESULTS:  # elsewhere they are somebody's own
        write_between(PAGE, "study", _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the rows by variant; the one that validation chose of a system is bold."""
    named = [
        {**row, "system": f"**{row['variant']}**" if row["chosen"] else row["variant"]}
        for row in rows
    ]
    names = [variant.name for variant in VARIANTS.values()]
    order = [*names, *(f"**{name}**" for name in names)]
    order.sort(key=lambda name: names.index(name.strip("*")))
    beams = sorted({row["beam"] for row in rows})
    return study_table(named, beams=beams, order=order)


if __name__ == "__main__":
    run_command_line(main)
