"""Read and write the tables of results/, and fill in those of docs/ from them.

    python scripts/dev/results_tables.py [--knn FILE] [--knn-mt FILE]

Every study and benchmark keeps its measurements in one CSV file of results/, whose
README.md names the command for each. This command writes the tables that documents show
between ``<!-- NAME-begin -->`` and ``<!-- NAME-end -->``. A test fails when a document
is out of date. The options first add the JSON files that scripts/knn.py and
scripts/knn_mt.py --json write.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import functools
import itertools
import os
import statistics
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from fairseq_plugins.utils.errors import run_command_line
from fairseq_plugins.utils.files import read_json, write_atomically

__all__ = [
    "RESULTS",
    "TABLES",
    "choose_on_validation",
    "merge_rows",
    "read_rows",
    "write_between",
]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"

VALID, TESTS = "valid", ("test_2016_flickr", "test_2017_flickr")
TITLES = {VALID: "validation", TESTS[0]: "2016", TESTS[1]: "2017"}
PAIRS = {
    "de-en": "German-English",
    "en-fr": "English-French",
    "en-de": "English-German",
}
MODELS = {"lstm": "LSTM", "transformer": "Transformer"}
START = "30 epochs"  # of cross entropy, from which the main study continues
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
    return _select(rows, **{name: str(value) for name, value in wanted.items()})


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--knn", type=Path, metavar="FILE")
    parser.add_argument("--knn-mt", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.knn:
        _add_knn(read_json(options.knn))
    if options.knn_mt:
        _add_knn_mt(read_json(options.knn_mt))
    for (document, name), table in TABLES.items():
        write_between(ROOT / document, name, table())


def _add_knn(summary: dict[str, Any]) -> None:
    settings = summary["settings"]
    rows = []
    for result in summary["results"]:
        row = {"data": settings["data"], "on": summary["on"]}
        row |= {name: result[name] for name in ("method", "title")}
        row |= _with_interval("accuracy", result["accuracy"])
        row["accuracy_by_seed"] = " ".join(f"{x:.5f}" for x in result["by_seed"])
        for other in ("raw", "ce"):
            difference = result.get(f"difference_from_{other}", {})
            row |= _with_interval(f"minus_{other}", difference)
        row["epsilon"] = settings["epsilons"].get(result["method"])
        row["seconds_per_training"] = result["seconds_per_training"]
        rows.append(row)
    merge_rows(RESULTS / "knn.csv", rows, ("data", "on", "method"))


def _with_interval(name: str, value: Mapping[str, float]) -> dict[str, Any]:
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {f"{name}{end}": value.get(key) for key, end in ends.items()}


def _add_knn_mt(scores: list[dict[str, Any]]) -> None:
    rows = [
        {
            "corpus": "multi30k", "pair": "de-en", "model": "lstm",
            "system": score["system"], "seed": score.get("seed", 1),
            "test": score["title"], "beam": score["beam"], "bleu": score["bleu"],
            "chrf": score["chrf"],
            "length_ratio": score["hypothesis_tokens"] / score["reference_tokens"],
            "neighbors": score.get("num_neighbors"),
            "bleu_p": score.get("bleu_p_value"), "chrf_p": score.get("chrf_p_value"),
            **{name: score.get(name) for name in ("probes", "updates", "seconds",
                                                  "share_of_neighbors",
                                                  "temperature", "k")},
        }
        for score in scores
    ]  # fmt: skip
    key = ("corpus", "pair", "model", "system", "seed", "test", "beam")
    merge_rows(RESULTS / "knn_mt.csv", rows, key)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- NAME-begin -->`` and ``<!-- NAME-end -->``.

    Raises:
        ValueError: the file lacks these marks.
    """
    begin, end = f"<!-- {name}-begin -->", f"<!-- {name}-end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"`{path}` must have the marks {begin} and {end}.")
    with write_atomically(path) as stream:
        stream.write(f"{before}{begin}\n{text}\n{end}{after}")


def beam_gains() -> str:
    """Return the gain at beam 5 for each model and pair, averaged over both tests."""
    scores = _scores()
    lines = []
    for model, pair in _cells(scores):
        control, soft = (
            [
                statistics.mean(
                    scores[model, pair, system, seed, test] for test in TESTS
                )
                for seed in "123"
            ]
            for system in ("control", "soft")
        )
        gains = [ours - theirs for ours, theirs in zip(soft, control)]
        lines.append([
            MODELS[model],
            PAIRS[pair],
            f"{statistics.mean(control):.2f}",
            f"{statistics.mean(soft):.2f}",
            f"{statistics.mean(gains):+.2f}",
            f"{min(gains):+.2f} to {max(gains):+.2f}",
        ])  # fmt: skip
    headings = ["model", "pair", "control", "SOFT beam training", "gain"]
    return _markdown([*headings, "range over seeds"], lines)


