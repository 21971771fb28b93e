"""Costs of whole batches of hypotheses: BLEU, GLEU, chrF and edit distance.

Texts are rows of symbols, padded right: subwords, or the words or characters that
:class:`Detokenizer` makes of them. N-grams are compared pairwise without a loop over
sentences. The largest intermediate has (rows, length, length) booleans.

To add a cost, write a function from (N, L) hypotheses, (N, R) references and the
padding symbol to (N,) costs between 0 and 1 under :func:`register_cost`.
"""

from __future__ import annotations

from typing import Callable, Iterable

import torch
from torch import Tensor

__all__ = [
    "CHARACTER_COSTS",
    "COSTS",
    "COST_UNITS",
    "Detokenizer",
    "bleu_cost",
    "chrf_cost",
    "edit_cost",
    "gleu_cost",
    "register_cost",
]

COST_UNITS = ("subword", "word")
Cost = Callable[[Tensor, Tensor, int], Tensor]
COSTS: dict[str, Cost] = {}
CHARACTER_COSTS: set[str] = set()  # costs that compare characters, whatever the unit


def register_cost(name: str, *, of_characters: bool = False) -> Callable[[Cost], Cost]:
    """Offer the decorated function as ``--beam-cost NAME``.

    Args:
        of_characters: the cost compares characters, whatever ``--beam-cost-unit``.
    """

    def register(cost: Cost) -> Cost:
        COSTS[name] = cost
        if of_characters:
            CHARACTER_COSTS.add(name)
        return cost

    return register


SPACE = ord(" ")
# As in sacrebleu's tokenizer 13a: always a word, or a word unless between digits.
SPLIT = [ord(c) for c in '!"#$%&()*+/:;<=>?@[\\]^_`{|}~']
SPLIT_OUTSIDE_NUMBERS = [ord("."), ord(",")]
HYPHEN = ord("-")  # a word after a digit
BASE = 6364136223846793005  # of the words' hashes, modulo 2 ** 64


class Detokenizer:
    """Turns rows of subwords into rows of words or characters.

    Args:
        subwords: of the dictionary, in its order, "" for special symbols.
        word_mark: a space (SentencePiece).
        join_mark: ends a subword that no space follows (subword-nmt).

    The mark that more subwords have is used. Without any mark every subword is a word.
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
        """Return code points without spaces, padded right with 0: (N, L) -> (N, C)."""
        letters = self._letters(tokens)
        return _pack(letters.masked_fill(letters.eq(SPACE), 0))

    def words(self, tokens: Tensor) -> Tensor:
        """Return a hash of each word, as BLEU counts words: (N, L) -> (N, W).

        Words are those of sacrebleu's tokenizer 13a, except for points and commas in a
        row, of which 13a splits off one of two. Rows are padded right with 0.
        """
        letters = torch.nn.functional.pad(_pack(self._letters(tokens)), (1, 1))
        is_in_word = letters.gt(0) & letters.ne(SPACE)
        is_single = _is_single_word(letters)
        before = torch.nn.functional.pad(is_in_word & ~is_single, (1, 0))[:, :-1]
        begins = is_in_word & (is_single | ~before)
        words = begins.cumsum(-1)  # from 1; spaces add 0 to the previous word
        columns = torch.arange(letters.size(1), device=letters.device)
        starts = torch.where(begins, columns, 0).cummax(-1).values
        values = (letters.long() * _powers(letters)[columns - starts]) * is_in_word
        hashes = torch.zeros_like(values).scatter_add_(1, words, values)
        count = int(words.max()) if words.numel() else 0
        return hashes[:, 1 : count + 1]

    def _letters(self, tokens: Tensor) -> Tensor:
        """Return code points with spaces and zeros in between: (N, L * width)."""
        self._table = self._table.to(tokens.device)
        return self._table[tokens].flatten(1)


def _pack(letters: Tensor) -> Tensor:
    """Move symbols other than 0 to the left and cut off columns of zeros."""
    is_letter = letters.ne(0)
    width = int(is_letter.sum(-1).max()) if letters.numel() else 0
    # A stable sort by "is padding" moves the letters left and keeps their order.
    order = (~is_letter).int().argsort(dim=1, stable=True)[:, :width]
    return letters.gather(1, order)


def _is_single_word(letters: Tensor) -> Tensor:
    """Return which letters 13a splits off on both sides: (N, C)."""
    is_digit = letters.ge(ord("0")) & letters.le(ord("9"))
    after = torch.nn.functional.pad(is_digit, (1, 0))[:, :-1]
    in_front = torch.nn.functional.pad(is_digit, (0, 1))[:, 1:]
    return (
        _is_one_of(letters, SPLIT)
        | (_is_one_of(letters, SPLIT_OUTSIDE_NUMBERS) & ~(after & in_front))
        | (letters.eq(HYPHEN) & after)
    )


def _is_one_of(letters: Tensor, codes: list[int]) -> Tensor:
    return torch.isin(letters, torch.tensor(codes, dtype=letters.dtype).to(letters))


def _powers(letters: Tensor) -> Tensor:
    """Return BASE ** i modulo 2 ** 64 for every column and i > 0: (C,)."""
    base = torch.full((letters.size(1),), BASE, device=letters.device)
    return base.cumprod(0)


BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2.0


@register_cost("bleu")
def bleu_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - sentence BLEU with add-one smoothing of orders above 1.

    The smoothing of Lin and Och (2004), used in sequence-level training since Shen et
    al. (2016), makes the cost informative if no 4-gram matches.

    Args:
        hypotheses: shape (N, L), padded right.
        references: shape (N, R), padded right.

    Returns:
        cost between 0 and 1, shape (N,), float32.
    """
    lengths, reference_lengths = _lengths(hypotheses, pad), _lengths(references, pad)
    total = torch.zeros_like(lengths, dtype=torch.float32)
    for order, matches in _matches(hypotheses, references, pad, BLEU_ORDER):
        smoothing = float(order > 1)
        possible = (lengths - order + 1).clamp_min(0)
        total += ((matches + smoothing) / (possible + smoothing).clamp_min(1)).log()
    brevity = (1 - reference_lengths / lengths.clamp_min(1)).clamp_max(0.0)
    bleu = (total / BLEU_ORDER + brevity).exp()
    return 1 - bleu.masked_fill(lengths == 0, 0.0)


