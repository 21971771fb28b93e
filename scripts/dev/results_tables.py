"""Read and write the tables of results/, and fill in those of docs/ from them.

    python scripts/dev/results_tables.py

Every study and benchmark keeps its measurements in one CSV file of results/, whose
README.md names the command for each. This command writes what documents show of them
between ``<!-- NAME-begin -->`` and ``<!-- NAME-end -->``. A test fails when a document
is out of date.
"""

from __future__ import annotations

import csv
import fcntl
import functools
import os
import statistics
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import write_atomically, write_between

__all__ = ["RESULTS", "TABLES", "choose_on_validation", "merge_rows", "read_rows"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"

VALID, TESTS = "valid", ("test_2016_flickr", "test_2017_flickr")
TITLES = {VALID: "validation", TESTS[0]: "2016", TESTS[1]: "2017"}
PAIRS = {"de-en": "De-En", "en-fr": "En-Fr", "en-de": "En-De"}
MODELS = {"lstm": "LSTM", "transformer": "Transformer"}
START = "30 epochs"  # of the main study: the best checkpoint of so much cross entropy
ATTENTIONS = {
    "start": "start of all others",
    "plain": "plain",
    "soft4": "SOFT, k = 4, epsilon = 1",
    "soft8": "SOFT, k = 8, epsilon = 1",
    "soft4sharp": "SOFT, k = 4, epsilon = 0.2",
    "hard4": "hard, k = 4",
    "entmax15": "entmax-1.5",
}
SOFT_ATTENTIONS = ("soft4", "soft8", "soft4sharp")

Row = dict[str, str]


def read_rows(path: Path, **wanted: object) -> list[Row]:
    """Return the rows of a CSV file whose columns have the wanted values."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = {name: str(value) for name, value in wanted.items()}
    return [row for row in rows if all(row[k] == v for k, v in chosen.items())]


def merge_rows(
    path: Path, rows: Iterable[Mapping[str, Any]], key: Sequence[str]
) -> None:
    """Add rows to a CSV file, in place of those that have the same key.

    Several processes may add to the same file. Numbers keep six significant digits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        merged = {_key(row, key): row for row in _rows_if_any(path)}
        for new in rows:
            row = {name: _format(value) for name, value in new.items()}
            merged[_key(row, key)] = row
        columns = list(dict.fromkeys(name for row in merged.values() for name in row))
        with write_atomically(path) as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(merged.values())
    finally:
        os.close(folder)  # and with it the lock


def _rows_if_any(path: Path) -> list[Row]:
    return read_rows(path) if path.is_file() else []


def _key(row: Row, key: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in key)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def main() -> None:
    for (document, name), table in TABLES.items():
        write_between(ROOT / document, name, table())


def beam_gains() -> str:
    """Return the gain at beam 5 for each pair and model, averaged over both tests."""
    scores = _scores()
    lines = []
    for pair, model in _cells(scores):
        control, soft = (
            [
                statistics.mean(
                    scores[pair, model, system, seed, test] for test in TESTS
                )
                for seed in "123"
            ]
            for system in ("control", "soft")
        )
        gains = [ours - theirs for ours, theirs in zip(soft, control)]
        lines.append([
            f"{MODELS[model]}, {PAIRS[pair]}",
            f"{statistics.mean(control):.2f}",
            f"{statistics.mean(soft):.2f}",
            f"{statistics.mean(gains):+.2f}",
            f"{min(gains):+.2f} to {max(gains):+.2f}",
        ])  # fmt: skip
    headings = ["model, pair", "control", "beam training", "gain", "gain by seed"]
    return _markdown(headings, lines)


def beam_gains_by_test() -> str:
    """Return the gain on each text, with its interval, its seeds and chrF."""
    scores = _scores()
    compared = {
        (row["pair"], row["model"], row["test"], row["beam"]): row
        for row in read_rows(
            RESULTS / "comparisons.csv",
            start=START, system="soft", control="control", seeds="1 2 3",
        )
    }  # fmt: skip
    lines = []
    for pair, model in _cells(scores):
        for test in (VALID, *TESTS):
            greedy, wide = (compared[pair, model, test, beam] for beam in "15")
            by_seed = (
                scores[pair, model, "soft", seed, test]
                - scores[pair, model, "control", seed, test]
                for seed in "123"
            )
            lines.append([
                f"{MODELS[model]}, {PAIRS[pair]}",
                TITLES[test],
                _gain(greedy, "bleu"),
                _gain(wide, "bleu"),
                " ".join(f"{gain:+.2f}" for gain in by_seed),
                f"{float(wide['chrf_difference']):+.2f} (p = {_p(wide['chrf_p'])})",
                f"{float(wide['length_ratio']):.3f}; "
                f"{float(wide['control_length_ratio']):.3f}",
            ])  # fmt: skip
    return _markdown(
        ["model, pair", "text", "greedy", "beam 5", "beam 5 by seed", "chrF, beam 5",
         "length; control's"],
        lines,
    )  # fmt: skip


def beam_systems() -> str:
    """Return the scores of every system of the main study on both tests."""
    order = ("baseline", "control", "paper", "bso", "mrt", "soft")
    rows = read_rows(RESULTS / "beam_training.csv", start=START)
    return _systems(rows, order, dict(zip(order, order)), TESTS)


def beam_sizes() -> str:
    """Return BLEU by the size of the beam, seed 1."""
    beams = ("1", "2", "5", "10", "20", "50")
    rows = read_rows(RESULTS / "beam_training.csv", pair="de-en", start=START, seed=1)
    compared = read_rows(
        RESULTS / "comparisons.csv",
        pair="de-en", start=START, system="soft", control="control", seeds="1",
    )  # fmt: skip
    p_values = {
        (row["model"], row["test"], row["beam"]): f" (p = {_p(row['bleu_p'])})"
        for row in compared
    }
    lines = []
    for model in MODELS:
        for test in TESTS:
            for system, name in (("control", "control"), ("soft", "`risk`")):
                bleu = {
                    row["beam"]: f"{float(row['bleu']):.2f}"
                    for row in rows
                    if (row["model"], row["test"], row["system"])
                    == (model, test, system)
                }
                lines.append([
                    f"{MODELS[model]}, {TITLES[test]}",
                    name,
                    *(
                        bleu[beam]
                        + (p_values[model, test, beam] if system == "soft" else "")
                        for beam in beams
                    ),
                ])  # fmt: skip
    return _markdown(["model, test", "system", "beam 1", *beams[1:]], lines)


def validation_choices() -> str:
    """Return everything that was tried on the validation text, with one seed."""
    rows = read_rows(RESULTS / "beam_training.csv", test=VALID)
    compared = {
        (row["model"], row["start"], row["system"], row["beam"]): row
        for row in read_rows(RESULTS / "comparisons.csv", test=VALID)
        if row["seeds"] in ("1", "7")
    }
    lines = []
    for row in rows:
        if row["beam"] != "5" or row["pair"] != "de-en" or row["seed"] not in "17":
            continue
        key = (row["model"], row["start"], row["system"])
        greedy = next(r for r in rows if r["beam"] == "1" and _same_run(r, row))
        lines.append([
            f"{MODELS[row['model']]}, {row['start']}",
            row["system"],
            f"{int(row['updates']):,}",
            f"{float(row['seconds']) / 60:.0f}",
            _score_with_p(greedy, compared.get((*key, "1"))),
            _score_with_p(row, compared.get((*key, "5"))),
            f"{float(row['chrf']):.2f}",
            f"{float(row['ter']):.1f}",
            f"{float(row['length_ratio']):.3f}",
        ])  # fmt: skip
    return _markdown(
        ["model, start", "system", "updates", "minutes", "BLEU, greedy",
         "BLEU, beam 5", "chrF", "TER", "length"],
        lines,
    )  # fmt: skip


def beam_costs() -> str:
    """Return the time and memory of an update by the beam losses."""
    lines = []
    for row in read_rows(RESULTS / "training_cost.csv", study="beam"):
        predicted = row["predicted_megabytes"]
        formula = f" ({float(predicted):.0f})" if predicted else ""
        lines.append([
            MODELS[row["model"]],
            f"{int(row['vocabulary']):,}",
            row["length"],
            row["system"],
            f"{float(row['ratio']):.1f} x",
            f"{float(row['memory_ratio']):.1f} x",
            f"{float(row['megabytes']):.0f}{formula}",
        ])  # fmt: skip
    headings = ["model", "V", "length", "system", "time", "memory", "MB (formula)"]
    return _markdown(headings, lines)


def attention_systems(tests: Sequence[str] = (VALID, *TESTS)) -> str:
    """Return the scores by attention; the SOFT one that validation chose is bold."""
    rows = read_rows(RESULTS / "topk_attention.csv")
    chosen = choose_on_validation(rows, SOFT_ATTENTIONS)
    titles = {**ATTENTIONS, chosen: f"**{ATTENTIONS[chosen]}**"}
    return _systems(rows, list(ATTENTIONS), titles, tests)


def choose_on_validation(rows: Iterable[Row], systems: Sequence[str]) -> str:
    """Return the system with the best validation BLEU at the widest beam.

    Systems are compared by their mean over the seeds that all of them have.
    """
    scores: dict[str, dict[str, float]] = {system: {} for system in systems}
    ours = [r for r in rows if r["system"] in systems and r["test"] == VALID]
    widest = max(int(row["beam"]) for row in ours)
    for row in ours:
        if int(row["beam"]) == widest:
            scores[row["system"]][row["seed"]] = float(row["bleu"])
    common = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    return max(systems, key=lambda s: statistics.mean(scores[s][x] for x in common))


def attention_costs() -> str:
    """Return the time and memory of an update with top-k attention."""
    lines = [
        [
            row["length"],
            row["system"],
            f"{float(row['ratio']):.2f} x",
            f"{float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f}",
            f"{float(row['memory_ratio']):.2f} x",
        ]
        for row in read_rows(RESULTS / "training_cost.csv", study="attention")
    ]
    return _markdown(["length", "system", "time", "quartiles", "memory"], lines)


def operator_times() -> str:
    """Return time, error and memory of the operators on one thread."""
    rows = read_rows(RESULTS / "operators.csv", threads=1)
    times = [
        [
            f"{row['rows']}, {row['n']}, {row['k']}",
            row["epsilon"],
            row["operator"],
            f"{float(row['ms']):.3g}",
            f"{float(row['ratio']):.3g}",
            f"{float(row['ratio_low']):.3g} to {float(row['ratio_high']):.3g}",
            f"{float(row['error']):.0e}" if row["error"] else "",
        ]
        for row in rows
        if row["kind"] != "memory"
    ]
    memory = [
        [
            f"{row['rows']}, {row['n']}, {row['k']}",
            row["epsilon"],
            f"{float(row['memory']):.1f}",
        ]
        for row in rows
        if row["kind"] == "memory"
        # PyTorch's own memory hides that of smaller inputs.
        and int(row["rows"]) * int(row["n"]) >= 1_000_000
    ]
    headings = ["rows, n, k", "epsilon", "operator", "ms", "x torch.topk"]
    headings += ["quartiles", "error"]
    load = float(rows[0]["load"])
    caption = f"torch {rows[0]['torch']}, one thread, load average {load:.1f}."
    peak = "peak memory beyond the input, in inputs"
    tables = [_markdown(headings, times), _markdown([*headings[:2], peak], memory)]
    return "\n\n".join([caption, *tables])


def knn_translation() -> str:
    """Return the scores of kNN-MT."""
    names = {"alone": "model alone", "softmax": "`softmax`", "soft": "`soft`"}
    lines = [
        [
            TITLES[row["test"]],
            names[row["system"]],
            f"{float(row['bleu']):.2f}",
            f"{float(row['chrf']):.2f}",
            _p(row["bleu_p"]),
            _p(row["chrf_p"]),
        ]
        for row in read_rows(RESULTS / "knn_mt.csv")
    ]
    return _markdown(["test", "system", "BLEU", "chrF", "p (BLEU)", "p (chrF)"], lines)


def _scores() -> dict[tuple[str, ...], float]:
    """Return BLEU at beam 5 by pair, model, system, seed and test."""
    return {
        (r["pair"], r["model"], r["system"], r["seed"], r["test"]): float(r["bleu"])
        for r in read_rows(RESULTS / "beam_training.csv", start=START, beam=5)
    }


def _cells(scores: Iterable[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return pairs and models in the order in which tables show them."""
    found = {(pair, model) for pair, model, *_ in scores}
    return sorted(found, key=lambda cell: (cell[1], cell[0]))


def _systems(
    rows: Sequence[Row],
    order: Sequence[str],
    titles: Mapping[str, str],
    tests: Sequence[str],
) -> str:
    """Return a line for each cell, test and system: means over seeds.

    Minutes are medians, since one run on a shared machine would distort a mean.
    """
    lines = []
    for pair, model in sorted({(row["pair"], row["model"]) for row in rows}):
        for test in tests:
            for system in order:
                ours = [
                    row
                    for row in rows
                    if (row["pair"], row["model"], row["test"], row["system"])
                    == (pair, model, test, system)
                ]
                greedy, wide = (
                    [row for row in ours if row["beam"] == beam] for beam in "15"
                )
                if not wide:
                    continue
                lines.append([
                    f"{MODELS[model]}, {PAIRS[pair]}",
                    TITLES[test],
                    titles[system],
                    ", ".join(sorted({row["seed"] for row in wide})),
                    f"{int(wide[0]['updates']):,}",
                    f"{statistics.median(_column(wide, 'seconds')) / 60:.0f}",
                    f"{statistics.mean(_column(greedy, 'bleu')):.2f}",
                    f"{statistics.mean(_column(wide, 'bleu')):.2f}",
                    f"{statistics.mean(_column(wide, 'chrf')):.2f}",
                    _p_by_seed(wide),
                ])  # fmt: skip
    return _markdown(
        ["model, pair", "text", "system", "seeds", "updates", "minutes",
         "BLEU, greedy", "BLEU, beam 5", "chrF, beam 5", "p at beam 5 by seed"],
        lines,
    )  # fmt: skip


def _column(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _p_by_seed(rows: Sequence[Row]) -> str:
    """Return the p-values of runs against the control of the same seed."""
    same = ("pair", "model", "start", "system", "test", "beam")
    p_values = {
        row["seeds"]: row["bleu_p"]
        for row in read_rows(RESULTS / "comparisons.csv")
        if all(row[name] == rows[0][name] for name in same)
        and row["control"] in ("control", "plain")
    }
    seeds = sorted(row["seed"] for row in rows)
    return ", ".join(_p(p_values[seed]) for seed in seeds if seed in p_values) or "-"


def _same_run(one: Row, other: Row) -> bool:
    same = ("pair", "model", "start", "system", "seed", "test")
    return all(one[name] == other[name] for name in same)


def _gain(row: Row, metric: str) -> str:
    gain, low, high = (
        float(row[f"{metric}_{x}"]) for x in ("difference", "low", "high")
    )
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}], p = {_p(row[f'{metric}_p'])}"


def _score_with_p(row: Row, comparison: Row | None) -> str:
    score = f"{float(row['bleu']):.2f}"
    return f"{score} (p = {_p(comparison['bleu_p'])})" if comparison else score


def _p(value: str) -> str:
    """Return a p-value with two digits, or four decimals where it is tiny."""
    if not value:
        return ""
    p = float(value)
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(row)} |" for row in [headings, *lines]]
    rows.insert(1, "|" + "---|" * len(headings))
    return "\n".join(rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/results.md", "gains"): beam_gains,
    ("docs/results.md", "gains-by-test"): beam_gains_by_test,
    ("docs/results.md", "systems"): beam_systems,
    ("docs/results.md", "cost"): beam_costs,
    ("docs/results.md", "attention"): functools.partial(attention_systems, TESTS),
    ("docs/results.md", "knn-mt"): knn_translation,
    ("docs/ablations.md", "beam-sizes"): beam_sizes,
    ("docs/ablations.md", "validation"): validation_choices,
    ("docs/topk_attention.md", "study"): attention_systems,
    ("docs/topk_attention.md", "cost"): attention_costs,
    ("docs/operators.md", "times"): operator_times,
}

if __name__ == "__main__":
    run_command_line(main)
