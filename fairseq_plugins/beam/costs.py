"""Costs of whole batches of hypotheses: BLEU, GLEU, chrF and edit distance.

Texts are rows of symbols, padded right: subwords, or the words or characters that
:class:`Detokenizer` makes of them. N-grams are compared pairwise without a loop over
sentences. The largest intermediate has (rows, length, length) booleans.

To add a cost, write a function from (N, L) hypotheses, (N, R) references and the
padding symbol to (N,) costs between 0 and 1 under :func:`register_cost`.
"""

from __future__ import annotations

import functools
import re
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
# Numbers of the words' hashes, modulo 2 ** 64
BASE = 6364136223846793005

# What 13a replaces, in its order.
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
# What shows that Moses tokenized a text: its other entities, and its split hyphens.
MOSES_MARKS = (*ENTITIES, "&apos;", "&#124;", "&#91;", "&#93;", "@-@")

# Chinese, Japanese and Korean by their codes of ISO 639. Each of their characters is a
# word. The first ranges are those of sacrebleu's tokenizer zh (2.6), with its
# general punctuation and symbols.
KANA_AND_HANGUL_LANGUAGES = frozenset("ja jpn ko kor".split())
CHARACTER_LANGUAGES = KANA_AND_HANGUL_LANGUAGES.union(
    "zh zho chi cmn yue wuu lzh".split()
)
CHARACTER_RANGES = (
    (0x2001, 0x2A6D), (0x2E80, 0x2FDF), (0x2FF0, 0x303F), (0x3100, 0x312F),
    (0x31A0, 0x31BF), (0x31C0, 0x31EF), (0x3200, 0x33FF), (0x3400, 0x4DB5),
    (0x4E00, 0x9FBB), (0xF900, 0xFA2D), (0xFA30, 0xFA6A), (0xFA70, 0xFAD9),
    (0xFE10, 0xFE1F), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF),
)  # fmt: skip
KANA_AND_HANGUL = (
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x1B000, 0x1B16F), (0x1100, 0x11FF),
    (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF),
)  # fmt: skip
# Thai, Lao, Khmer, Burmese, Tibetan, Dzongkha and Shan: BLEU has no words of theirs.
UNSPACED_LANGUAGES = frozenset(
    "th tha lo lao km khm my mya bur bo bod tib dz dzo shn".split()
)


class Detokenizer:
    """Turns rows of subwords into rows of words or characters of the detokenized text.

    Args:
        subwords: of the dictionary, in its order, "" for special symbols.
        languages: of the texts, as codes such as "de" or "zh_CN"; none if unknown.
        is_moses: Moses tokenized the texts. It is found, too, by the entities and the
            split hyphens that Moses writes, unless spaces are marked.
        word_mark: a space (SentencePiece).
        join_mark: ends a subword that no space follows (subword-nmt).

    The mark that more subwords have is used. Without any mark every subword is a word.

    Raises:
        ValueError: Moses tokenized the texts, and sacremoses is not installed.
    """

    def __init__(
        self,
        subwords: Iterable[str],
        *,
        languages: Iterable[str] = (),
        is_moses: bool = False,
        word_mark: str = "▁",
        join_mark: str = "@@",
    ) -> None:
        texts = list(subwords)
        num_joins = sum(text.endswith(join_mark) for text in texts)
        num_words = sum(word_mark in text for text in texts)
        if num_joins > num_words or not num_words:
            is_moses |= any(mark in text for text in texts for mark in MOSES_MARKS)
            spaced = (f"{text} ".replace(f"{join_mark} ", "") for text in texts)
            texts = ["" if text == " " else text for text in spaced]
        texts = [text.replace(word_mark, " ") for text in texts]
        width = max(1, *map(len, texts))
        codes = [[ord(c) for c in text] + [0] * (width - len(text)) for text in texts]
        self._table = torch.tensor(codes, dtype=torch.int32)
        self._texts = texts
        self._languages = sorted({_primary_code(language) for language in languages})
        self._joins_words = _moses_detokenizer(self._languages) if is_moses else None
        self._has_entities = "&" in "".join(texts)

    def check_words(self) -> None:
        """Raise ``ValueError`` if BLEU does not count words in these languages."""
        unspaced = [code for code in self._languages if code in UNSPACED_LANGUAGES]
        if unspaced:
            raise ValueError(
                "`--beam-cost-unit word` must have words of the target language, but "
                f"`{unspaced[0]}` has no spaces and sacrebleu no tokenizer for it: use "
                "`--beam-cost-unit subword` or `--beam-cost chrf`."
            )
        if len({code in CHARACTER_LANGUAGES for code in self._languages}) > 1:
            raise ValueError(
                "`--beam-cost-unit word` must split all target languages alike, but "
                f"{', '.join(self._languages)} have different tokenizers: use "
                "`--beam-cost-unit subword` or `--beam-cost chrf`."
            )

    def characters(self, tokens: Tensor) -> Tensor:
        """Return code points without spaces, padded right with 0: (N, L) -> (N, C)."""
        letters = self._letters(tokens)
        return _pack(letters.masked_fill(letters.eq(SPACE), 0))

    def words(self, tokens: Tensor) -> Tensor:
        """Return a hash of each word, as BLEU counts words: (N, L) -> (N, W).

        Words are those of sacrebleu's tokenizer 13a, or zh for Chinese, except for
        points and commas in a row, of which it splits off one of two. In Japanese and
        Korean each character is a word, as in Chinese. Rows are padded right with 0.
        """
        self.check_words()
        letters = _pack(self._letters(tokens))
        of_characters = bool(self._languages) and (
            self._languages[0] in CHARACTER_LANGUAGES
        )
        if self._has_entities and not of_characters:
            for entity, character in ENTITIES.items():
                letters = _pack(_replace(letters, entity, character))
        letters = torch.nn.functional.pad(letters, (1, 1))
        is_in_word = letters.gt(0) & letters.ne(SPACE)
        is_single = _is_single_word(letters, is_in_word, of_characters)
        if of_characters:
            for first, last in self._character_ranges():
                is_single |= letters.ge(first) & letters.le(last)
        before = torch.nn.functional.pad(is_in_word & ~is_single, (1, 0))[:, :-1]
        begins = is_in_word & (is_single | ~before)
        words = begins.cumsum(-1)  # from 1; spaces add 0 to the previous word
        columns = torch.arange(letters.size(1), device=letters.device)
        starts = torch.where(begins, columns, 0).cummax(-1).values
        values = (letters.long() * _powers(letters)[columns - starts]) * is_in_word
        hashes = torch.zeros_like(values).scatter_add_(1, words, values)
        count = int(words.max()) if words.numel() else 0
        return hashes[:, 1 : count + 1]

    def _character_ranges(self) -> list[tuple[int, int]]:
        has_others = any(code in KANA_AND_HANGUL_LANGUAGES for code in self._languages)
        return [*CHARACTER_RANGES, *(KANA_AND_HANGUL if has_others else ())]

    def _letters(self, tokens: Tensor) -> Tensor:
        """Return code points with spaces and zeros in between: (N, C)."""
        if self._joins_words is not None:
            rows = ["".join(self._texts[t] for t in row) for row in tokens.tolist()]
            codes = [[*map(ord, self._joins_words(row))] for row in rows]
            width = max(map(len, codes), default=0)
            padded = [row + [0] * (width - len(row)) for row in codes]
            letters = torch.tensor(padded, dtype=torch.int32, device=tokens.device)
            return letters.view(len(tokens), width)
        self._table = self._table.to(tokens.device)
        return self._table[tokens].flatten(1)