@register_cost("gleu")
def gleu_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - GLEU (Wu et al., 2016, arXiv:1609.08144, section 4).

    GLEU is the smaller of precision and recall of all n-grams up to order 4. Sentence
    BLEU penalizes only short hypotheses, so that training on it lengthens them. GLEU is
    symmetric. Arguments and result as in `bleu_cost`.
    """
    lengths, reference_lengths = _lengths(hypotheses, pad), _lengths(references, pad)
    longer = torch.maximum(lengths, reference_lengths)
    total, possible = torch.zeros(2, len(lengths), device=lengths.device)
    for order, matches in _matches(hypotheses, references, pad, BLEU_ORDER):
        total += matches
        possible += (longer - order + 1).clamp_min(0)
    return 1 - total / possible.clamp_min(1)


@register_cost("chrf", of_characters=True)
def chrf_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return 1 - chrF (Popovic, 2015; orders to 6, beta 2) of rows of characters.

    As in sacrebleu, precision and recall are averaged over the orders for which both
    texts are long enough. Arguments and result as in `bleu_cost`.
    """
    lengths, reference_lengths = _lengths(hypotheses, pad), _lengths(references, pad)
    precision, recall, orders = torch.zeros(3, len(lengths), device=lengths.device)
    for order, matches in _matches(hypotheses, references, pad, CHRF_ORDER):
        possible = (lengths - order + 1).clamp_min(0)
        possible_in_reference = (reference_lengths - order + 1).clamp_min(0)
        counts = (possible > 0) & (possible_in_reference > 0)
        precision += torch.where(counts, matches / possible.clamp_min(1), 0.0)
        recall += torch.where(counts, matches / possible_in_reference.clamp_min(1), 0.0)
        orders += counts
    precision, recall = (value / orders.clamp_min(1) for value in (precision, recall))
    weighted = CHRF_BETA**2 * precision + recall
    return 1 - (1 + CHRF_BETA**2) * precision * recall / weighted.clamp_min(1e-16)


@register_cost("edit")
def edit_cost(hypotheses: Tensor, references: Tensor, pad: int) -> Tensor:
    """Return the edit distance (Levenshtein) over the longer length.

    Arguments and result as in `bleu_cost`.
    """
    lengths, reference_lengths = _lengths(hypotheses, pad), _lengths(references, pad)
    columns = torch.arange(references.size(1) + 1, device=references.device)
    row = columns.float().expand(len(references), -1)
    distances = row.gather(1, reference_lengths.unsqueeze(1)).squeeze(1)
    for index in range(hypotheses.size(1)):
        changed = row[:, :-1] + hypotheses[:, index, None].ne(references)
        reached = torch.minimum(row[:, 1:] + 1, changed)
        first = torch.full_like(row[:, :1], index + 1.0)
        reached = torch.cat([first, reached], dim=1)
        # Insertions along the row: a running minimum without the price of insertions.
        row = (reached - columns).cummin(1).values + columns
        at_end = row.gather(1, reference_lengths.unsqueeze(1)).squeeze(1)
        distances = torch.where(lengths == index + 1, at_end, distances)
    return distances / torch.maximum(lengths, reference_lengths).clamp_min(1)


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
            across = _extend(across, first_across, order)
            within = _extend(within, first_within, order)
        occurrence = within.tril().sum(-1)
        there = across.sum(-1)
        yield order, ((occurrence > 0) & (occurrence <= there)).sum(-1).float()


def _extend(shorter: Tensor, single: Tensor, order: int) -> Tensor:
    """Return which n-grams are equal, from those one shorter and single symbols."""
    rows, columns = single.size(1) - order + 1, single.size(2) - order + 1
    if rows <= 0 or columns <= 0:
        return single[:, : max(rows, 0), : max(columns, 0)]
    return shorter[:, :rows, :columns] & single[:, order - 1 :, order - 1 :]
