"""What subwords spell: the words and the characters of whole batches at once.

How bad a hypothesis is, for whole batches at once: BLEU, GLEU, chrF, edits.

Texts are rows of symbols, padded right: subwords as they are, or the words or
characters that they spell (`fairseq_plugins.beam.costs`). N-grams are compared
pairwise, so that no loop runs over sentences; the largest intermediate has (rows,
length, length) truth values.
"""

from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor

__all__ = [
    "COSTS",
    "COST_UNITS",
    "Spelling",
    "bleu_cost",
    "chrf_cost",
    "edit_cost",
    "gleu_cost",
]

SPACE = ord(" ")
# As sacrebleu's tokeniser 13a: always a word of its own, or unless between digits.
SPLIT = [ord(c) for c in '!"#$%&()*+/:;<=>?@[\\]^_`{|}~']
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


COST_UNITS = ("subword", "word")
BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2.0


def bleu_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - sentence BLEU with add-one smoothing of orders above 1.

    The smoothing is Lin and Och's (2004), which sequence-level training has used since
    Shen et al. (2016); it makes the cost informative where no 4-gram matches.

    Args:
        hypotheses: shape (N, L), padded right.
        references: shape (N, R), padded right.

    Returns:
        cost between 0 and 1, shape (N,), float32.
    """
    lengths, wanted = _lengths(hypotheses, pad), _lengths(references, pad)
    total = torch.zeros_like(lengths, dtype=torch.float32)
    for order, matches in _matches(hypotheses, references, pad, BLEU_ORDER):
        smoothing = float(order > 1)
        possible = (lengths - order + 1).clamp_min(0)
        total += ((matches + smoothing) / (possible + smoothing).clamp_min(1)).log()
    brevity = (1 - wanted / lengths.clamp_min(1)).clamp_max(0.0)
    bleu = (total / BLEU_ORDER + brevity).exp()
    return 1 - bleu.masked_fill(lengths == 0, 0.0)


def gleu_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - GLEU (Wu et al., 2016, arXiv:1609.08144, section 4).

    The smaller of precision and recall of all n-grams up to 4. Sentence BLEU punishes
    only what is too short, so that training on it lengthens hypotheses; this is
    symmetric. Arguments and result as in `bleu_cost`.
    """
    lengths, wanted = _lengths(hypotheses, pad), _lengths(references, pad)
    longer = torch.maximum(lengths, wanted)
    total, possible = torch.zeros(2, len(lengths), device=lengths.device)
    for order, matches in _matches(hypotheses, references, pad, BLEU_ORDER):
        total += matches
        possible += (longer - order + 1).clamp_min(0)
    return 1 - total / possible.clamp_min(1)


def chrf_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - chrF (Popovic, 2015; orders to 6, beta 2) of rows of characters.

    As in sacrebleu, precision and recall are averaged over the orders for which both
    texts are long enough. Arguments and result as in `bleu_cost`.
    """
    lengths, wanted = _lengths(hypotheses, pad), _lengths(references, pad)
    precision, recall, orders = torch.zeros(3, len(lengths), device=lengths.device)
    for order, matches in _matches(hypotheses, references, pad, CHRF_ORDER):
        possible = (lengths - order + 1).clamp_min(0)
        needed = (wanted - order + 1).clamp_min(0)
        counts = (possible > 0) & (needed > 0)
        precision += torch.where(counts, matches / possible.clamp_min(1), 0.0)
        recall += torch.where(counts, matches / needed.clamp_min(1), 0.0)
        orders += counts
    precision, recall = (value / orders.clamp_min(1) for value in (precision, recall))
    weighted = CHRF_BETA**2 * precision + recall
    return 1 - (1 + CHRF_BETA**2) * precision * recall / weighted.clamp_min(1e-16)


def edit_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return the edit distance (Levenshtein) over the longer length.

    Arguments and result as in `bleu_cost`.
    """
    lengths, wanted = _lengths(hypotheses, pad), _lengths(references, pad)
    columns = torch.arange(references.size(1) + 1, device=references.device)
    row = columns.float().expand(len(references), -1)
    distances = row.gather(1, wanted.unsqueeze(1)).squeeze(1)
    for index in range(hypotheses.size(1)):
        changed = row[:, :-1] + hypotheses[:, index, None].ne(references)
        reached = torch.minimum(row[:, 1:] + 1, changed)
        first = torch.full_like(row[:, :1], index + 1.0)
        reached = torch.cat([first, reached], dim=1)
        # Insertions run along the row: a running minimum once their price is out.
        row = (reached - columns).cummin(1).values + columns
        at_end = row.gather(1, wanted.unsqueeze(1)).squeeze(1)
        distances = torch.where(lengths == index + 1, at_end, distances)
    return distances / torch.maximum(lengths, wanted).clamp_min(1)


COSTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "bleu": bleu_cost,
    "gleu": gleu_cost,
    "chrf": chrf_cost,
    "edit": edit_cost,
}


def _lengths(tokens: Tensor, pad: int) -> Tensor:
    return tokens.ne(pad).sum(-1)


def _matches(
    hypotheses: Tensor, references: Tensor, pad: int, max_order: int
) -> Iterable[tuple[int, Tensor]]:
    """Yield each order with the number of n-grams in common, clipped: (N,).

    The r-th occurrence of an n-gram matches if the reference has r of them or more.
    """
    across = hypotheses.unsqueeze(2).eq(references.unsqueeze(1))
    within = hypotheses.unsqueeze(2).eq(hypotheses.unsqueeze(1))
    across = across & hypotheses.ne(pad).unsqueeze(2)
    within = within & hypotheses.ne(pad).unsqueeze(2)
    first_across, first_within = across, within
    for order in range(1, max_order + 1):
        if order > 1:
            across = _extended(across, first_across, order)
            within = _extended(within, first_within, order)
        occurrence = within.tril().sum(-1)
        there = across.sum(-1)
        yield order, ((occurrence > 0) & (occurrence <= there)).sum(-1).float()


def _extended(shorter: Tensor, single: Tensor, order: int) -> Tensor:
    """Return which n-grams are equal, from those one shorter and single symbols."""
    rows, columns = single.size(1) - order + 1, single.size(2) - order + 1
    if rows <= 0 or columns <= 0:
        return single[:, : max(rows, 0), : max(columns, 0)]
    return shorter[:, :rows, :columns] & single[:, order - 1 :, order - 1 :]
