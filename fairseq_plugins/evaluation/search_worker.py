"""The process that runs fairseq's search: ``python -m ...search_worker SETUP``.

It loads one checkpoint and answers requests (see :mod:`utils.process`). Each request is
for a search or for the scores of the references of a subset. Like ``fairseq-generate``
it uses fairseq's own task, batches and generators, but it prints nothing: printing
takes much of the time of ``fairseq-generate`` with a small model.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
from typing import Any, Iterator

from fairseq_plugins.utils.process import answer_requests

__all__ = ["Model"]

Record = dict[str, Any]


class Model:
    """A checkpoint, loaded as ``fairseq-generate`` loads it.

    Args:
        setup: its options: ``data``, ``source_lang``, ``target_lang``, ``path`` and
            ``max_tokens``.
    """

    def __init__(self, setup: dict[str, str]) -> None:
        import torch
        from fairseq import checkpoint_utils, options, tasks
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        import fairseq_plugins

        fairseq_plugins.register()
        words = [setup["data"]]
        for name in ("source_lang", "target_lang", "path", "max_tokens"):
            words += [f"--{name.replace('_', '-')}", setup[name]]
        parser = options.get_generation_parser()
        self._cfg = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(parser, words)
        )
        self._task = tasks.setup_task(self._cfg.task)
        self._models, self._saved = checkpoint_utils.load_model_ensemble(
            [setup["path"]], task=self._task
        )
        (model,) = self._models
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            model.cuda()
        model.prepare_for_inference_(self._cfg)

    def answer(self, request: Record) -> Iterator[Record]:
        """Translate, or score, the unfinished batches of a subset.

        Args:
            request: ``subset``; ``done``, a sentence of each batch to skip; and
                for a search ``beam`` and ``lenpen``.

        Yields:
            for each batch its ``sentences``, pairs of a number and the result of
            :meth:`_describe_hypotheses` or :meth:`_describe_reference`; the length of
            its best hypotheses in ``tokens``; and its time in ``seconds``.
        """
        generator, is_search = self._generator(request), "beam" in request
        done = set(request["done"])
        for sample in self._batches(request["subset"]):
            numbers = sample["id"].tolist()
            if not done.isdisjoint(numbers):
                continue
            started = time.perf_counter()
            found = self._task.inference_step(generator, self._models, sample)
            tokens = sum(len(ranked[0]["tokens"]) for ranked in found)
            seconds = time.perf_counter() - started
            rows = [
                (
                    self._describe_hypotheses(ranked[: request["beam"]], generator)
                    if is_search
                    else self._describe_reference(ranked[0])
                )
                for ranked in found
            ]
            sentences = list(zip(numbers, rows))
            yield {"sentences": sentences, "tokens": tokens, "seconds": seconds}

    def _generator(self, request: Record) -> Any:
        from fairseq.modules.beamable_mm import BeamableMM

        options = copy.deepcopy(self._cfg.generation)
        if "beam" in request:
            options.beam, options.lenpen = request["beam"], request["lenpen"]
        else:
            options.score_reference = True
        # Convolutional models need the beam size. Other modules must not get it: the
        # attention of a Transformer would round differently, and would take references
        # for K hypotheses of each source.
        for module in self._models[0].modules():
            if isinstance(module, BeamableMM):
                module.set_beam_size(request.get("beam", 1))
        return self._task.build_generator(self._models, options)

    def _batches(self, subset: str) -> Iterator[Any]:
        from fairseq import utils

        if subset not in self._task.datasets:
            self._task.load_dataset(subset, task_cfg=self._saved.task)
        options = self._cfg.dataset
        limits = self._task.max_positions(), self._models[0].max_positions()
        batches = self._task.get_batch_iterator(
            dataset=self._task.dataset(subset),
            max_tokens=options.max_tokens,
            max_positions=utils.resolve_max_positions(*limits),
            required_batch_size_multiple=options.required_batch_size_multiple,
            disable_iterator_cache=True,
        )
        for sample in batches.next_epoch_itr(shuffle=False):
            yield utils.move_to_cuda(sample) if self._on_gpu else sample

    def _describe_hypotheses(
        self, ranked: list[Any], generator: Any
    ) -> list[tuple[float, str]]:
        """Return score and pieces of each hypothesis."""
        string = self._task.target_dictionary.string
        ignored = generator.symbols_to_strip_from_output
        return [
            (
                _round_like_fairseq(hypothesis["score"]),
                # With a list this takes a tenth of the time.
                string(hypothesis["tokens"].tolist(), extra_symbols_to_ignore=ignored),
            )
            for hypothesis in ranked
        ]

    def _describe_reference(self, reference: Any) -> tuple[float, int]:
        """Return log-probability and length of a reference."""
        tokens = len(reference["positional_scores"])
        # The score is the mean over the tokens.
        return _round_like_fairseq(reference["score"]) * tokens, tokens


def _round_like_fairseq(score: Any) -> float:
    """Return a score in nats, rounded as ``fairseq-generate`` rounds it in bits."""
    return float(score / math.log(2)) * math.log(2)


def main() -> None:
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        level=logging.INFO,
        stream=sys.stdout,
    )
    answer_requests(Model(json.loads(sys.argv[1])).answer)


if __name__ == "__main__":
    main()
