"""Find data that is silently wrong: shifted, swapped, copied or overlapping text."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import itertools
import logging
import math
import re
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import open_text

__all__ = ["check_text", "check_unknown"]

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
Block = list[Pair]

_BLOCK = 1000  # lines that are judged together
_FEWEST_LINES = 60  # of a block whose alignment is judged
_MOST_BLOCKS = 100  # of each subset, evenly spaced
_LINES_JUDGED = 250  # of each block
_LINES_TO_LEARN = 8000
_OFFSETS = (-3, -2, -1, 1, 2, 3)
_COPIES = 0.2  # fraction of pairs with equal sides
_UNKNOWN = 0.01  # fraction of unknown pieces
_OVERLAP = 0.5  # fraction of held-out pairs that are in train
_MOST_WORDS = 5000  # of each language, to tell the sides apart
_LINES_FOR_WORDS = 50_000
_LINES_FOR_LANGUAGE = 200
_WORD = re.compile(r"[^\W\d_]+")
_SHARED = re.compile(r"\d+|\b[^\W\d_]*[A-Z][^\W_]*")  # numbers and names


class _Problem(NamedTuple):
    """``kind`` is one word; ``message`` has the rule, the place and example lines."""

    kind: str
    message: str


def check_text(
    subsets: Mapping[str, tuple[Path, Path]],
    languages: tuple[str, str],
    *,
    mode: str = "warn",
) -> dict[str, int]:
    """Check the text of all subsets.

    Args:
        subsets: source and target file of ``train``, ``valid``, ``test``, ...
        languages: of the two sides.
        mode: with ``refuse`` the first problem that makes training useless raises an
            error; with ``warn`` all problems are logged.

    Returns:
        for each held-out subset the number of its sources, targets and pairs that
        occur in ``train``.

    Raises:
        UserError: see ``mode``.
    """
    lexicon = _Lexicon(subsets["train"])
    problems = [
        *_find_swapped(subsets),
        *(
            problem
            for name, paths in subsets.items()
            for problem in _find_misaligned(name, paths, lexicon)
        ),
        *(p for name, paths in subsets.items() for p in _find_copies(name, paths)),
        *_find_equal_subsets(subsets),
    ]
    counts, overlap = _count_overlap(subsets)
    _report([*problems, *overlap, *_find_languages(subsets["train"], languages)], mode)
    return counts


def check_unknown(
    counts: Mapping[str, Mapping[str, Any]], *, mode: str = "warn"
) -> None:
    """Check the fraction of unknown pieces of each ``SUBSET.LANGUAGE``.

    Raises:
        UserError: in the mode ``refuse``, one is above the limit.
    """
    problems = []
    for name, count in counts.items():
        share = count["unknown"] / max(1, count["tokens"])
        if share > _UNKNOWN:
            problems.append(
                _Problem(
                    "unknown",
                    f"at most {_UNKNOWN:.0%} of the pieces of `{name}` should be "
                    f"unknown to the dictionary of `train`, but {share:.1%} are. Its "
                    "text has characters that the training text lacks.",
                )
            )
    _report(problems, mode)


def _report(problems: Iterable[_Problem], mode: str) -> None:
    listed = list(problems)
    for problem in listed:
        logger.warning("Warning: %s", problem.message)
    refused = [problem for problem in listed if problem.kind != "notice"]
    if mode == "refuse" and refused:
        kinds = ", ".join(dict.fromkeys(problem.kind for problem in refused))
        raise UserError(
            f"the text has problems ({kinds}), see above. Correct the files, or set "
            "`checks: warn` in the recipe (`--checks warn`) if the text is as it "
            "should be."
        )


def _read_pairs(paths: tuple[Path, Path]) -> Iterator[Pair]:
    with contextlib.closing(open_text(paths[0])) as source:
        with contextlib.closing(open_text(paths[1])) as target:
            for pair in zip(source, target):
                yield pair[0].rstrip("\n"), pair[1].rstrip("\n")


def _read_blocks(paths: tuple[Path, Path]) -> Iterator[tuple[int, Block]]:
    """Yield blocks of pairs and the number of their first line, from 1."""
    total = sum(1 for _ in _read_pairs(paths))
    step = max(1, math.ceil(total / _BLOCK / _MOST_BLOCKS))
    pairs = _read_pairs(paths)
    for number in itertools.count():
        block = list(itertools.islice(pairs, _BLOCK))
        if not block:
            return
        if number % step == 0:
            yield number * _BLOCK + 1, block


def _show(pairs: Sequence[Pair]) -> str:
    return "".join(f"\n    {source[:70]} | {target[:70]}" for source, target in pairs)


def _find_copies(name: str, paths: tuple[Path, Path]) -> Iterator[_Problem]:
    total, copies = 0, []
    for source, target in _read_pairs(paths):
        total += 1
        if source == target:
            copies.append((source, target))
    if total and len(copies) > _COPIES * total:
        yield _Problem(
            "copies",
            f"at most {_COPIES:.0%} of the pairs of `{name}` should have two equal "
            f"sides, but {len(copies):,} of {total:,} have, such as{_show(copies[:3])}",
        )


def _find_misaligned(
    name: str, paths: tuple[Path, Path], lexicon: _Lexicon
) -> Iterator[_Problem]:
    """Find blocks that match better at another offset, or not at all."""
    blocks = [each for each in _read_blocks(paths) if len(each[1]) >= _FEWEST_LINES]
    if not blocks:
        return
    votes = [0, 0]
    for first, block in blocks:
        lines = block[:_LINES_JUDGED]
        offset = _best_offset(lines, lexicon)
        example = _show(block[len(lines) // 2 :][:3])
        if offset:
            yield _Problem(
                "shifted",
                f"the sides of `{name}` should be aligned, but from about line "
                f"{first:,} the target fits the source {abs(offset)} lines "
                f"{'later' if offset > 0 else 'earlier'} (by words, numbers, names and "
                f"length), such as{example}",
            )
            return
        far = len(lines) // 2  # unrelated lines
        for here, (source, target) in enumerate(lines):
            other = lines[here - far][1]
            straight = lexicon.count_matches(source, target)
            moved = lexicon.count_matches(source, other)
            votes[moved < straight] += moved != straight
    total = sum(votes)
    if total > _LINES_JUDGED and votes[1] < 0.6 * total:
        yield _Problem(
            "unrelated",
            f"the sides of `{name}` should be translations of each other, but fit no "
            f"better than lines from different places, such as{example}",
        )


class _Lexicon:
    """Words that occur together more often than by chance, learned from the pairs."""

    def __init__(self, paths: tuple[Path, Path]) -> None:
        pairs = (pair for _, block in _read_blocks(paths) for pair in block)
        counts: tuple[collections.Counter[str], collections.Counter[str]] = (
            collections.Counter(),
            collections.Counter(),
        )
        together: collections.Counter[tuple[str, str]] = collections.Counter()
        for source, target in itertools.islice(pairs, _LINES_TO_LEARN):
            words = _words(source), _words(target)
            for counter, side in zip(counts, words):
                counter.update(side)
            together.update(itertools.product(*words))
        self._translations: dict[str, dict[str, float]] = {}
        for (source, target), count in together.items():
            # Dice's coefficient
            dice = 2 * count / (counts[0][source] + counts[1][target])
            if count >= 3 and dice > 0.1:
                self._translations.setdefault(source, {})[target] = dice

    def count_matches(self, source: str, target: str) -> float:
        """Return how many words of the source have a translation in the target.

        Numbers and names that occur on both sides count, and a likely translation
        counts more than an unlikely one.
        """
        targets = _words(target)
        total = float(len(set(_SHARED.findall(source)) & set(_SHARED.findall(target))))
        for word in _words(source):
            found = self._translations.get(word, {})
            total += max((found[each] for each in found.keys() & targets), default=0.0)
        return total


def _words(line: str) -> set[str]:
    words = set(re.findall(r"\w+", line.lower()))
    if any(char > "\u2e80" for char in line):  # written without spaces
        words.update(char for char in line if char > "\u2e80")
    return words


def _best_offset(lines: Block, lexicon: _Lexicon) -> int:
    """Return by how many lines the target has to move to fit the source, usually 0."""
    lengths = [[math.log(len(side) + 5) for side in pair] for pair in lines]
    mean = sum(target - source for source, target in lengths) / len(lines)
    straight = [lexicon.count_matches(*pair) for pair in lines]
    best, most = 0, 0.0
    for offset in _OFFSETS:
        votes = [0, 0]  # for this offset, for none
        for here in range(max(0, -offset), min(len(lines), len(lines) - offset)):
            there = here + offset
            moved = lexicon.count_matches(lines[here][0], lines[there][1])
            votes[moved < straight[here]] += moved != straight[here]
            gaps = [
                abs(lengths[line][1] - lengths[here][0] - mean)
                for line in (there, here)
            ]
            votes[gaps[1] < gaps[0]] += gaps[0] != gaps[1]
        difference, total = votes[0] - votes[1], sum(votes)
        # A sign test: five standard deviations, and clearly more than half.
        if difference > max(5 * math.sqrt(total), 0.2 * total, most):
            best, most = offset, difference
    return best


def _find_swapped(subsets: Mapping[str, tuple[Path, Path]]) -> Iterator[_Problem]:
    counters: list[collections.Counter[str]] = [
        collections.Counter(),
        collections.Counter(),
    ]
    for pair in itertools.islice(_read_pairs(subsets["train"]), _LINES_FOR_WORDS):
        for counter, side in zip(counters, pair):
            counter.update(_WORD.findall(side.lower()))
    # Part of the text may be swapped: a word belongs to the side where it is frequent.
    source_words, target_words = (
        {
            word
            for word, count in here.most_common(_MOST_WORDS)
            if count > 1.5 * there[word]
        }
        for here, there in (counters, counters[::-1])
    )
    for name, paths in subsets.items():
        for first, block in _read_blocks(paths):
            straight = crossed = 0
            for source, target in block:
                words = [_WORD.findall(side.lower()) for side in (source, target)]
                straight += sum(word in source_words for word in words[0])
                straight += sum(word in target_words for word in words[1])
                crossed += sum(word in target_words for word in words[0])
                crossed += sum(word in source_words for word in words[1])
            if crossed > 2 * straight and crossed >= 20:
                yield _Problem(
                    "swapped",
                    f"the sides of `{name}` should be in the same order as in `train`, "
                    f"but from about line {first:,} they look swapped, such as"
                    f"{_show(block[:3])}",
                )
                break


def _find_equal_subsets(
    subsets: Mapping[str, tuple[Path, Path]],
) -> Iterator[_Problem]:
    held_out = {name: set(_read_pairs(paths))
                for name, paths in subsets.items() if name != "train"}  # fmt: skip
    for (name, pairs), (other, others) in itertools.combinations(held_out.items(), 2):
        common = len(pairs & others)
        if common > _OVERLAP * min(len(pairs), len(others)):
            yield _Problem(
                "equal",
                f"`{name}` and `{other}` should be different sets, but have {common:,} "
                f"pairs in common, such as{_show(sorted(pairs & others)[:2])}",
            )


def _count_overlap(
    subsets: Mapping[str, tuple[Path, Path]],
) -> tuple[dict[str, int], list[_Problem]]:
    held_out = {
        name: list(_read_pairs(paths))
        for name, paths in subsets.items()
        if name != "train"
    }
    sides = [
        {pair[side] for pairs in held_out.values() for pair in pairs} for side in (0, 1)
    ]
    found: tuple[set[str], set[str]] = (set(), set())
    found_pairs: set[Pair] = set()
    for pair in _read_pairs(subsets["train"]):
        hits = [text in known for text, known in zip(pair, sides)]
        for text, is_known, seen in zip(pair, hits, found):
            if is_known:
                seen.add(text)
        if all(hits):
            found_pairs.add(pair)
    counts, problems = {}, []
    for name, pairs in held_out.items():
        both = [pair for pair in pairs if pair in found_pairs]
        numbers = [sum(pair[side] in found[side] for pair in pairs) for side in (0, 1)]
        counts[f"{name}_sources_in_train"] = numbers[0]
        counts[f"{name}_targets_in_train"] = numbers[1]
        counts[f"{name}_pairs_in_train"] = len(both)
        if any(numbers):
            kind = "overlap" if len(both) > _OVERLAP * len(pairs) else "notice"
            examples = [pair for pair in pairs if pair[0] in found[0]][:2]
            problems.append(
                _Problem(
                    kind,
                    f"of the {len(pairs):,} pairs of `{name}`, {numbers[0]:,} sources, "
                    f"{numbers[1]:,} targets and {len(both):,} whole pairs also occur "
                    f"in `train`{', such as' if examples else ''}{_show(examples)}",
                )
            )
    return counts, problems


def _find_languages(
    paths: tuple[Path, Path], languages: tuple[str, str]
) -> Iterator[_Problem]:
    if importlib.util.find_spec("py3langid") is None:
        logger.info(
            "      languages are not verified, because py3langid is not installed"
        )
        return
    import py3langid

    lines = list(itertools.islice(_read_pairs(paths), _LINES_FOR_LANGUAGE))
    for side, language in enumerate(languages):
        found = collections.Counter(
            py3langid.classify(pair[side])[0] for pair in lines if pair[side]
        )
        if not found:
            continue
        guess, count = found.most_common(1)[0]
        if guess != language.split("_")[0].lower() and count > 0.7 * len(lines):
            yield _Problem(
                "language",
                f"the {'target' if side else 'source'} side of `train` should be in "
                f"`{language}`, but {count} of its first {len(lines)} lines look like "
                f"`{guess}`, such as{_show(lines[:2])}",
            )
