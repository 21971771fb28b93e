"""Build a report from evaluated run folders."""

from __future__ import annotations

import datetime
import logging
import platform
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

import fairseq_plugins
from fairseq_plugins.evaluation.compare import check_runs, short_names, system_names
from fairseq_plugins.evaluation.report.curves import read_curves
from fairseq_plugins.evaluation.report.page import render_page
from fairseq_plugins.evaluation.report.runs import (
    ReportRun,
    check_explorer_beam,
    load_runs,
)
from fairseq_plugins.evaluation.report.samples import ScoredSentences, choose_sentences
from fairseq_plugins.evaluation.report.scores import (
    StatisticsCache,
    System,
    bleu_by_length,
    common_beam,
    length_buckets,
    pooled_rows,
    score_rows,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically

__all__ = ["ReportOptions", "collect_data", "write_report"]

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "fairseq-fixed", "fairseq", "sacrebleu", "sentencepiece")


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        subset: test set of the translations and the explorer, by fairseq's name or by
            title; by default the first that all runs share.
        checkpoint, lenpen: the scores to show; see `load_runs`.
        samples: number of sentences shown side by side.
        explore: number of sentences in the beam explorer, 0 for none.
        explore_beam: beam size of the explorer; by default that of the comparison.
        seed: of the random choice of sentences.
        title: of the report.
    """

    subset: str | None = None
    checkpoint: str | None = None
    lenpen: float = 1.0
    samples: int = 200
    explore: int = 20
    explore_beam: int | None = None
    seed: int = 1
    title: str | None = None


def write_report(
    systems: Sequence[Sequence[Path]],
    out: Path,
    *,
    command: Sequence[str] = (),
    options: ReportOptions = ReportOptions(),
) -> Path:
    """Write one self-contained HTML file about evaluated runs.

    Args:
        systems: for each system one run or the runs of its seeds; the control first.
        out: the file.
        command: the command line, to be shown.
        options: see `ReportOptions`.

    Raises:
        UserError: a run is missing or not evaluated, the runs cannot be compared, or
            the explorer's beam is larger than a vocabulary allows.
    """
    if out.is_dir():
        raise UserError(f"`{out}` must be a file such as report.html, but is a folder.")
    data = collect_data(systems, command=command, options=options)
    with write_atomically(out) as stream:
        stream.write(render_page(data, title=data["title"]))
    logger.info("%s: %.1f MB", out, out.stat().st_size / 1e6)
    return out


def collect_data(
    systems: Sequence[Sequence[Path]],
    *,
    command: Sequence[str] = (),
    options: ReportOptions = ReportOptions(),
) -> dict[str, Any]:
    """Return the data of a report, ready for JSON; see `write_report`."""
    for paths in systems:
        check_runs(paths, systems[0])
    runs = load_runs(
        [path for paths in systems for path in paths],
        checkpoint=options.checkpoint,
        lenpen=options.lenpen,
    )
    seeds = len(systems[0])
    pooled = [
        System(label, runs[number * seeds : (number + 1) * seeds])
        for number, label in enumerate(system_names(systems))
    ]
    subsets, corpus = list(runs[0].scores), runs[0].corpus
    shown = subsets[0]
    if options.subset is not None:
        shown, _ = corpus.subset(options.subset)
        if shown not in subsets:
            raise UserError(
                f"all runs must have scores on `{options.subset}`, but they share only "
                f"{', '.join(subsets)}."
            )
    beam = common_beam(runs, shown)
    explore_beam = options.explore_beam or max(2, beam)
    if options.explore:  # checked here because the tests below take long
        check_explorer_beam(runs, explore_beam)
    cache = StatisticsCache()
    tests = [_describe_test_set(pooled, subset, cache) for subset in subsets]
    sentences = ScoredSentences.read(runs, shown, beam)
    return {
        "title": options.title or f"{corpus.recipe}: {len(systems)} systems compared",
        "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "corpus": {
            "recipe": corpus.recipe,
            "pair": f"{corpus.source_lang}–{corpus.target_lang}",
        },
        "languages": [corpus.source_lang, corpus.target_lang],
        "runs": [
            {"label": label, **_describe_run(run, shown)}
            for run, label in zip(runs, short_names([run.name for run in runs]))
        ],
        "systems": [
            {"label": system.label, "seeds": seeds, "first": number * seeds}
            for number, system in enumerate(pooled)
        ],
        "tests": tests,
        "shown": subsets.index(shown),
        "samples": sentences.samples(options.samples, seed=options.seed),
        "explorer": (
            _explore(runs, shown, sentences, explore_beam, options)
            if options.explore
            else None
        ),
        "command": shlex.join(command),
        "versions": _versions(),
    }


def _describe_run(run: ReportRun, subset: str) -> dict[str, Any]:
    row = run.row(subset)
    return {
        "name": run.name,
        "path": str(run.path),
        "config": {key: str(value) for key, value in run.config.items()},
        "command": run.command,
        "updates": run.finished.get("updates"),
        "seconds": run.finished.get("seconds"),
        "checkpoint": row["checkpoint"],
        "checkpoint_sha256": row.get("checkpoint_sha256"),
        "curves": {
            name: [list(points), [round(value, 5) for value in points.values()]]
            for name, points in read_curves(RunFolder(run.path).log).items()
        },
    }


def _describe_test_set(
    systems: Sequence[System], subset: str, cache: StatisticsCache
) -> dict[str, Any]:
    runs, seeds = [run for s in systems for run in s.runs], len(systems[0].runs)
    title = runs[0].corpus.subsets[subset].title
    references = runs[0].references(subset)
    logger.info("%s: scores of %d sentences", title, len(references))
    rows = score_rows(runs, subset, references, cache, seeds=seeds)
    pooled = pooled_rows(systems, subset, references, cache) if seeds > 1 else []
    beam = common_beam(runs, subset)
    buckets = length_buckets(references)
    lengths = [len(line.split()) for line in references]
    keys = ("bleu_signature", "chrf_signature", "signature")
    signatures = {row[key] for row in [*rows, *pooled] for key in keys if key in row}
    return {
        "subset": subset,
        "title": title,
        "sentences": len(references),
        "beam": beam,
        "rows": rows,
        "pooled": pooled,
        "signatures": sorted(signatures),
        "lengths": {
            "buckets": buckets,
            "counts": [
                sum(first <= length <= last for length in lengths)
                for first, last in buckets
            ],
            "bleu": [
                bleu_by_length(run.scores[subset][beam].hypotheses, references, buckets)
                for run in runs
            ],
        },
    }


def _explore(
    runs: Sequence[ReportRun],
    subset: str,
    sentences: ScoredSentences,
    beam_size: int,
    options: ReportOptions,
) -> dict[str, Any]:
    # Importing torch takes seconds, and only the explorer needs it.
    from fairseq_plugins.evaluation.report.explorer import (
        choose_epsilons,
        search_subset,
    )

    changes = sentences.changes()
    chosen = choose_sentences(changes, options.explore, seed=options.seed)
    searches = []
    for run in runs:
        logger.info("%s: searching %d sentences again", run.name, len(chosen))
        searches.append(
            search_subset(
                run.checkpoint(subset),
                run.corpus.bin_dir,
                languages=(run.corpus.source_lang, run.corpus.target_lang),
                subset=subset,
                sentences=chosen,
                beam_size=beam_size,
                epsilons=choose_epsilons(run.config),
                lenpen=options.lenpen,
            )
        )
    return {
        "beam": beam_size,
        "sentences": [
            {
                "number": number,
                "source": sentences.sources[number],
                "reference": sentences.references[number],
                "change": round(changes[number], 1),
            }
            for number in chosen
        ],
        "searches": searches,
    }


def _versions() -> dict[str, str]:
    versions = {
        "fairseq-soft-topk": fairseq_plugins.__version__,
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