def beam_gains_by_test() -> str:
    """Return the gain on each text, with its interval, its seeds and chrF."""
    scores = _scores()
    compared = {
        (row["model"], row["pair"], row["test"], row["beam"]): row
        for row in read_rows(
            RESULTS / "comparisons.csv",
            start=START, system="soft", control="control", seeds="1 2 3",
        )
    }  # fmt: skip
    lines = []
    for model, pair in _cells(scores):
        for test in (VALID, *TESTS):
            greedy, wide = (compared[model, pair, test, beam] for beam in "15")
            by_seed = (
                scores[model, pair, "soft", seed, test]
                - scores[model, pair, "control", seed, test]
                for seed in "123"
            )
            (chrf,) = _numbers(wide, chrf_difference="+.2f")
            ours, theirs = _numbers(
                wide, length_ratio=".3f", control_length_ratio=".3f"
            )
            lines.append([
                MODELS[model],
                PAIRS[pair],
                TITLES[test],
                _gain(greedy),
                _gain(wide),
                " ".join(f"{gain:+.2f}" for gain in by_seed),
                f"{chrf} (p = {_p(wide['chrf_p'])})",
                f"{ours}; {theirs}",
            ])  # fmt: skip
    headings = ["model", "pair", "text", "greedy", "beam 5", "beam 5 by seed"]
    return _markdown([*headings, "chrF, beam 5", "length; control's"], lines)


def _gain(row: Row) -> str:
    gain, low, high = _numbers(
        row, bleu_difference="+.2f", bleu_low="+.2f", bleu_high="+.2f"
    )
    return f"{gain} [{low}, {high}], p = {_p(row['bleu_p'])}"


def beam_systems() -> str:
    """Return the scores of every system of the main study on both tests."""
    order = ("baseline", "control", "paper", "bso", "mrt", "soft")
    rows = read_rows(RESULTS / "beam_training.csv", start=START)
    return _systems(rows, {name: name for name in order}, TESTS)


def beam_sizes() -> str:
    """Return BLEU by the size of the beam, seed 1."""
    beams = ("1", "2", "5", "10", "20", "50")
    rows = read_rows(RESULTS / "beam_training.csv", pair="de-en", start=START, seed=1)
    p_values = _p_values(pair="de-en", start=START, control="control")
    lines = []
    for model, test in itertools.product(MODELS, TESTS):
        for system, title in (("control", "control"), ("soft", "`risk`")):
            line = [MODELS[model], TITLES[test], title]
            for beam in beams:
                row = _find(rows, model=model, test=test, system=system, beam=beam)
                line.append(_score_with_p(row, p_values))
            lines.append(line)
    return _markdown(["model", "test", "system", "beam 1", *beams[1:]], lines)


def validation_choices() -> str:
    """Return everything that was tried on the validation text, with one seed."""
    rows = [
        row
        for row in read_rows(RESULTS / "beam_training.csv", test=VALID, pair="de-en")
        if row["seed"] in ("1", "7")
    ]
    p_values = _p_values(test=VALID, pair="de-en")
    lines = []
    for row in rows:
        if row["beam"] != "5":
            continue
        same = {name: row[name] for name in ("model", "start", "system", "seed")}
        greedy = _find(rows, **same, beam="1")
        lines.append([
            MODELS[row["model"]],
            row["start"],
            row["system"],
            f"{int(row['updates']):,}",
            f"{float(row['seconds']) / 60:.0f}",
            _score_with_p(greedy, p_values),
            _score_with_p(row, p_values),
            *_numbers(row, chrf=".2f", ter=".1f", length_ratio=".3f"),
        ])  # fmt: skip
    headings = ["model", "start", "system", "updates", "minutes", "BLEU, greedy"]
    return _markdown([*headings, "BLEU, beam 5", "chrF", "TER", "length"], lines)


def beam_costs() -> str:
    """Return the time and memory of an update by the beam losses."""
    lines = []
    for row in read_rows(RESULTS / "training_cost.csv", study="beam"):
        time, memory, megabytes = _numbers(
            row, ratio=".1f", memory_ratio=".1f", megabytes=".0f"
        )
        predicted = row["predicted_megabytes"]
        formula = f" ({float(predicted):.0f})" if predicted else ""
        size = [MODELS[row["model"]], f"{int(row['vocabulary']):,}", row["length"]]
        lines.append(
            [*size, row["system"], f"{time} x", f"{memory} x", megabytes + formula]
        )
    headings = ["model", "V", "length", "system", "time", "memory", "MB (formula)"]
    return _markdown(headings, lines)


