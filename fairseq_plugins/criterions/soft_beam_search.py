"""``--criterion soft_beam_search``: cross entropy plus training for the beam."""
from __future__ import annotations

import contextlib
import functools
import inspect
import math
from typing import Any, Iterator

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
)
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_plugins.beam.decoder import (
    IncrementalDecoder,
    check_decoder,
    without_dropout,
)
from fairseq_plugins.beam.rollout import Rollout, rollout
from fairseq_plugins.beam.schedule import geometric
from fairseq_plugins.beam.state import BeamSettings
from fairseq_plugins.criterions.options import (
    SoftBeamSearchConfig,
    check_options,
    parse_loss_weights,
)

__all__ = ["SoftBeamSearchCriterion"]


@register_criterion("soft_beam_search", dataclass=SoftBeamSearchConfig)
class SoftBeamSearchCriterion(LabelSmoothedCrossEntropyCriterion):
    """rho * label-smoothed cross entropy + (1 - rho) * beam loss.

    The beam loss comes from a beam search with gradients that starts from the same
    encoder output (Xie et al., NeurIPS 2020, section 5). In evaluation mode, and with
    rho = 1, this is label-smoothed cross entropy alone, so that validation losses of
    different runs can be compared.

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
        self.pool_size = cfg.pool_size or 4 * cfg.beam
        self.num_updates = 0
        check_options(cfg, self.pool_size, task)
        _listen_to_update_number(self, task)

    @property
    def epsilon(self) -> float:
        """Return the selection's epsilon at the present update."""
        end = self.cfg.epsilon if self.cfg.epsilon_end is None else self.cfg.epsilon_end
        return geometric(
            self.cfg.epsilon, end, self.cfg.epsilon_updates, self.num_updates
        )

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
        check_decoder(model.decoder)
        # The wrapper of a distributed model must see a call, so the beam takes the
        # encoder's output from that of the cross entropy.
        with _output_of(model.encoder) as encoder_outs:
            ce_loss, sample_size, logged = super().forward(model, sample)
        with without_dropout(model.decoder):
            result = self._search(model, encoder_outs[0], sample)
        weighted = [
            weight * result.losses[name] for name, weight in self.loss_weights.items()
        ]
        beam_loss = torch.stack(weighted).sum()
        loss = self.cfg.rho * ce_loss + (1 - self.cfg.rho) * beam_loss
        logged.update(self._logged(loss, ce_loss, beam_loss, result, sample))
        return loss, sample_size, logged

    def _search(self, model: Any, encoder_out: Any, sample: dict[str, Any]) -> Rollout:
        target = sample["target"]
        decoder = IncrementalDecoder(
            model, encoder_out, batch_size=target.size(0), beam_size=self.cfg.beam
        )
        settings = BeamSettings(
            beam_size=self.cfg.beam,
            pool_size=self.pool_size,
            epsilon=self.epsilon,
            survival_epsilon=self.cfg.survival_epsilon,
            mixing=str(self.cfg.mixing),
            selection_clip=self.cfg.selection_clip,
            reset_to_gold=self.cfg.reset_to_gold,
            pad_id=self.padding_idx,
            eos_id=self.task.target_dictionary.eos(),
        )
        return rollout(
            decoder,
            sample["net_input"]["prev_output_tokens"][:, 0],
            target,
            settings=settings,
            losses=tuple(self.loss_weights),
        )

    def _logged(
        self,
        loss: Tensor,
        ce_loss: Tensor,
        beam_loss: Tensor,
        result: Rollout,
        sample: dict[str, Any],
    ) -> dict[str, Any]:
        """Return sums, which fairseq adds up over batches and workers."""
        return {
            "loss": loss.data,
            "ce_loss": ce_loss.data,
            "beam_loss": beam_loss.data,
            "gold_in_beam": result.gold_in_beam.sum(),
            "distinct": result.distinct.sum(),
            "selections": result.selections.sum(),
            "epsilon": self.epsilon * sample["ntokens"],
            "beam_tokens": sample["ntokens"],
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses in bits a token, and the rates of the search."""
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(logging_outputs)
        sums = {
            name: sum(log.get(name, 0) for log in logging_outputs)
            for name in ("sample_size", "beam_tokens", "selections")
        }
        if not sums["beam_tokens"]:
            return
        for name, divisor, scale in (
            ("ce_loss", "sample_size", 1 / math.log(2)),
            ("beam_loss", "sample_size", 1 / math.log(2)),
            ("gold_in_beam", "beam_tokens", 1.0),
            ("distinct", "selections", 1.0),
            ("epsilon", "beam_tokens", 1.0),
        ):
            total = sum(log.get(name, 0) for log in logging_outputs)
            weight = sums[divisor]
            value = total * scale / max(weight, 1)
            metrics.log_scalar(name, value, weight, round=4)


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
