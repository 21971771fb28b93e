"""Encoding and binarizing: the bytes that fairseq-preprocess would write."""

from __future__ import annotations

import filecmp
import functools
import lzma
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import SHARED_DATA, run_module
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.corpus import binarize, subwords
from fairseq_plugins.corpus.binarize import (
    Dictionary,
    EncodedText,
    encode,
    write_binary,
)
from fairseq_plugins.corpus.recipe import Subwords
from fairseq_plugins.corpus.subwords import SentencePieces, Words
from fairseq_plugins.utils.errors import UserError

LANGUAGES = ("de", "en")
SYLLABLES = ["ka", "lo", "mi", "tu", "ré", "ßen", "ño", "sch"]
# Unknown to the model, or normalised by it: joined, split, dropped, made a space.
ODD = ["☃", "☃☃x", "ﬁ", "´", "e\u0301", "\u200b", "\u00a0", "\u2028", "\x1c", "\t", "½",
       "<unk>", "<pad>", "\u2581", "\ufeff", "①", "madeupword0000", ""]  # fmt: skip


def write_text(path: Path, seed: int, lines: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(60)]
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for _ in range(lines):
            chosen = rng.choices(words, k=rng.randint(0, 9))
            if rng.random() < 0.2:
                chosen.insert(rng.randint(0, len(chosen)), rng.choice(ODD))
            stream.write(" ".join(chosen) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of three subsets and a model that knows the training syllables only."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "raw").mkdir()
    sizes = {"train": 700, "valid": 90, "test": 50}
    for seed, (subset, lines) in enumerate(sizes.items()):
        for side, language in enumerate(LANGUAGES):
            write_text(folder / "raw" / f"{subset}.{language}", 2 * seed + side, lines)
    plain = [folder / f"plain.{language}" for language in LANGUAGES]
    for path in plain:
        path.write_text("".join(f"{a}{b} {b}\n" for a in SYLLABLES for b in SYLLABLES))
    subwords.train_sentencepiece(
        plain, folder / "joint.model", folder / "joint.vocab",
        settings=Subwords(60, "bpe", 1.0, 10**6, 1),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def processor(corpus: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus / "joint.model"))


def ours(corpus: Path, folder: Path, *, workers: int, by_word: bool) -> None:
    pairs = {}
    for path in sorted((corpus / "raw").iterdir()):
        make_encoder = functools.partial(
            SentencePieces, corpus / "joint.model", by_word=by_word
        )
        encode(make_encoder, path, folder / "ids" / path.name, workers=workers)
        pairs[path.stem] = len(path.read_bytes().split(b"\n")) - 1
    order = {subset: pairs[subset] for subset in ("train", "valid", "test")}
    binarize.binarize(
        folder / "ids", folder / "bin", pairs=order, source_lang="de", target_lang="en"
    )


@pytest.fixture(scope="module")
def theirs(corpus: Path, processor: sentencepiece.SentencePieceProcessor) -> Path:
    """The output of spm_encode and fairseq-preprocess for the corpus."""
    folder = corpus / "theirs"
    folder.mkdir()
    for path in (corpus / "raw").iterdir():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        split = processor.encode(lines, out_type=str)
        text = "".join(" ".join(pieces) + "\n" for pieces in split)
        (folder / path.name).write_text(text, encoding="utf-8", newline="\n")
    result = run_module(
        "fairseq_cli.preprocess", "--joined-dictionary", "--source-lang", "de",
        "--target-lang", "en", "--trainpref", folder / "train", "--validpref",
        folder / "valid", "--testpref", folder / "test", "--destdir", folder / "bin",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "bin"


@pytest.mark.parametrize("workers, by_word", [(1, True), (2, True), (1, False)])
def test_all_files_are_those_of_spm_encode_and_fairseq_preprocess(
    corpus, theirs, tmp_path, monkeypatch, workers, by_word
):
    monkeypatch.setattr("fairseq_plugins.corpus.blocks.LINES_PER_BLOCK", 100)
    ours(corpus, tmp_path, workers=workers, by_word=by_word)
    names = sorted(path.name for path in theirs.iterdir() if path.suffix != ".log")
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == names
    assert len(names) == 14
    for name in names:
        assert filecmp.cmp(theirs / name, tmp_path / "bin" / name, shallow=False), name


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.sampled_from(SYLLABLES + ODD + [" "]),
                st.text(
                    st.characters(exclude_categories=["Cs"], exclude_characters="\n"),
                    max_size=4,
                ),
            ),
            max_size=8,
        ).map(lambda parts: " ".join(parts) if len(parts) % 2 else "".join(parts)),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_by_words_any_text_gets_the_pieces_of_whole_lines(corpus, lines):
    blocks = []
    for by_word in (True, False):
        encoder = SentencePieces(corpus / "joint.model", by_word=by_word)
        blocks.append(encoder.encode(lines))
    assert blocks[0].ids.tolist() == blocks[1].ids.tolist()
    assert blocks[0].lengths.tolist() == blocks[1].lengths.tolist()
    assert blocks[0].extra == blocks[1].extra


