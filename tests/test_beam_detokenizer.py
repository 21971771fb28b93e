"""Words and characters of subwords, against sacrebleu's own tokenizer."""

from __future__ import annotations

import re
from typing import Any

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
