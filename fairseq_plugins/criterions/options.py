"""The options of ``soft_beam_search``, and what they must be."""
# fairseq reads the types of the options at run time: no postponed annotations here.
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum

from fairseq_plugins.beam.losses import LOSSES
from fairseq_plugins.beam.state import MIXINGS
from fairseq_plugins.pipeline.errors import did_you_mean

__all__ = ["SoftBeamSearchConfig", "check_options", "parse_loss_weights"]


@dataclass
class SoftBeamSearchConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """The criterion's options; README.md has a table with the paper's values."""

    rho: float = field(
        default=0.3,
        metadata={
            "help": "share of the cross entropy; the beam loss has the share 1 - rho, "
            "and 1 is exactly label_smoothed_cross_entropy (paper: 0.8)"
        },
    )
    beam: int = field(default=5, metadata={"help": "beam size in training (paper: 5)"})
    beam_loss: str = field(
        default="survival",
        metadata={
            "help": f"one of {', '.join(LOSSES)}, or a weighted sum such as "
            "'survival=1,slot-ce=0.3' (paper: slot-ce)"
        },
    )
    mixing: ChoiceEnum(MIXINGS) = field(  # type: ignore[valid-type]
        default="straight-through",
        metadata={
            "help": "what a slot holds: a mixture of hypotheses (soft, the paper's), "
            "one hypothesis with the gradient of the mixture (straight-through) or "
            "without it (hard)"
        },
    )
    selection_clip: float = field(
        default=1.0,
        metadata={
            "help": "largest norm of the gradient that flows through one selection of "
            "one sentence, which else explodes over the steps; 0 does not clip"
        },
    )
    epsilon: float = field(
        default=2.0,
        metadata={
            "help": "smoothing of the selection in nats of log-probability, at the "
            "first update; a logistic temperature of epsilon / 2 (paper: 0.1)"
        },
    )
    epsilon_end: Optional[float] = field(
        default=None,
        metadata={"help": "epsilon after --epsilon-updates; default: --epsilon"},
    )
    epsilon_updates: int = field(
        default=0,
        metadata={"help": "updates in which epsilon goes to its end geometrically"},
    )
    survival_epsilon: float = field(
        default=2.0,
        metadata={"help": "epsilon of the memberships in the survival loss, nats"},
    )
    pool_size: int = field(
        default=0,
        metadata={
            "help": "number of best candidates among which the selection is soft; "
            "0 is four times the beam"
        },
    )
    reset_to_gold: bool = field(
        default=False,
        metadata={
            "help": "when gold would be pruned start the beam anew from it, instead of "
            "ending the sentence's survival loss there"
        },
    )


def check_options(cfg: SoftBeamSearchConfig, pool_size: int, task: Any) -> None:
    """Raise ``ValueError`` for an option out of its range or unfit for the task."""
    largest_pool = len(task.target_dictionary) - 2
    end = cfg.epsilon if cfg.epsilon_end is None else cfg.epsilon_end
    rules = [
        ("rho", cfg.rho, 0 <= cfg.rho <= 1, "between 0 and 1"),
        ("beam", cfg.beam, cfg.beam >= 1, "at least 1"),
        ("selection-clip", cfg.selection_clip, cfg.selection_clip >= 0, "0 or more"),
        ("epsilon", cfg.epsilon, cfg.epsilon > 0, "positive"),
        ("epsilon-end", end, end > 0, "positive"),
        ("epsilon-updates", cfg.epsilon_updates, cfg.epsilon_updates >= 0, "0 or more"),
        (
            "survival-epsilon",
            cfg.survival_epsilon,
            cfg.survival_epsilon > 0,
            "positive",
        ),
        (
            "pool-size",
            pool_size,
            cfg.beam < pool_size <= largest_pool,
            f"above the beam ({cfg.beam}) and at most {largest_pool}, the size of the "
            "vocabulary without padding and end of sentence",
        ),
    ]
    if cfg.rho < 1:
        left_pad = getattr(getattr(task, "cfg", None), "left_pad_target", False)
        prefix = cfg.ignore_prefix_size
        rules.append(("left-pad-target", left_pad, not left_pad, "off"))
        rules.append(("ignore-prefix-size", prefix, prefix == 0, "0"))
    for name, value, is_met, rule in rules:
        if not is_met:
            raise ValueError(f"`--{name}` must be {rule}, but is {value}.")


def parse_loss_weights(text: str) -> dict[str, float]:
    """Return the weight of each named loss; a name alone has weight 1.

    Raises:
        ValueError: a name is unknown or twice there, a weight is no positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in LOSSES:
            raise ValueError(
                f"`--beam-loss` must name losses out of {', '.join(LOSSES)}, but has "
                f"`{name}`.{did_you_mean(name, LOSSES)}"
            )
        if name in weights:
            raise ValueError(f"`--beam-loss` must name `{name}` only once.")
        weights[name] = _positive(name, number or "1")
    return weights


def _positive(name: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ValueError(
            f"`--beam-loss` must give `{name}` a positive weight, but has `{number}`."
        )
    return weight
