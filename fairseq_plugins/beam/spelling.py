"""What subwords spell: the words and the characters of whole batches at once."""
from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor

__all__ = ["Spelling"]

SPACE = ord(" ")
# As sacrebleu's tokeniser 13a: always a word of its own, or unless between digits.
SPLIT = [ord(c) for c in "!\"#$%&()*+/:;<=>?@[\\]^_`{|}~"]
SPLIT_BUT_IN_NUMBERS = [ord("."), ord(",")]
HYPHEN = ord("-")  # a word of its own after a digit
BASE = 6364136223846793005  # of the words' hashes, modulo 2 ** 64


class Spelling:
    """The text of each subword, to turn rows of subwords into words or characters.

    Args:
        subwords: of the dictionary, in its order; special symbols are spelled as "".
        word_mark: a space (SentencePiece).
        join_mark: ends a subword that no space follows (subword-nmt).

    The mark that more subwords have is the one that counts; without any of them every
    subword is a word.
    """

    def __init__(
        self, subwords: Iterable[str], *, word_mark: str = "▁", join_mark: str = "@@"
    ) -> None:
        texts = list(subwords)
        num_joins = sum(text.endswith(join_mark) for text in texts)
        num_words = sum(word_mark in text for text in texts)
        if num_joins > num_words or not num_words:
            spaced = (f"{text} ".replace(f"{join_mark} ", "") for text in texts)
            texts = ["" if text == " " else text for text in spaced]
        texts = [text.replace(word_mark, " ") for text in texts]
        width = max(1, *map(len, texts))
        codes = [[ord(c) for c in text] + [0] * (width - len(text)) for text in texts]
        self._table = torch.tensor(codes, dtype=torch.int32)

    def characters(self, tokens: Tensor) -> Tensor:
        """Return code points without spaces, as chrF counts them: (N, L) -> (N, C).

        Rows are padded right with 0.
        """
        letters = self._letters(tokens)
        return _packed(letters.masked_fill(letters.eq(SPACE), 0))

    def words(self, tokens: Tensor) -> Tensor:
        """Return a hash of each word, as BLEU counts words: (N, L) -> (N, W).

        Words are those of sacrebleu's tokeniser 13a, but for points and commas in a
        row, of which 13a splits off one of two. Rows are padded right with 0.
        """
        letters = torch.nn.functional.pad(_packed(self._letters(tokens)), (1, 1))
        is_in_word = letters.gt(0) & letters.ne(SPACE)
        is_single = _is_word_of_its_own(letters)
        before = torch.nn.functional.pad(is_in_word & ~is_single, (1, 0))[:, :-1]
        begins = is_in_word & (is_single | ~before)
        words = begins.cumsum(-1)  # from 1; letters of no word add 0 to the one before
        columns = torch.arange(letters.size(1), device=letters.device)
        starts = torch.where(begins, columns, 0).cummax(-1).values
        values = (letters.long() * _powers(letters)[columns - starts]) * is_in_word
        hashes = torch.zeros_like(values).scatter_add_(1, words, values)
        count = int(words.max()) if words.numel() else 0
        return hashes[:, 1 : count + 1]

    def _letters(self, tokens: Tensor) -> Tensor:
        """Return code points with spaces, 0 where there is nothing: (N, L * width)."""
        self._table = self._table.to(tokens.device)
        return self._table[tokens].flatten(1)


def _packed(letters: Tensor) -> Tensor:
    """Move what is not 0 to the left, in its order, and cut off what is left over."""
    is_letter = letters.ne(0)
    width = int(is_letter.sum(-1).max()) if letters.numel() else 0
    # A stable sort by "is padding" moves the letters left and keeps their order.
    order = (~is_letter).int().argsort(dim=1, stable=True)[:, :width]
    return letters.gather(1, order)


def _is_word_of_its_own(letters: Tensor) -> Tensor:
    """Return which letters 13a splits off on both sides: (N, C)."""
    is_digit = letters.ge(ord("0")) & letters.le(ord("9"))
    after = torch.nn.functional.pad(is_digit, (1, 0))[:, :-1]
    in_front = torch.nn.functional.pad(is_digit, (0, 1))[:, 1:]
    return (
        _is_one_of(letters, SPLIT)
        | (_is_one_of(letters, SPLIT_BUT_IN_NUMBERS) & ~(after & in_front))
        | (letters.eq(HYPHEN) & after)
    )


def _is_one_of(letters: Tensor, codes: list[int]) -> Tensor:
    return torch.isin(letters, torch.tensor(codes, dtype=letters.dtype).to(letters))


def _powers(letters: Tensor) -> Tensor:
    """Return BASE ** i modulo 2 ** 64 for every column and i > 0: (C,)."""
    base = torch.full((letters.size(1),), BASE, device=letters.device)
    return base.cumprod(0)
