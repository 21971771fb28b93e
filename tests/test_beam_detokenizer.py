"""Words and characters of subwords, against sacrebleu's own tokenizer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from fairseq_plugins.beam.costs import Detokenizer

# Of several points and commas in a row 13a splits off one of two.
letters = st.text("ab19 .,-'!(ä", max_size=24).filter(
    lambda text: not re.search("[.,]{2}", text)
)


def test_a_detokenizer_joins_subwords_and_leaves_out_marks_and_special_symbols():
    for subwords in (
        ["", "", "", "", "▁the", "▁d", "og", "s"],
        ["", "", "", "", "the", "d@@", "og", "s@@"],
    ):
        detokenizer = Detokenizer(subwords)
        rows = detokenizer.characters(torch.tensor([[4, 5, 6, 1], [7, 6, 1, 1]]))
        texts = ["".join(chr(c) for c in row if c) for row in rows.tolist()]
        assert texts == ["thedog", "sog"]
        assert rows.tolist()[1][3:] == [0, 0, 0]


def test_one_subword_with_the_other_kinds_mark_is_left_as_it_is():
    of_sentencepiece = ["", "▁s", "▁he", "llo", "@@"]
    of_subword_nmt = ["", "he@@", "llo", "s@@", "▁"]
    rows = torch.tensor([[2, 3, 1, 3, 0], [1, 2, 3, 2, 0]])
    for subwords, row in zip((of_sentencepiece, of_subword_nmt), rows):
        words = Detokenizer(subwords).words(row.unsqueeze(0))
        assert words.ne(0).sum() == 2, subwords


@settings(max_examples=300, deadline=None)
@given(st.lists(letters, min_size=1, max_size=4), st.data())
def test_words_are_those_of_13a_however_a_text_is_cut_into_subwords(texts, data):
    cuts = [data.draw(st.sets(st.integers(1, max(1, len(t))))) for t in texts]
    rows = [_pieces(text.replace(" ", "▁"), cut) for text, cut in zip(texts, cuts)]
    pieces = [""] + sorted({"▁", *(piece for row in rows for piece in row)})
    width = max(1, *map(len, rows))
    tokens = torch.tensor(
        [[pieces.index(p) for p in row] + [0] * (width - len(row)) for row in rows]
    )
    hashes = Detokenizer(pieces).words(tokens)
    tokenize = Tokenizer13a()
    words = [tokenize(text).split() for text in texts]
    assert [int(row.ne(0).sum()) for row in hashes] == [len(row) for row in words]
    pairs = {
        (word, int(value))
        for row, values in zip(words, hashes)
        for word, value in zip(row, values)
    }
    assert len(pairs) == len({word for word, _ in pairs}) == len({h for _, h in pairs})


def test_a_subword_without_a_join_mark_ends_its_word():
    detokenizer = Detokenizer(["", "do@@", "g", "dog", "s"])
    words = detokenizer.words(torch.tensor([[1, 2, 4, 0], [3, 4, 0, 0], [1, 4, 3, 4]]))
    assert words[0, :2].tolist() == words[1, :2].tolist()
    assert words[0, 2] == words[1, 2] == 0
    assert words[2, 0] != words[0, 0] and words[2, 2] == words[0, 1]


def test_in_a_dictionary_without_any_mark_each_entry_is_a_word():
    rows = torch.tensor([[1, 2, 0], [3, 0, 0]])
    words = Detokenizer(["", "dog", "s", "dogs"]).words(rows)
    assert words.ne(0).tolist() == [[True, True], [True, False]]
    assert len(set(words[words.ne(0)].tolist())) == 3


def test_a_cost_over_words_does_not_see_how_they_are_cut_into_subwords(
    make_criterion,
):
    from fairseq_plugins.beam.losses import SearchedBatch

    pieces = Detokenizer(["", "", "", "", "▁a", "▁dog", "▁do", "g", "▁cat"])
    gold = torch.tensor([[4, 5, 2, 1]])
    found = torch.tensor([[4, 6, 7, 2], [4, 5, 2, 1], [4, 8, 2, 1]])
    free = {"subword": [False, True, False], "word": [True, True, False]}
    for unit, is_free in free.items():
        options = make_criterion(beam_cost="gleu", beam_cost_unit=unit).cfg
        no_trace: Any = None
        batch = SearchedBatch(no_trace, gold, options, 1, 2, pieces)
        assert batch.cost(found, gold).eq(0).tolist() == is_free


def test_rows_without_a_letter_have_no_word():
    assert Detokenizer(["", "▁"]).words(torch.tensor([[1, 0], [0, 0]])).shape == (2, 0)


def _pieces(text: str, cuts: set[int]) -> list[str]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:]) if a < b]


def count_words(detokenizer: Detokenizer, rows: list[list[int]]) -> list[int]:
    return detokenizer.words(torch.tensor(rows)).ne(0).sum(-1).tolist()


def texts_of(detokenizer: Detokenizer, rows: list[list[int]]) -> list[str]:
    letters = detokenizer.characters(torch.tensor(rows)).tolist()
    return ["".join(chr(c) for c in row if c) for row in letters]


def test_words_of_text_that_moses_tokenized_are_those_of_the_detokenized_text():
    text = "he said : &quot; it &apos;s a well @-@ kno@@ wn dog &amp; cat &quot; !"
    pieces = [*dict.fromkeys(text.split())]
    detokenizer = Detokenizer(["", *pieces], languages=["en"])
    row = [1 + pieces.index(piece) for piece in text.split()]
    raw = 'he said: "it\'s a well-known dog & cat"!'
    expected = Tokenizer13a()(raw).split()
    assert texts_of(detokenizer, [row]) == [raw.replace(" ", "")]
    assert count_words(detokenizer, [row, row[:3] + [0] * (len(row) - 3)]) == [
        len(expected), 3
    ]  # fmt: skip
    # The words, not only their number: the same as those of plain words.
    plain = ["", *dict.fromkeys(expected)]
    words = Detokenizer(plain).words(
        torch.tensor([[plain.index(word) for word in expected]])
    )
    assert torch.equal(words, detokenizer.words(torch.tensor([row])))


def test_a_task_may_say_that_moses_tokenized_text_without_entities():
    pieces = ["", "do", "n't", "go"]
    assert count_words(Detokenizer(pieces), [[1, 2, 3]]) == [3]
    detokenizer = Detokenizer(["", "l'", "ami"], languages=["fr"], is_moses=True)
    assert count_words(detokenizer, [[1, 2]]) == [1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["&", "quot", ";", "&amp;", "&lt;", "▁a", "lt;"])))
def test_words_are_those_of_13a_where_it_replaces_entities(parts):
    pieces = ["", "▁", "&", "quot", ";", "&amp;", "&lt;", "▁a", "lt;"]
    row = [1, *(pieces.index(part) for part in parts)]
    expected = Tokenizer13a()("".join(parts).replace("▁", " ")).split()
    assert count_words(Detokenizer(pieces), [row]) == [len(expected)]


@settings(max_examples=300, deadline=None)
@given(st.text("我們今。,“5.-3a b(ェ,", max_size=16))
def test_words_of_chinese_are_those_of_sacrebleus_tokenizer(text):
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    if re.search("[.,]{2}", text):  # 13a and zh split off one of two
        return
    pieces = ["▁", *dict.fromkeys(text.replace(" ", "▁")), ""]
    row = [0, *(pieces.index(c) for c in text.replace(" ", "▁"))]
    expected = TokenizerZh()(text).split()
    for language in ("zh", "zh_CN", "zho-Hans"):
        words = Detokenizer(pieces, languages=[language]).words(torch.tensor([row]))
        assert words.ne(0).sum() == len(expected), expected


def test_every_character_of_japanese_and_korean_is_a_word_and_latin_words_are_whole():
    pieces = ["", "▁日本", "カード", "▁USB", "▁한국", "어"]
    for language in ("ja", "jpn_Jpan", "ko_KR"):
        detokenizer = Detokenizer(pieces, languages=[language])
        assert count_words(detokenizer, [[1, 2, 3, 4, 5]]) == [9]
    assert count_words(Detokenizer(pieces), [[1, 2, 3, 4, 5]]) == [3]


@pytest.mark.parametrize(
    "languages, message",
    [
        (["th"], "`th` has no spaces and sacrebleu no tokenizer"),
        (["km_KH"], "`km` has no spaces"),
        (["de", "zh"], "de, zh have different tokenizers"),
    ],
)
def test_languages_without_words_are_refused(languages, message):
    detokenizer = Detokenizer(["", "▁a"], languages=languages)
    assert texts_of(detokenizer, [[1]]) == ["a"]
    with pytest.raises(ValueError, match=message):
        detokenizer.check_words()


def test_the_criterion_refuses_words_of_such_a_language_only_where_it_counts_them(
    task, make_criterion, monkeypatch
):
    monkeypatch.setattr(task.cfg, "target_lang", "th")
    for beam_loss in ("risk", "mrt", "bso"):
        with pytest.raises(ValueError, match="`th` has no spaces"):
            make_criterion(beam_loss=beam_loss)
    make_criterion(beam_cost_unit="subword")
    make_criterion(beam_cost="chrf")
    make_criterion(beam_loss="survival")
    make_criterion(rho=1.0)
