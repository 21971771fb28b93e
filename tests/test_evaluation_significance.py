"""Paired tests distinguish real differences from noise."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_DATA

from fairseq_plugins.evaluation.compare import (
    compare_files,
    compare_with_baseline,
    mean_row,
)
from fairseq_plugins.evaluation.metrics import SystemOutputs, score
from fairseq_plugins.evaluation.significance import (
    Comparison,
    paired_test,
    pooled_test,
)
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines, write_lines

METHODS = ["randomization", "bootstrap"]
WORDS = [f"word{i}" for i in range(50)]


@pytest.fixture
def references() -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(100)]


def pooled(ours: Any, theirs: Any, references: list[str], **options: Any) -> Comparison:
    pair = SystemOutputs(ours, references), SystemOutputs(theirs, references)
    return pooled_test(*pair, **options)


def spoil(lines: list[str], *, share: float, seed: int) -> list[str]:
    """Replace this fraction of the words by others."""
    rng = random.Random(seed)
    return [
        " ".join(
            rng.choice(WORDS) if rng.random() < share else word for word in line.split()
        )
        for line in lines
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_great_difference_is_significant_in_either_direction(
    references: list[str], method: str
) -> None:
    good = spoil(references, share=0.1, seed=2)
    bad = spoil(references, share=0.5, seed=3)
    for one, other in ((good, bad), (bad, good)):
        result = paired_test(one, other, references, method=method, samples=200)
        assert result.bleu.p_value < 0.01
        assert result.chrf.p_value < 0.01
        assert (result.bleu.system > result.bleu.baseline) == (other is good)


@pytest.mark.parametrize("method", METHODS)
def test_equally_good_systems_do_not_differ(references: list[str], method: str) -> None:
    one = spoil(references, share=0.3, seed=2)
    other = spoil(references, share=0.3, seed=3)
    result = paired_test(one, other, references, method=method, samples=200)
    assert result.bleu.p_value > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_system_does_not_differ_from_itself(
    references: list[str], method: str
) -> None:
    system = spoil(references, share=0.3, seed=2)
    result = paired_test(system, system, references, method=method, samples=50)
    assert result.bleu.p_value == result.chrf.p_value == 1.0
    assert result.bleu.baseline == result.bleu.system


def test_method_samples_and_seed_are_reported_and_reproducible(
    references: list[str],
) -> None:
    system = spoil(references, share=0.3, seed=2)
    other = spoil(references, share=0.3, seed=3)
    result = paired_test(system, other, references, samples=50)
    assert (result.method, result.samples) == ("randomization", 50)
    assert "ar:50|seed:12345" in result.bleu.signature
    assert "ar:50|seed:12345" in result.chrf.signature
    assert result == paired_test(system, other, references, samples=50)
    assert json.loads(json.dumps(asdict(result)))["bleu"]["p_value"] > 0


def test_files_are_compared_line_by_line(tmp_path: Path, references: list[str]) -> None:
    texts = {"base": spoil(references, share=0.2, seed=2), "ref": references}
    texts["new"] = spoil(references, share=0.4, seed=3)
    for name, lines in texts.items():
        write_lines(tmp_path / name, lines)
    paths = [[tmp_path / "base"], [[tmp_path / "new"]], tmp_path / "ref"]
    base, new = compare_files(*paths, shown=2)
    test = paired_test(texts["base"], texts["new"], references)
    assert (base["bleu"], new["bleu"]) == (test.bleu.baseline, test.bleu.system)
    assert new["bleu_p_value"] == test.bleu.p_value
    assert new["bleu_interval"] == list(test.bleu.interval)
    assert "bleu_p_value" not in base
    assert len(new["losses"]) == 2
    for entry in new["losses"]:
        assert entry["chrf"] < entry["chrf_baseline"]
        assert entry["system"] == texts["new"][entry["line"] - 1]
        assert entry["baseline"] == texts["base"][entry["line"] - 1]


@pytest.mark.parametrize("method", METHODS)
def test_one_training_counted_three_times_is_no_more_evidence(
    references: list[str], method: str
) -> None:
    one = spoil(references, share=0.30, seed=2)
    other = spoil(references, share=0.25, seed=3)
    single = pooled([one], [other], references, method=method, samples=300)
    triple = pooled([one] * 3, [other] * 3, references, method=method, samples=300)
    # Three times the sentences would make a greater difference of this one.
    longer = paired_test(one * 3, other * 3, references * 3, method=method, samples=300)
    assert triple.bleu.p_value == pytest.approx(single.bleu.p_value, abs=0.02)
    assert triple.bleu.system == pytest.approx(single.bleu.system)
    assert triple.bleu.interval == pytest.approx(single.bleu.interval)
    assert longer.bleu.p_value < single.bleu.p_value / 3


def test_the_interval_is_wider_if_trainings_differ(references: list[str]) -> None:
    ours = [spoil(references, share=0.3, seed=seed) for seed in (2, 3)]
    alike = [spoil(references, share=0.3, seed=seed) for seed in (4, 5)]
    unlike = [
        spoil(references, share=0.1, seed=4),
        spoil(references, share=0.5, seed=5),
    ]
    widths = []
    for theirs in (alike, unlike):
        low, high = pooled(ours, theirs, references, samples=50).bleu.interval
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_the_interval_of_equal_systems_is_empty(references: list[str]) -> None:
    system = spoil(references, share=0.3, seed=2)
    result = paired_test(system, system, references, samples=50)
    assert result.bleu.interval == result.chrf.interval == (0.0, 0.0)


def test_pooled_bleu_is_that_of_all_translations(references: list[str]) -> None:
    trainings = [spoil(references, share=0.3, seed=seed) for seed in (2, 3, 4)]
    result = pooled(trainings, trainings, references, samples=10)
    together = score(sum(trainings, []), references * 3)
    assert result.bleu.system == pytest.approx(together.bleu)
    assert result.chrf.system == pytest.approx(together.chrf)


def test_sentences_are_sorted_by_gain(references: list[str]) -> None:
    baseline = spoil(references, share=0.3, seed=2)
    system = list(baseline)
    system[7], system[3] = references[7], "nothing of it"
    pair = SystemOutputs([baseline], references), SystemOutputs([system], references)
    row = compare_with_baseline(*pair, shown=5)
    (gain,), (loss,) = row["gains"], row["losses"]  # the others did not change
    assert (gain["line"], loss["line"]) == (8, 4)
    assert gain["chrf"] == pytest.approx(100)
    assert loss["chrf"] < loss["chrf_baseline"]


def test_a_row_of_several_trainings_has_their_mean() -> None:
    rows = [
        {"run": "a", "bleu": 20.0, "chrf": 50.0, "seconds": 1.0, "train_seconds": 5},
        {"run": "b", "bleu": 22.0, "chrf": 51.0, "seconds": 3.0, "train_seconds": None},
    ]
    merged = mean_row(rows)
    assert (merged["bleu"], merged["chrf"], merged["seconds"]) == (21.0, 50.5, 2.0)
    assert merged["train_seconds"] is None
    assert merged["bleu_of_runs"] == [20.0, 22.0]
    assert merged["bleu_deviation"] == pytest.approx(2**0.5)
    assert (merged["run"], merged["runs"]) == ("a,b", ["a", "b"])


def test_wrong_input_is_refused(references: list[str]) -> None:
    with pytest.raises(UserError, match="must have the same number of lines"):
        paired_test(references, references[1:], references)
    with pytest.raises(UserError, match="same number of training runs.* 1 and 2"):
        pooled([references], [references] * 2, references)
    with pytest.raises(UserError, match="`method` must be `randomization` or"):
        paired_test(references, references, references, method="t")
    with pytest.raises(UserError, match="`samples` must be 1 or more, but is 0"):
        paired_test(references, references, references, samples=0)


def test_a_seed_that_is_no_number_is_named(
    references: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    with pytest.raises(UserError, match="`SACREBLEU_SEED` must be .* but is `abc`"):
        paired_test(references, references, references, samples=10)


def test_files_that_look_wrong_are_compared_only_if_forced(tmp_path: Path) -> None:
    lines = [f"a man@@ walks {number}" for number in range(9)]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("\n".join(lines))
    theirs.write_text("\n".join(reversed(lines)))
    with pytest.raises(UserError, match="contains subword marks"):
        compare_files([ours], [[theirs]], ours)
    control, row = compare_files([ours], [[theirs]], ours, force=True)
    assert row["forced"] and control["bleu"] > row["bleu"]
    with pytest.raises(UserError, match="must be a file, but is a folder"):
        compare_files([ours], [[tmp_path]], ours, force=True)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no ../shared/data")
def test_wmt17_systems_have_their_published_scores_and_differ() -> None:
    # A difference of this size on 3,004 sentences must have the smallest p-value that
    # the number of samples allows.
    folder = SHARED_DATA / "bleu_check" / "wmt17-en-de"
    names = ("newstest2017.xmu.4910.de.xz", "newstest2017.uedin-nmt.4722.de.xz")
    one, other = (read_lines(folder / name) for name in names)
    references = read_lines(SHARED_DATA / "newstest" / "newstest2017-en-de.de.xz")
    ours, theirs = SystemOutputs([one], references), SystemOutputs([other], references)
    for method in METHODS:
        result = pooled_test(ours, theirs, method=method, samples=200)
        assert round(result.bleu.baseline, 2) == 26.69
        assert round(result.bleu.system, 2) == 28.30
        assert result.bleu.p_value == pytest.approx(1 / 201)
        low, high = result.bleu.interval
        assert 1.0 < low < 28.30 - 26.69 < high < 2.2