def attention_systems(tests: Sequence[str] = (VALID, *TESTS)) -> str:
    """Return the scores by attention; the SOFT one that validation chose is bold."""
    rows = read_rows(RESULTS / "topk_attention.csv")
    chosen = choose_on_validation(rows, SOFT_ATTENTIONS)
    titles = {**ATTENTIONS, chosen: f"**{ATTENTIONS[chosen]}**"}
    return _systems(rows, titles, tests)


def choose_on_validation(rows: Iterable[Row], systems: Sequence[str]) -> str:
    """Return the system with the best validation BLEU at the widest beam.

    Systems are compared by their mean over the seeds that all of them have.
    """
    ours = [r for r in rows if r["system"] in systems and r["test"] == VALID]
    widest = max(int(row["beam"]) for row in ours)
    scores: dict[str, dict[str, float]] = {system: {} for system in systems}
    for row in ours:
        if int(row["beam"]) == widest:
            scores[row["system"]][row["seed"]] = float(row["bleu"])
    common = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    return max(systems, key=lambda s: statistics.mean(scores[s][x] for x in common))


def attention_costs() -> str:
    """Return the time and memory of an update with top-k attention."""
    lines = []
    for row in read_rows(RESULTS / "training_cost.csv", study="attention"):
        time, low, high, memory = _numbers(
            row, ratio=".2f", ratio_low=".2f", ratio_high=".2f", memory_ratio=".2f"
        )
        case = [row["length"], row["system"]]
        lines.append([*case, f"{time} x", f"{low} to {high}", f"{memory} x"])
    return _markdown(["length", "system", "time", "quartiles", "memory"], lines)


def operator_times() -> str:
    """Return time, error and memory of the operators on one thread."""
    rows = read_rows(RESULTS / "operators.csv", threads=1)
    times, memory = [], []
    for row in rows:
        case = [f"{row['rows']}, {row['n']}, {row['k']}", row["epsilon"]]
        if row["kind"] != "memory":
            ms, ratio, low, high = _numbers(
                row, ms=".3g", ratio=".3g", ratio_low=".3g", ratio_high=".3g"
            )
            error = f"{float(row['error']):.0e}" if row["error"] else ""
            times.append([*case, row["operator"], ms, ratio, f"{low} to {high}", error])
        # PyTorch's own memory hides that of smaller inputs.
        elif int(row["rows"]) * int(row["n"]) >= 1_000_000:
            memory.append([*case, *_numbers(row, memory=".1f")])
    headings = ["rows, n, k", "epsilon", "operator", "ms", "x torch.topk"]
    headings += ["quartiles", "error"]
    load = float(rows[0]["load"])
    caption = f"torch {rows[0]['torch']}, one thread, load average {load:.1f}."
    peak = "peak memory beyond the input, in inputs"
    tables = [_markdown(headings, times), _markdown([*headings[:2], peak], memory)]
    return "\n\n".join([caption, *tables])


def knn_digits() -> str:
    """Return the accuracies of k nearest neighbors on scikit-learn's digits."""
    lines = []
    for row in read_rows(RESULTS / "knn.csv", data="digits", on="test"):
        line = [row["title"], f"{100 * float(row['accuracy']):.2f}"]
        line += [_percent_interval(row, "accuracy", "")]
        line += [" ".join(_percent(x) for x in row["accuracy_by_seed"].split())]
        for name in ("minus_ce", "minus_raw"):
            line += [_percent(row[name], "+"), _percent_interval(row, name, "+")]
        lines.append(line)
    headings = ["method", "accuracy, %", "95 % interval", "each seed"]
    headings += ["minus kNN on cross entropy", "95 % interval"]
    return _markdown([*headings, "minus pixels", "95 % interval"], lines)


def _percent(value: str, sign: str = "") -> str:
    return format(100 * float(value), f"{sign}.2f") if value else "-"


def _percent_interval(row: Row, name: str, sign: str) -> str:
    low, high = (_percent(row[f"{name}_{end}"], sign) for end in ("low", "high"))
    return "-" if low == "-" else f"{low} to {high}"


