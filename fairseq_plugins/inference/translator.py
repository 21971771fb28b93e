"""Translate lines of raw text with one model or an ensemble, in order."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator, Sequence

from fairseq_plugins.inference.codec import TextCodec
from fairseq_plugins.utils.errors import UserError

__all__ = [
    "ON_LONG",
    "Hypothesis",
    "SearchOptions",
    "Translation",
    "Translator",
    "split_text",
]

logger = logging.getLogger(__name__)

ON_LONG = ("error", "split", "truncate")
_SPLIT_LENGTH = 150  # tokens: well below the limit, and like most training sentences
# After the end of a sentence, after another punctuation mark, at a space.
_SPLIT_POINTS = (r"(?<=[.!?。!?…])\s+|(?<=[。!?])", r"(?<=[,;:،、])\s+", r"\s+")


@dataclass(frozen=True)
class SearchOptions:
    """Options of fairseq's beam search, with fairseq's defaults.

    Attributes:
        beam: hypotheses kept at each step; 1 is greedy search.
        nbest: hypotheses returned for each line.
        lenpen: exponent of the length that scores are divided by.
        max_len_a: a hypothesis has at most ``max_len_a * x + max_len_b`` tokens for a
            source of x tokens.
        max_len_b: see ``max_len_a``.
    """

    beam: int = 5
    nbest: int = 1
    lenpen: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"`--beam` must be at least 1, but is {self.beam}.")
        if not 1 <= self.nbest <= self.beam:
            raise UserError(
                f"`--nbest` must be between 1 and `--beam` ({self.beam}), but is "
                f"{self.nbest}."
            )


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a line.

    Attributes:
        text: without subwords.
        score: log-probability in nats, divided by the number of tokens (with the end of
            sentence) to the power of ``lenpen``.
        tokens: the subwords.
        reached_limit: it has as many tokens as the search allows, and may be cut off.
    """

    text: str
    score: float
    tokens: tuple[str, ...]
    reached_limit: bool = False


@dataclass(frozen=True)
class Translation:
    """The hypotheses of a line, best first; an empty line has an empty hypothesis."""

    source: str
    hypotheses: tuple[Hypothesis, ...]

    @property
    def reached_limit(self) -> bool:
        return any(hypothesis.reached_limit for hypothesis in self.hypotheses)


