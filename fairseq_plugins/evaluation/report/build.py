"""From run folders to the report."""

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
from fairseq_plugins.evaluation.report.assets import render_page
from fairseq_plugins.evaluation.report.curves import read_curves
from fairseq_plugins.evaluation.report.runs import (
    ReportRun,
    check_explorer_beam,
    load_runs,
    references_of,
    shared_test_sets,
)
from fairseq_plugins.evaluation.report.samples import ScoredSentences, chosen_sentences
from fairseq_plugins.evaluation.report.scores import (
    KnownTests,
    System,
    bleu_by_length,
    headline_beam,
    length_buckets,
    pooled_rows,
    score_rows,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically

__all__ = ["ReportOptions", "collect", "write_report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows.

    Attributes:
        subset: test set of the translations and the explorer, by fairseq's name or by
            title; the first that all runs share if not given.
        checkpoint, lenpen: whose scores; see :func:`load_runs`.
        samples: number of sentences shown side by side.
        explore: number of sentences in the beam explorer, 0 for none.
        explore_beam: beam size of the explorer; that of the comparison if not given.
        seed: of the sentences that are drawn.
        title: of the page.
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
    """Write one self-contained page about evaluated runs.

    Args:
        systems: for each the runs of its seeds, or its one run; the control first.
        out: the page.
        command: what was typed, for the page.
        options: what it shows.

    Raises:
        UserError: a run is missing or not evaluated, they cannot be compared, or the
            explorer's beam is wider than a vocabulary allows.
    """
    if out.is_dir():
        raise UserError(f"`{out}` must be a file such as report.html, but is a folder.")
    data = collect(systems, command=command, options=options)
    with write_atomically(out) as stream:
        stream.write(render_page(data, title=data["title"]))
    logger.info("%s: %.1f MB", out, out.stat().st_size / 1e6)
    return out


def collect(
    systems: Sequence[Sequence[Path]],
    *,
    command: Sequence[str] = (),
    options: ReportOptions = ReportOptions(),
) -> dict[str, Any]:
    """Return all that the page shows, ready for JSON; arguments as above."""
    pooled = _load(systems, options)
    runs = [run for system in pooled for run in system.runs]
    subsets = shared_test_sets(runs)
    shown = _shown_subset(runs, subsets, options.subset)
    beam = headline_beam(runs, shown)
    explored_beam = options.explore_beam or max(2, beam)
    if options.explore:  # before the tests, which take long
        check_explorer_beam(runs, explored_beam)
    known = KnownTests()
    tests = [_test_set(runs, pooled, subset, known) for subset in subsets]
    sentences = ScoredSentences.read(runs, shown, beam)
    corpus = runs[0].corpus
    pair = f"{corpus.source_lang}–{corpus.target_lang}"
    return {
        "title": options.title or f"{corpus.recipe}: {len(systems)} systems compared",
        "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "corpus": {"recipe": corpus.recipe, "pair": pair},
        "languages": [corpus.source_lang, corpus.target_lang],
        "runs": [
            {"label": label, **_run(run, shown)}
            for run, label in zip(runs, short_names([run.name for run in runs]))
        ],
        "systems": [
            {"label": each.label, "seeds": len(each.runs), "first": n * len(each.runs)}
            for n, each in enumerate(pooled)
        ],
        "tests": tests,
        "shown": subsets.index(shown),
        "samples": sentences.samples(options.samples, seed=options.seed),
        "explorer": _explorer(runs, shown, sentences, explored_beam, options),
        "command": shlex.join(command),
        "versions": _versions(),
    }


def _load(systems: Sequence[Sequence[Path]], options: ReportOptions) -> list[System]:
    for paths in systems:
        check_runs(paths, systems[0])
    runs = load_runs(
        [path for paths in systems for path in paths],
        checkpoint=options.checkpoint,
        lenpen=options.lenpen,
    )
    seeds = len(systems[0])
    return [
        System(label, runs[number * seeds : (number + 1) * seeds])
        for number, label in enumerate(system_names(systems))
    ]


def _shown_subset(
    runs: Sequence[ReportRun], subsets: Sequence[str], wanted: str | None
) -> str:
    if wanted is None:
        return subsets[0]
    subset, _ = runs[0].corpus.subset(wanted)
    if subset not in subsets:
        raise UserError(
            f"not all runs have scores on `{wanted}`, only on {', '.join(subsets)}."
        )
    return subset


def _run(run: ReportRun, subset: str) -> dict[str, Any]:
    row = next(iter(run.scores[subset].values())).row
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


def _test_set(
    runs: Sequence[ReportRun],
    systems: Sequence[System],
    subset: str,
    known: KnownTests,
) -> dict[str, Any]:
    title = runs[0].corpus.subsets[subset].title
    references = references_of(runs[0], subset)
    logger.info("%s: scores of %d sentences", title, len(references))
    seeds = len(systems[0].runs)
    rows = score_rows(runs, subset, references, known, seeds=seeds)
    pooled = pooled_rows(systems, subset, references, known) if seeds > 1 else []
    beam = headline_beam(runs, subset)
    buckets = length_buckets(references)
    return {
        "subset": subset,
        "title": title,
        "sentences": len(references),
        "beam": beam,
        "rows": rows,
        "pooled": pooled,
        "signatures": sorted(
            {
                row[key]
                for row in [*rows, *pooled]
                for key in ("bleu_signature", "chrf_signature", "signature")
                if key in row
            }
        ),
        "lengths": {
            "buckets": buckets,
            "counts": [
                sum(first <= len(line.split()) <= last for line in references)
                for first, last in buckets
            ],
            "bleu": [
                bleu_by_length(run.scores[subset][beam].hypotheses, references, buckets)
                for run in runs
            ],
        },
    }


def _explorer(
    runs: Sequence[ReportRun],
    subset: str,
    sentences: ScoredSentences,
    beam_size: int,
    options: ReportOptions,
) -> dict[str, Any] | None:
    if not options.explore:
        return None
    # They take seconds to import, and a report without the explorer needs neither.
    from fairseq_plugins.evaluation.report.explorer import (
        epsilons_of,
        explored,
        trace_searches,
    )

    changes = sentences.changes()
    chosen = chosen_sentences(changes, options.explore, seed=options.seed)
    searches = []
    for run in runs:
        logger.info("%s: searching %d sentences again", run.name, len(chosen))
        traced = trace_searches(
            run.checkpoint(subset),
            run.corpus.bin_dir,
            languages=(run.corpus.source_lang, run.corpus.target_lang),
            subset=subset,
            sentences=chosen,
            beam_size=beam_size,
        )
        epsilons = epsilons_of(run.config)
        searches.append(
            [
                explored(each, lenpen=options.lenpen, epsilons=epsilons)
                for each in traced
            ]
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
    for package in ("torch", "fairseq-fixed", "fairseq", "sacrebleu", "sentencepiece"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
