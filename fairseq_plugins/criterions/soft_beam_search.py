"""``--criterion soft_beam_search``: cross entropy plus a loss on beam search."""

from __future__ import annotations

import math
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
)
from fairseq.logging import metrics
from torch import Tensor

from fairseq_plugins.beam.adapters import find_adapter
from fairseq_plugins.beam.adapters.hooks import SharedDropout, capture_output
from fairseq_plugins.beam.costs import CHARACTER_COSTS, Detokenizer
from fairseq_plugins.beam.losses import (
    LOSSES,
    SearchedBatch,
    beam_loss,
    find_required_scores,
    search_statistics,
)
from fairseq_plugins.beam.rescore import search_with_gradients
from fairseq_plugins.beam.search import SearchRequest
from fairseq_plugins.beam.step import BeamSettings
from fairseq_plugins.compat.updates import report_update_number
from fairseq_plugins.criterions.generation import (
    find_prefix_size,
    find_target_dictionaries,
    find_target_languages,
    uses_moses,
)
from fairseq_plugins.criterions.options import (
    SoftBeamSearchConfig,
    check_options,
    parse_loss_weights,
)
from fairseq_plugins.utils.schedule import geometric, stepwise

__all__ = ["SoftBeamSearchCriterion"]


@register_criterion("soft_beam_search", dataclass=SoftBeamSearchConfig)
class SoftBeamSearchCriterion(LabelSmoothedCrossEntropyCriterion):
    """rho * label-smoothed cross entropy + (1 - rho) * beam loss.

    The beam loss comes from a beam search that starts from the same encoder output
    (Xie et al., NeurIPS 2020, section 5). In evaluation mode, and with rho = 1, this is
    label-smoothed cross entropy alone, so that validation losses of different runs can
    be compared.

    Raises:
        ValueError: an option is out of its range or does not fit the task.
    """

    def __init__(self, cfg: SoftBeamSearchConfig, task: Any) -> None:
        super().__init__(
            task,
            cfg.sentence_avg,
            cfg.label_smoothing,
            cfg.ignore_prefix_size,
            cfg.report_accuracy,
        )
        self.cfg = cfg
        self.loss_weights = parse_loss_weights(cfg.beam_loss)
        dictionaries = find_target_dictionaries(task)
        # All candidates: a dictionary without padding and end of sentence.
        largest_pool = min(map(len, dictionaries)) - 2
        default_pool = min(4 * max(cfg.beam, cfg.beam_start or 0), largest_pool)
        self.pool_size = cfg.pool_size or default_pool
        self.num_updates = 0
        check_options(cfg, self.pool_size, largest_pool, task)
        self.prefix_size = find_prefix_size(task) if cfg.rho < 1 else 0
        # By dictionary. Each model of a multilingual task may have its own.
        self._detokenizers: dict[int, tuple[Any, Detokenizer]] = {}
        if cfg.rho < 1:
            for dictionary in dictionaries:
                self._check_cost(self._find_detokenizer(dictionary))
        report_update_number(task, self.set_num_updates)

    def set_num_updates(self, num_updates: int) -> None:
        """Set the number of updates, on which `epsilon` and `beam_size` depend."""
        self.num_updates = num_updates

    @property
    def epsilon(self) -> float:
        """Epsilon of the selection at the current update."""
        end = self.cfg.epsilon if self.cfg.epsilon_end is None else self.cfg.epsilon_end
        return geometric(
            self.cfg.epsilon, end, self.cfg.epsilon_updates, self.num_updates
        )

    @property
    def beam_size(self) -> int:
        """Beam size at the current update."""
        start = self.cfg.beam if self.cfg.beam_start is None else self.cfg.beam_start
        return stepwise(start, self.cfg.beam, self.cfg.beam_updates, self.num_updates)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of one batch.

        Returns:
            the summed loss in nats, the sample size to divide it by, and the values to
            log.
        """
        if not self.training or self.cfg.rho == 1:
            return super().forward(model, sample, reduce)
        if not reduce:
            raise ValueError(
                "`reduce` must be true in training, since the beam loss has no value "
                "per token, but is false."
            )
        adapter = find_adapter(model)
        # The wrapper of a distributed model must see a call, so the search takes the
        # encoder's output from the cross entropy.
        with capture_output(model.encoder) as encoder_outs:
            ce_loss, sample_size, logged = super().forward(model, sample)
        net_input, target = sample["net_input"], sample["target"]
        dropout = None
        if str(self.cfg.beam_dropout) == "shared":
            dims = adapter.dropout_batch_dims(model.decoder)
            dropout = SharedDropout(dims, batch_size=len(target))
        request = SearchRequest(
            model=model,
            encoder_out=encoder_outs[0],
            start_tokens=net_input["prev_output_tokens"][:, 0],
            target=target,
            settings=self._settings(model, sample),
            required=find_required_scores(self.loss_weights),
            max_lens=self._max_len(net_input["src_lengths"]).long(),
            prefix_size=self.prefix_size,
            dropout=dropout,
        )
        searched = SearchedBatch(
            trace=search_with_gradients(request, str(self.cfg.engine)),
            target=target,
            options=self.cfg,
            pad_id=self.padding_idx,
            eos_id=self.task.target_dictionary.eos(),
            detokenizer=self._find_detokenizer(model.decoder.dictionary),
            prefix_size=self.prefix_size,
        )
        loss_on_beam = beam_loss(searched, self.loss_weights)
        loss = self.cfg.rho * ce_loss + (1 - self.cfg.rho) * loss_on_beam
        request.settings.loss_scale.read_from(loss)
        logged.update(loss=loss.data, ce_loss=ce_loss.data, beam_loss=loss_on_beam.data)
        logged.update(search_statistics(searched, self.loss_weights))
        # Averages over batches and workers are weighted by tokens.
        num_tokens = sample["ntokens"]
        logged.update(epsilon=self.epsilon * num_tokens, beam_tokens=num_tokens)
        logged.update(beam=self.beam_size * num_tokens)
        return loss, sample_size, logged

    def _find_detokenizer(self, dictionary: Any) -> Detokenizer:
        if id(dictionary) not in self._detokenizers:
            specials = dictionary.nspecial
            subwords = [""] * specials + list(dictionary.symbols[specials:])
            detokenizer = Detokenizer(
                subwords,
                languages=find_target_languages(self.task),
                is_moses=uses_moses(self.task),
            )
            self._detokenizers[id(dictionary)] = dictionary, detokenizer
        return self._detokenizers[id(dictionary)][1]

    def _check_cost(self, detokenizer: Detokenizer) -> None:
        """Raise ``ValueError`` for a cost that the target language does not allow."""
        losses = [LOSSES[name] for name in self.loss_weights]
        has_cost = any(loss.required.finished or loss.resets_to_gold for loss in losses)
        if has_cost and str(self.cfg.beam_cost) not in CHARACTER_COSTS:
            if str(self.cfg.beam_cost_unit) == "word":
                detokenizer.check_words()

    def _max_len(self, source_length: Any) -> Any:
        # fairseq uses the longest source of the batch. With the length of each
        # sentence, its loss does not depend on the others.
        return self.cfg.beam_max_len_a * source_length + self.cfg.beam_max_len_b

    def _settings(self, model: Any, sample: dict[str, Any]) -> BeamSettings:
        cfg = self.cfg
        longest = int(self._max_len(sample["net_input"]["src_tokens"].size(1)))
        reset_margin = 0.0 if cfg.reset_to_gold else None
        if any(LOSSES[name].resets_to_gold for name in self.loss_weights):
            reset_margin = cfg.bso_margin
        return BeamSettings(
            beam_size=self.beam_size,
            pool_size=self.pool_size,
            max_len=min(longest, model.max_decoder_positions() - 1),
            min_len=cfg.beam_min_len,
            epsilon=self.epsilon,
            mixing=str(cfg.mixing),
            selection_clip=cfg.selection_clip,
            reset_margin=reset_margin,
            pad_id=self.padding_idx,
            eos_id=self.task.target_dictionary.eos(),
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses in bits per token and the rates of the search."""
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(logging_outputs)

        def total(name: str) -> Any:
            return sum(log.get(name, 0) for log in logging_outputs)

        if not total("beam_tokens"):
            return
        for name, divisor in _LOGGED.items():
            if not any(name in log for log in logging_outputs):
                continue
            scale = 1 / math.log(2) if name.endswith("_loss") else 1.0
            weight = total(divisor)
            metrics.log_scalar(
                name, total(name) * scale / max(weight, 1), weight, round=4
            )


# The logged values, and the divisors of their sums.
_LOGGED = {
    "ce_loss": "sample_size",
    "beam_loss": "sample_size",
    "cost": "beam_tokens",
    "oracle_cost": "beam_tokens",
    "gold_in_beam": "beam_tokens",
    "distinct": "selections",
    "resets": "selections",
    "epsilon": "beam_tokens",
    "beam": "beam_tokens",
}