def knn_translation() -> str:
    """Return the scores of kNN-MT."""
    names = {"alone": "model alone", "softmax": "`softmax`", "soft": "`soft`"}
    lines = [
        [
            TITLES[row["test"]],
            names[row["system"]],
            *_numbers(row, bleu=".2f", chrf=".2f"),
            _p(row["bleu_p"]),
            _p(row["chrf_p"]),
        ]
        for row in read_rows(RESULTS / "knn_mt.csv")
    ]
    return _markdown(["test", "system", "BLEU", "chrF", "p (BLEU)", "p (chrF)"], lines)


def _scores() -> dict[tuple[str, ...], float]:
    """Return BLEU at beam 5 by model, pair, system, seed and test."""
    return {
        (r["model"], r["pair"], r["system"], r["seed"], r["test"]): float(r["bleu"])
        for r in read_rows(RESULTS / "beam_training.csv", start=START, beam=5)
    }


def _cells(scores: Iterable[tuple[str, ...]]) -> list[tuple[str, str]]:
    return sorted({(model, pair) for model, pair, *_ in scores})


def _systems(rows: list[Row], titles: Mapping[str, str], tests: Sequence[str]) -> str:
    """Return a line for each model, pair, test and system: means over seeds.

    Minutes are medians, since one run on a shared machine would distort a mean.
    """
    p_values = _p_values(start=rows[0]["start"])
    lines = []
    cells = sorted({(row["model"], row["pair"]) for row in rows})
    for (model, pair), test, system in itertools.product(cells, tests, titles):
        case = {"model": model, "pair": pair, "test": test, "system": system}
        greedy, wide = (_select(rows, **case, beam=beam) for beam in "15")
        if not wide:
            continue
        by_seed = [_p(p_values[key]) for row in wide if (key := _run(row)) in p_values]
        lines.append([
            MODELS[model],
            PAIRS[pair],
            TITLES[test],
            titles[system],
            ", ".join(row["seed"] for row in wide),
            f"{int(wide[0]['updates']):,}",
            f"{statistics.median(_column(wide, 'seconds')) / 60:.0f}",
            f"{statistics.mean(_column(greedy, 'bleu')):.2f}",
            f"{statistics.mean(_column(wide, 'bleu')):.2f}",
            f"{statistics.mean(_column(wide, 'chrf')):.2f}",
            ", ".join(by_seed) or "-",
        ])  # fmt: skip
    headings = ["model", "pair", "text", "system", "seeds", "updates", "minutes"]
    headings += ["BLEU, greedy", "BLEU, beam 5", "chrF, beam 5", "p at beam 5 by seed"]
    return _markdown(headings, lines)


def _p_values(**wanted: object) -> dict[tuple[str, ...], str]:
    """Return the p-value for BLEU of single runs, by `_run`."""
    return {
        _run({**row, "seed": row["seeds"]}): row["bleu_p"]
        for row in read_rows(RESULTS / "comparisons.csv", **wanted)
        if row["control"].split(":")[0] in ("control", "plain")
    }


def _run(row: Row) -> tuple[str, ...]:
    names = ("model", "pair", "start", "system", "seed", "test", "beam")
    return tuple(row[name] for name in names)


def _select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _find(rows: Iterable[Row], **wanted: str) -> Row:
    (row,) = _select(rows, **wanted)
    return row


def _column(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _numbers(row: Row, **formats: str) -> list[str]:
    return [format(float(row[name]), form) for name, form in formats.items()]


def _score_with_p(row: Row, p_values: Mapping[tuple[str, ...], str]) -> str:
    p = p_values.get(_run(row))
    return f"{float(row['bleu']):.2f}" + (f" (p = {_p(p)})" if p else "")


def _p(value: str) -> str:
    """Return a p-value with two decimals, or four where it is small."""
    if not value:
        return ""
    p = float(value)
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(row)} |" for row in [headings, *lines]]
    rows.insert(1, "|" + "---|" * len(headings))
    return "\n".join(rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "gains"): beam_gains,
    ("docs/results.md", "gains"): beam_gains,
    ("docs/results.md", "gains-by-test"): beam_gains_by_test,
    ("docs/results.md", "systems"): beam_systems,
    ("docs/results.md", "cost"): beam_costs,
    ("docs/results.md", "attention"): functools.partial(attention_systems, TESTS),
    ("docs/results.md", "knn-mt"): knn_translation,
    ("docs/knn.md", "digits"): knn_digits,
    ("docs/ablations.md", "beam-sizes"): beam_sizes,
    ("docs/ablations.md", "validation"): validation_choices,
    ("docs/topk_attention.md", "study"): attention_systems,
    ("docs/topk_attention.md", "cost"): attention_costs,
    ("docs/operators.md", "times"): operator_times,
}

if __name__ == "__main__":
    run_command_line(main)
