"""One SentencePiece model for both languages, the same on every run."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from fairseq_plugins.corpus import subwords
from fairseq_plugins.corpus.recipe import Subwords
from fairseq_plugins.utils.errors import UserError

SETTINGS = Subwords(
    vocab_size=90, model_type="bpe", character_coverage=1.0, max_lines=10**6, seed=1
)
SYLLABLES = ["ka", "lo", "mi", "tu", "ré", "ßen", "ño", "sch"]


def write_text(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(60)]
    lines = (" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(400))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "train.de", tmp_path / "train.en"]
    for seed, path in enumerate(paths):
        write_text(path, seed)
    return paths


def train(texts: list[Path], name: str = "joint", **changes: object) -> bytes:
    model = texts[0].with_name(f"{name}.model")
    settings = dataclasses.replace(SETTINGS, **changes)
    subwords.train_sentencepiece(
        texts, model, model.with_suffix(".vocab"), settings=settings
    )
    return model.read_bytes()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("max_lines", [10**6, 100])
def test_the_same_text_gives_the_same_model_in_another_process(
    texts, model_type, max_lines
):
    changes = {"model_type": model_type, "max_lines": max_lines}
    here = train(texts, **changes)
    program = (
        "import test_corpus_subwords as t; from pathlib import Path; "
        f"t.train([*map(Path, {[str(path) for path in texts]})], 'other', **{changes})"
    )
    folder = Path(__file__).parent
    environment = {"PYTHONPATH": f"{folder.parent}:{folder}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert texts[0].with_name("other.model").read_bytes() == here


def test_the_seed_decides_only_if_there_are_more_lines_than_are_used(texts):
    assert train(texts, seed=1, max_lines=100) != train(texts, seed=2, max_lines=100)
    assert train(texts, seed=1) == train(texts, seed=2)


def test_the_vocabulary_lists_the_pieces_as_sentencepiece_does(texts, tmp_path):
    train(texts)
    sentencepiece.SentencePieceTrainer.train(
        input=[str(path) for path in texts], model_prefix=str(tmp_path / "theirs"),
        vocab_size=90, model_type="bpe", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    theirs = (tmp_path / "theirs.vocab").read_text(encoding="utf-8")
    assert (tmp_path / "joint.vocab").read_text(encoding="utf-8") == theirs


@pytest.mark.parametrize(
    "vocab_size, message", [(10_000, "too high"), (5, "smaller than required_chars")]
)
def test_an_impossible_vocabulary_is_refused_and_leaves_nothing(
    texts, vocab_size, message
):
    with pytest.raises(UserError, match=message):
        train(texts, vocab_size=vocab_size)
    assert not list(texts[0].parent.glob("joint.*"))


def write_long_lines(path: Path, number: int, *, word: str = "kalomi") -> None:
    path.write_text(f"{word} {'tu ' * 1500}\n" * number, encoding="utf-8")


def test_text_of_long_lines_is_learned(texts):
    short = texts[0].read_text(encoding="utf-8").splitlines(keepends=True)[:3]
    write_long_lines(texts[0], 200, word="öäü")
    texts[0].write_text("".join(short) + texts[0].read_text(encoding="utf-8"),
                        encoding="utf-8")  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(
        model_proto=train(texts[:1], vocab_size=40)
    )
    assert model.unk_id() not in model.encode("öäü")


def test_few_long_lines_are_left_out_and_counted(texts, caplog):
    lines = texts[0].read_text(encoding="utf-8") * 10
    write_long_lines(texts[0], 1, word="öäü")
    texts[0].write_text(lines + texts[0].read_text(encoding="utf-8") + "▅ kalo\n",
                        encoding="utf-8")  # fmt: skip
    model = texts[0].with_name("joint.model")
    counts = subwords.train_sentencepiece(
        texts, model, model.with_suffix(".vocab"), settings=SETTINGS
    )
    assert counts["lines_left_out"] == 2
    assert "1 of 4,402 lines, which are longer than 4,192 bytes" in caplog.text
    assert "1 of 4,402 lines, which contain `▅`" in caplog.text


@pytest.mark.parametrize(
    "content, settings, cause",
    [
        ("\n \n", {}, "needs lines to train on, but all are empty"),
        ("▅ a\n", {}, "needs lines to train on, but all are empty or contain"),
        ("a b c\n", {"vocab_size": 999}, "this model: Vocabulary size too high"),
        ("a b c\n", {"vocab_size": 2}, r"this model: it reports .*\[insert_id"),
    ],
)
def test_the_cause_of_a_failed_training_is_passed_on(texts, content, settings, cause):
    texts[0].write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=cause):
        train(texts[:1], **settings)
