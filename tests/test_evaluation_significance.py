"""Paired tests tell a real difference from noise, and say how they were made."""
from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from fairseq_plugins.evaluation.significance import compare, paired_test
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import read_lines, write_lines

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
METHODS = ["randomization", "bootstrap"]
WORDS = [f"word{i}" for i in range(50)]


@pytest.fixture
def references() -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(100)]


def spoil(lines: list[str], *, share: float, seed: int) -> list[str]:
    """Replace this share of the words by others."""
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
def test_equally_good_systems_do_not_differ(
    references: list[str], method: str
) -> None:
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


def test_method_samples_and_seed_are_stated_and_repeat(references: list[str]) -> None:
    system = spoil(references, share=0.3, seed=2)
    other = spoil(references, share=0.3, seed=3)
    result = paired_test(system, other, references, samples=50)
    assert (result.method, result.samples) == ("randomization", 50)
    assert "ar:50|seed:12345" in result.bleu.signature
    assert "ar:50|seed:12345" in result.chrf.signature
    assert result == paired_test(system, other, references, samples=50)
    assert json.loads(json.dumps(asdict(result)))["bleu"]["p_value"] > 0


def test_files_are_compared_line_by_line(
    tmp_path: Path, references: list[str]
) -> None:
    texts = {"base": spoil(references, share=0.2, seed=2), "ref": references}
    texts["new"] = spoil(references, share=0.4, seed=3)
    for name, lines in texts.items():
        write_lines(tmp_path / name, lines)
    result = compare(tmp_path / "base", tmp_path / "new", tmp_path / "ref")
    assert result == paired_test(texts["base"], texts["new"], references)


def test_wrong_input_is_refused(references: list[str]) -> None:
    with pytest.raises(UserError, match="must be equally many"):
        paired_test(references, references[1:], references)
    with pytest.raises(UserError, match="`method` must be `randomization` or"):
        paired_test(references, references, references, method="t")
    with pytest.raises(UserError, match="`samples` must be 1 or more, but is 0"):
        paired_test(references, references, references, samples=0)


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_wmt17_systems_differ_by_their_published_scores() -> None:
    folder = DATA / "bleu_check" / "wmt17-en-de"
    names = ("newstest2017.xmu.4910.de.xz", "newstest2017.uedin-nmt.4722.de.xz")
    one, other = (read_lines(folder / name) for name in names)
    references = read_lines(DATA / "newstest" / "newstest2017-en-de.de.xz")
    result = paired_test(one, other, references, method="bootstrap", samples=300)
    assert round(result.bleu.baseline, 2) == 26.69
    assert round(result.bleu.system, 2) == 28.30
    assert result.bleu.p_value < 0.01