class Translator:
    """A model, or an ensemble whose probabilities are averaged, as fairseq does.

    Args:
        checkpoints: one for each model of the ensemble.
        data: folder with the dictionaries (``dict.LANG.txt``) of all models.
        languages: source and target; ``None`` for those of the checkpoint.
        codec: converts between raw text and subwords.
        max_tokens: size of a batch, in source tokens with padding.
        use_gpu: whether to use a GPU if there is one.

    Raises:
        UserError: a checkpoint cannot be loaded or does not fit the dictionaries.
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        data: Path,
        languages: tuple[str, str] | None,
        codec: TextCodec,
        *,
        max_tokens: int = 4000,
        use_gpu: bool = True,
    ) -> None:
        # These imports take seconds; a wrong command line should fail before them.
        import torch
        from fairseq import checkpoint_utils, utils

        import fairseq_plugins

        fairseq_plugins.register()
        # fairseq pins the memory of its batches even without a GPU.
        warnings.filterwarnings("ignore", message=".*pin_memory", category=UserWarning)
        self._codec = codec
        self._max_tokens = max_tokens
        overrides = {"data": str(data)}
        if languages is not None:
            overrides.update(source_lang=languages[0], target_lang=languages[1])
        try:
            self._models, self._cfg, self._task = (
                checkpoint_utils.load_model_ensemble_and_task(
                    [str(path) for path in checkpoints], arg_overrides=overrides
                )
            )
        except (RuntimeError, OSError, AssertionError, KeyError) as error:
            listed = ", ".join(f"`{path}`" for path in checkpoints)
            raise UserError(
                f"{listed} cannot be loaded with the dictionaries in `{data}`: {error}"
            ) from None
        self._on_gpu = use_gpu and torch.cuda.is_available()
        for model in self._models:
            if self._on_gpu:
                model.cuda()
            model.eval()
        limits = [model.max_positions() for model in self._models]
        self._max_positions = utils.resolve_max_positions(
            self._task.max_positions(), *limits
        )
        self._generator: tuple[SearchOptions, Any] | None = None

    @property
    def max_source_tokens(self) -> int:
        """The longest source line in subwords, without the end of sentence."""
        limit = self._max_positions
        longest = min(limit[0] if isinstance(limit, (tuple, list)) else limit, 10**6)
        return int(min(longest, self._max_tokens)) - 1

    @property
    def languages(self) -> tuple[str, str]:
        """The source and the target language."""
        return str(self._task.cfg.source_lang), str(self._task.cfg.target_lang)

    @property
    def model(self) -> Any:
        """The first model, in evaluation mode."""
        return self._models[0]

    @property
    def target_dictionary(self) -> Any:
        return self._task.target_dictionary

    def translate(
        self,
        lines: Iterable[str],
        options: SearchOptions = SearchOptions(),
        *,
        on_long: str = "error",
        buffer_lines: int = 5000,
    ) -> Iterator[Translation]:
        """Yield the translation of each line, in order.

        Args:
            lines: raw text. White space around a line is ignored.
            options: of the search.
            on_long: what happens to a line of more than :attr:`max_source_tokens`
                tokens: ``error``, ``split`` (translate its parts and join them by
                spaces, one hypothesis each) or ``truncate``.
            buffer_lines: number of lines that are read, sorted by length and translated
                together. Memory grows with this number, not with the number of lines.

        Raises:
            UserError: a line is too long and ``on_long`` is ``error``. The message
                names the line.
        """
        lines = iter(lines)
        first = 1
        while buffer := list(itertools.islice(lines, buffer_lines)):
            yield from self._translate_buffer(buffer, first, options, on_long)
            first += len(buffer)

    def encode(self, line: str) -> str:
        """Return the subwords of a line, with spaces between them."""
        return self._codec.encode(line)

    def collate(self, source: str, target: str | None = None) -> dict[str, Any]:
        """Return a text, and its translation if given, as a batch for the model.

        Raises:
            UserError: a text has more tokens than the model can read.
        """
        from fairseq import utils
        from fairseq.data import LanguagePairDataset

        def encode(subwords: str, dictionary: Any, limit: int, what: str) -> Any:
            tokens = dictionary.encode_line(subwords, add_if_not_exist=False).long()
            if len(tokens) - 1 > limit:
                raise UserError(
                    f"the {what} must have at most {limit:,} subwords, but has "
                    f"{len(tokens) - 1:,}."
                )
            return tokens

        task = self._task
        ours = encode(
            self.encode(source), task.source_dictionary, self.max_source_tokens, "text"
        )
        data: dict[str, Any] = {}
        if target is not None:
            theirs = encode(
                self._codec.encode_target(target),
                task.target_dictionary,
                self.model.max_decoder_positions() - 1,
                "reference",
            )
            data = {"tgt": [theirs], "tgt_sizes": [len(theirs)]}
        dataset = LanguagePairDataset(
            [ours],
            [len(ours)],
            task.source_dictionary,
            tgt_dict=task.target_dictionary,
            **data,
        )
        batch: dict[str, Any] = dataset.collater([dataset[0]])
        return utils.move_to_cuda(batch) if self._on_gpu else batch

    def check_lengths(self, lines: Iterable[str]) -> None:
        """Raise ``UserError`` for the first line that is too long for the model."""
        for number, line in enumerate(lines, start=1):
            self._encode_in_segments(line.strip(), number, "error")

    def _translate_buffer(
        self, lines: list[str], first: int, options: SearchOptions, on_long: str
    ) -> Iterator[Translation]:
        segments: list[str] = []  # subwords
        segments_of_line: list[range] = []
        for number, line in enumerate(lines, start=first):
            parts = self._encode_in_segments(line.strip(), number, on_long)
            segments_of_line.append(range(len(segments), len(segments) + len(parts)))
            segments.extend(parts)
        found = self._search(segments, options)
        for line, places in zip(lines, segments_of_line):
            ranked = [found[place] for place in places]
            yield Translation(line, _join_segments(ranked))

    def _encode_in_segments(self, line: str, number: int, on_long: str) -> list[str]:
        """Return the subwords of a line, in several segments if it has to be split."""
        subwords = self.encode(line)
        tokens = subwords.split()
        limit = self.max_source_tokens
        if not tokens:
            return []
        if len(tokens) <= limit:
            return [subwords]
        if on_long == "error":
            raise UserError(
                f"line {number} must have at most {limit} subwords, the longest input "
                f"of this model, but has {len(tokens)}. `--on-long split` translates "
                "its parts, `--on-long truncate` cuts it."
            )
        if on_long == "truncate":
            return [" ".join(tokens[:limit])]
        return [
            self.encode(part)
            for part in split_text(
                line,
                count_tokens=lambda part: len(self.encode(part).split()),
                limit=min(limit, _SPLIT_LENGTH),
            )
        ]

    def _search(
        self, segments: list[str], options: SearchOptions
    ) -> list[tuple[Hypothesis, ...]]:
        from fairseq import utils

        if not segments:
            return []
        generator = self._get_generator(options)
        dictionary = self._task.source_dictionary
        tokens = [
            dictionary.encode_line(segment, add_if_not_exist=False).long()
            for segment in segments
        ]
        dataset = self._task.build_dataset_for_inference(tokens, list(map(len, tokens)))
        batches = self._task.get_batch_iterator(
            dataset=dataset,
            max_tokens=self._max_tokens,
            max_positions=self._max_positions,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)
        found: list[tuple[Hypothesis, ...]] = [()] * len(segments)
        for sample in batches:
            numbers = sample["id"].tolist()
            if self._on_gpu:
                sample = utils.move_to_cuda(sample)
            ranked = self._task.inference_step(generator, self._models, sample)
            width = sample["net_input"]["src_tokens"].size(1)
            longest = min(
                int(options.max_len_a * width + options.max_len_b),
                generator.max_len - 1,
            )
            for number, hypotheses in zip(numbers, ranked):
                found[number] = tuple(
                    self._create_hypothesis(each, generator, longest)
                    for each in hypotheses[: options.nbest]
                )
        return found

    def _get_generator(self, options: SearchOptions) -> Any:
        """Return the latest generator, or a new one for other options."""
        if self._generator is None or self._generator[0] != options:
            from fairseq.dataclass.configs import GenerationConfig

            generation = GenerationConfig(
                beam=options.beam,
                nbest=options.nbest,
                lenpen=options.lenpen,
                max_len_a=options.max_len_a,
                max_len_b=options.max_len_b,
            )
            for model in self._models:
                model.prepare_for_inference_(SimpleNamespace(generation=generation))
            generator = self._task.build_generator(self._models, generation)
            self._generator = options, generator
        return self._generator[1]

    def _create_hypothesis(
        self, found: dict[str, Any], generator: Any, longest: int
    ) -> Hypothesis:
        subwords = self._task.target_dictionary.string(
            found["tokens"].tolist(),
            extra_symbols_to_ignore=generator.symbols_to_strip_from_output,
        )
        return Hypothesis(
            text=self._codec.decode(subwords),
            score=float(found["score"]),
            tokens=tuple(subwords.split()),
            reached_limit=len(found["tokens"]) > longest,
        )


def split_text(
    text: str, *, count_tokens: Callable[[str], int], limit: int
) -> list[str]:
    """Split a text into parts of at most ``limit`` tokens, as long as possible.

    It is split between sentences where that is enough, otherwise after commas, at other
    spaces, or within a word. Only white space is lost.
    """
    return list(_split(text, count_tokens, limit, 0))


def _split(
    text: str, count_tokens: Callable[[str], int], limit: int, level: int
) -> Iterator[str]:
    if not text:
        return
    if count_tokens(text) <= limit or len(text) == 1:
        yield text
    elif level == len(_SPLIT_POINTS):  # a single word
        half = len(text) // 2
        yield from _split(text[:half], count_tokens, limit, level)
        yield from _split(text[half:], count_tokens, limit, level)
    else:
        joined = ""
        for part in re.split(_SPLIT_POINTS[level], text):
            longer = f"{joined} {part}".strip()
            if joined and count_tokens(longer) > limit:
                yield from _split(joined, count_tokens, limit, level + 1)
                longer = part
            joined = longer
        yield from _split(joined, count_tokens, limit, level + 1)


def _join_segments(segments: list[tuple[Hypothesis, ...]]) -> tuple[Hypothesis, ...]:
    """Return the hypotheses of a line from those of its segments."""
    if not segments:
        return (Hypothesis("", 0.0, ()),)
    if len(segments) == 1:
        return segments[0]
    best = [ranked[0] for ranked in segments]
    return (
        Hypothesis(
            text=" ".join(hypothesis.text for hypothesis in best),
            score=sum(hypothesis.score for hypothesis in best),
            tokens=tuple(itertools.chain(*(hypothesis.tokens for hypothesis in best))),
            reached_limit=any(hypothesis.reached_limit for hypothesis in best),
        ),
    )