def _primary_code(language: str) -> str:
    """Return the code of a language without its script and region."""
    return re.split("[-_]", language.lower())[0]


def _moses_detokenizer(languages: list[str]) -> Callable[[str], str]:
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise ValueError(
            "The cost compares detokenized text, and Moses tokenized these targets, so "
            "the package sacremoses must be installed: pip install -e '.[moses]'."
        ) from None
    detokenize = MosesDetokenizer(languages[0] if languages else "en").detokenize
    return functools.lru_cache(maxsize=1 << 16)(lambda text: detokenize(text.split()))


def _pack(letters: Tensor) -> Tensor:
    """Move symbols other than 0 to the left and cut off columns of zeros."""
    is_letter = letters.ne(0)
    width = int(is_letter.sum(-1).max()) if letters.numel() else 0
    # A stable sort by "is padding" moves the letters left and keeps their order.
    order = (~is_letter).int().argsort(dim=1, stable=True)[:, :width]
    return letters.gather(1, order)


def _replace(letters: Tensor, text: str, character: str) -> Tensor:
    """Put a character and zeros in the place of a text in packed rows: (N, C)."""
    width = letters.size(1)
    padded = torch.nn.functional.pad(letters, (0, len(text)))
    is_start = torch.ones_like(letters, dtype=torch.bool)
    for offset, letter in enumerate(text):
        is_start &= padded[:, offset : offset + width].eq(ord(letter))
    result = letters.masked_fill(is_start, ord(character))
    for offset in range(1, len(text)):
        is_rest = torch.nn.functional.pad(is_start, (offset, 0))[:, :width]
        result = result.masked_fill(is_rest, 0)
    return result


def _is_single_word(letters: Tensor, is_in_word: Tensor, is_stripped: bool) -> Tensor:
    """Return which letters 13a splits off on both sides: (N, C).

    Args:
        is_stripped: as in zh, no space is around the text.
    """
    is_digit = letters.ge(ord("0")) & letters.le(ord("9"))
    after = torch.nn.functional.pad(is_digit, (1, 0))[:, :-1]
    in_front = torch.nn.functional.pad(is_digit, (0, 1))[:, 1:]
    stays_after, stays_in_front = after, in_front
    if is_stripped:
        count = is_in_word.cumsum(-1)
        stays_after = after | (count == 1)
        stays_in_front = in_front | (count == count[:, -1:])
    return (
        _is_one_of(letters, SPLIT)
        | (_is_one_of(letters, SPLIT_OUTSIDE_NUMBERS) & ~(stays_after & stays_in_front))
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
