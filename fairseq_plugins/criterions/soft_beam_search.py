"""``--criterion soft_beam_search``: cross entropy plus training for the beam."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from typing import Any, Iterator

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
)
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_plugins.beam.costs import Spelling
from fairseq_plugins.beam.decoder import (
    check_model,
    without_checkpointing,
    without_dropout,
)
from fairseq_plugins.beam.losses import (
    ObjectiveSettings,
    beam_loss,
    search_statistics,
    what_losses_want,
)
from fairseq_plugins.beam.rescore import searched_with_gradients
from fairseq_plugins.beam.step import BeamSettings
from fairseq_plugins.criterions.options import (
    SoftBeamSearchConfig,
    check_options,
    engine_of,
    parse_loss_weights,
)
from fairseq_plugins.utils.schedule import geometric, stepwise

__all__ = ["SoftBeamSearchCriterion"]


@register_criterion("soft_beam_search", dataclass=SoftBeamSearchConfig)
class SoftBeamSearchCriterion(LabelSmoothedCrossEntropyCriterion):
    """rho * label-smoothed cross entropy + (1 - rho) * beam loss.

    The beam loss comes from a beam search that starts from the same encoder output
    (Xie et al., NeurIPS 2020, section 5); `fairseq_plugins.beam` has the losses and
    the engines. In evaluation mode, and with rho = 1, this is label-smoothed cross
    entropy alone, so that validation losses of different runs can be compared.

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
        self.pool_size = cfg.pool_size or 4 * max(cfg.beam, cfg.beam_start or 0)
        self.num_updates = 0
        check_options(cfg, self.pool_size, task)
        self.objective = _objective(cfg, self.loss_weights, task)
        _listen_to_update_number(self, task)

    @property
    def epsilon(self) -> float:
        """Return the selection's epsilon at the present update."""
        end = self.cfg.epsilon if self.cfg.epsilon_end is None else self.cfg.epsilon_end
        return geometric(
            self.cfg.epsilon, end, self.cfg.epsilon_updates, self.num_updates
        )

    @property
    def beam_size(self) -> int:
        """Return the beam size at the present update."""
        start = self.cfg.beam if self.cfg.beam_start is None else self.cfg.beam_start
        return stepwise(start, self.cfg.beam, self.cfg.beam_updates, self.num_updates)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of one batch.

        Returns:
            the summed loss in nats, the sample size it is to be divided by, and what
            is logged.
        """
        if not self.training or self.cfg.rho == 1:
            return super().forward(model, sample, reduce)
        check_model(model)
        # The wrapper of a distributed model must see a call, so the beam takes the
        # encoder's output from that of the cross entropy.
        with _output_of(model.encoder) as encoder_outs:
            ce_loss, sample_size, logged = super().forward(model, sample)
        settings = self._beam_settings(model, sample)
        with without_dropout(model.decoder), without_checkpointing(model.decoder):
            trace = searched_with_gradients(
                engine_of(self.cfg, model.decoder),
                model,
                encoder_outs[0],
                sample["net_input"]["prev_output_tokens"][:, 0],
                sample["target"],
                settings=settings,
                what=what_losses_want(self.loss_weights),
                max_lens=self._max_len(sample["net_input"]["src_lengths"]).long(),
                dropout=str(self.cfg.beam_dropout) == "shared",
            )
        searched, quality = beam_loss(trace, sample["target"], self.objective)
        loss = self.cfg.rho * ce_loss + (1 - self.cfg.rho) * searched
        settings.loss_scale.learn_from(loss)
        logged.update(loss=loss.data, ce_loss=ce_loss.data, beam_loss=searched.data)
        logged.update(search_statistics(trace))
        logged.update(quality)
        # Averages over batches and workers are weighted by tokens.
        num_tokens = sample["ntokens"]
        logged.update(epsilon=self.epsilon * num_tokens, beam_tokens=num_tokens)
        logged.update(beam=self.beam_size * num_tokens)
        return loss, sample_size, logged

    def _max_len(self, source_length: Any) -> Any:
        # fairseq takes the longest source of the batch here; with each sentence's own,
        # its loss does not depend on the others.
        return self.cfg.beam_max_len_a * source_length + self.cfg.beam_max_len_b

    def _beam_settings(self, model: Any, sample: dict[str, Any]) -> BeamSettings:
        cfg = self.cfg
        longest = int(self._max_len(sample["net_input"]["src_tokens"].size(1)))
        margin = cfg.bso_margin if "bso" in self.loss_weights else None
        return BeamSettings(
            beam_size=self.beam_size,
            pool_size=self.pool_size,
            max_len=min(longest, model.max_decoder_positions() - 1),
            min_len=cfg.beam_min_len,
            epsilon=self.epsilon,
            mixing=str(cfg.mixing),
            selection_clip=cfg.selection_clip,
            reset_margin=0.0 if margin is None and cfg.reset_to_gold else margin,
            pad_id=self.padding_idx,
            eos_id=self.task.target_dictionary.eos(),
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses in bits a token, and the rates of the search."""
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


# What is logged, and what its sum is divided by.
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


def _objective(
    cfg: SoftBeamSearchConfig, weights: dict[str, float], task: Any
) -> ObjectiveSettings:
    dictionary = task.target_dictionary
    spelling = None
    if str(cfg.beam_cost) == "chrf" or str(cfg.beam_cost_unit) == "word":
        subwords = dictionary.symbols
        specials = dictionary.nspecial
        spelling = Spelling([""] * specials + list(subwords[specials:]))
    return ObjectiveSettings(
        weights=weights,
        pad_id=dictionary.pad(),
        eos_id=dictionary.eos(),
        survival_epsilon=cfg.survival_epsilon,
        risk_epsilon=cfg.risk_epsilon,
        mrt_alpha=cfg.mrt_alpha,
        bso_margin=cfg.bso_margin,
        lenpen=cfg.beam_lenpen,
        cost=str(cfg.beam_cost),
        spelling=spelling,
    )


def _listen_to_update_number(criterion: SoftBeamSearchCriterion, task: Any) -> None:
    """Learn the number of updates from the task: fairseq tells it the model only."""
    train_step = task.train_step

    @functools.wraps(train_step)
    def train_step_telling(*args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(train_step).bind(*args, **kwargs).arguments
        criterion.num_updates = arguments["update_num"]
        return train_step(*args, **kwargs)

    task.train_step = train_step_telling


@contextlib.contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what a module returns while the block runs."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _, __, out: outputs.append(out))
    try:
        yield outputs
    finally:
        hook.remove()