def test_a_full_word_cache_is_cleared_without_any_effect(corpus, monkeypatch):
    monkeypatch.setattr("fairseq_plugins.corpus.subwords._MOST_WORDS", 10)
    lines = (corpus / "raw" / "train.de").read_text(encoding="utf-8").split("\n")
    model = corpus / "joint.model"
    encoders = [SentencePieces(model, by_word=by_word) for by_word in (True, False)]
    for start in range(0, 300, 50):
        ids = [encoder.encode(lines[start : start + 50]).ids for encoder in encoders]
        assert np.array_equal(*ids)


def test_a_dictionary_of_65500_words_takes_two_more_bytes_per_token(tmp_path):
    from fairseq.data.indexed_dataset import best_fitting_int_dtype

    text = tmp_path / "text"
    text.write_text("a b\n")
    encode(Words, text, tmp_path / "e", workers=1)
    for size in (65_499, 65_500):
        dictionary = Dictionary([("a", 2), *((f"w{i}", 1) for i in range(size - 5))])
        assert len(dictionary) == size
        write_binary(EncodedText.open(tmp_path / "e"), tmp_path / "b", dictionary)
        expected = np.array([4, 3, 2], best_fitting_int_dtype(size))
        assert (tmp_path / "b.bin").read_bytes() == expected.tobytes()


def test_a_dictionary_is_read_as_written_and_another_file_is_refused(tmp_path):
    path = tmp_path / "dict.txt"
    built = Dictionary.build(binarize.Counter({"b": 2, "a": 2, "c": 5, "<unk>": 9}))
    assert [word for word, _ in built.words[:3]] == ["c", "a", "b"]
    assert len(built) % 8 == 0
    built.save(path)
    assert Dictionary.load(path).words == built.words
    path.write_text("a 1\nb\n")
    with pytest.raises(UserError, match="but line 2 does not"):
        Dictionary.load(path)


def test_encoded_text_that_was_cut_is_refused(corpus, tmp_path):
    encode(Words, corpus / "raw" / "test.de", tmp_path / "e", workers=1)
    ids = tmp_path / "e.ids"
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(UserError, match="e.ids` is shorter than its lengths require"):
        write_binary(EncodedText.open(tmp_path / "e"), tmp_path / "b", Dictionary([]))


# From the log of the fairseq that wrote them (../shared/data/fairseq_bin): sentences,
# tokens, and unknown tokens in percent as printed.
PUBLISHED = {
    "test.de-en.de": (6750, 161838, "0.0636"),
    "test.de-en.en": (6750, 156928, "0.00892"),
    "valid.de-en.de": (7283, 182592, "0.0192"),
    "valid.de-en.en": (7283, 178622, "0.00448"),
}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("subset", ["valid", "test"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_files_and_counts_of_a_published_fairseq_run_are_reproduced(
    subset, language, tmp_path
):
    def unpacked(name: str) -> bytes:
        return lzma.open(SHARED_DATA / "fairseq_bin" / f"{name}.xz").read()

    text, words = tmp_path / "text", tmp_path / "dict.txt"
    text.write_bytes(unpacked(f"{subset}.bpe.{language}"))
    words.write_bytes(unpacked(f"dict.{language}.txt"))
    encode(Words, text, tmp_path / "e", workers=1)
    dictionary = Dictionary.load(words)
    counts = write_binary(
        EncodedText.open(tmp_path / "e"), tmp_path / "ours", dictionary
    )
    share = f"{100 * counts['unknown'] / counts['tokens']:.3}"
    expected = PUBLISHED[f"{subset}.de-en.{language}"]
    assert (counts["sentences"], counts["tokens"], share) == expected
    for ending in ("bin", "idx"):
        expected = unpacked(f"{subset}.de-en.{language}.{ending}")
        assert (tmp_path / f"ours.{ending}").read_bytes() == expected
