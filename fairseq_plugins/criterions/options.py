"""The options of ``soft_beam_search``, and what they must be."""

# fairseq reads the types of the options at run time: no postponed annotations here.
import math
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.models.lstm import LSTMDecoder

from fairseq_plugins.beam.costs import COST_UNITS, COSTS
from fairseq_plugins.beam.losses import FINISHING, LOSSES
from fairseq_plugins.beam.rescore import ENGINES
from fairseq_plugins.beam.step import MIXINGS
from fairseq_plugins.utils.errors import did_you_mean

__all__ = ["SoftBeamSearchConfig", "check_options", "engine_of", "parse_loss_weights"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SoftBeamSearchConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """The criterion's options; docs/beam_training.md has them with the paper's."""

    rho: float = _option(
        0.02,
        "share of the cross entropy; the beam loss has the share 1 - rho, and 1 is "
        "exactly label_smoothed_cross_entropy (paper: 0.8)",
    )
    beam: int = _option(5, "beam size in training (paper: 5)")
    beam_start: Optional[int] = _option(
        None, "beam size at the first update; default: --beam"
    )
    beam_updates: int = _option(0, "updates in which the beam size goes to --beam")
    beam_loss: str = _option(
        "risk",
        f"one of {', '.join(LOSSES)}, or a weighted sum such as "
        "'risk=1,survival=0.3' (paper: slot-ce)",
    )
    engine: ChoiceEnum(ENGINES) = _option(  # type: ignore[valid-type]
        "auto",
        "rollout keeps the graph of the search; two-pass searches without one and then "
        "scores what was found, for hard mixing only; auto takes the cheaper one",
    )
    mixing: ChoiceEnum(MIXINGS) = _option(  # type: ignore[valid-type]
        "hard",
        "what a slot holds: a mixture of hypotheses (soft, the paper's), one "
        "hypothesis with the gradient of the mixture (straight-through) or without it "
        "(hard)",
    )
    selection_clip: float = _option(
        1.0,
        "largest norm of the gradient that flows through one selection of one "
        "sentence, which else explodes over the steps; 0 does not clip",
    )
    epsilon: float = _option(
        2.0,
        "smoothing of the selection in nats of log-probability, at the first update; a "
        "logistic temperature of epsilon / 2 (paper: 0.1)",
    )
    epsilon_end: Optional[float] = _option(
        None, "epsilon after --epsilon-updates; default: --epsilon"
    )
    epsilon_updates: int = _option(
        0, "updates in which epsilon goes to its end geometrically"
    )
    survival_epsilon: float = _option(
        2.0, "epsilon of the memberships in the survival loss, nats"
    )
    risk_epsilon: float = _option(
        0.2,
        "epsilon of the choice among finished hypotheses, nats a token if "
        "--beam-lenpen is 1",
    )
    mrt_alpha: float = _option(
        0.1, "sharpness of minimum risk training's distribution over hypotheses"
    )
    bso_margin: float = _option(
        1.0, "margin of beam search optimisation, in nats; it resets to gold below it"
    )
    beam_cost: ChoiceEnum(list(COSTS)) = _option(  # type: ignore[valid-type]
        "gleu", "what risk, mrt and bso minimise: 1 - BLEU, GLEU or chrF, or edits"
    )
    beam_cost_unit: ChoiceEnum(COST_UNITS) = _option(  # type: ignore[valid-type]
        "word",
        "what the cost compares: subwords, or the words that they spell; chrF always "
        "compares characters",
    )
    beam_dropout: ChoiceEnum(["none", "shared"]) = _option(  # type: ignore # noqa: F821
        "shared",
        "dropout of the decoder where hypotheses are searched and scored: none, or one "
        "mask for all hypotheses of a sentence at a step",
    )
    pool_size: int = _option(
        0,
        "number of best candidates among which the selection is soft; 0 is four times "
        "the beam",
    )
    reset_to_gold: bool = _option(
        False,
        "when gold would be pruned start the beam anew from it, instead of ending the "
        "sentence's survival loss there",
    )
    beam_lenpen: float = _option(
        1.0, "exponent of the length that finished hypotheses are compared by"
    )
    beam_min_len: int = _option(1, "shortest hypothesis without its end")
    beam_max_len_a: float = _option(
        1.5, "longest hypothesis without its end: a * x + b, x the length of the source"
    )
    beam_max_len_b: int = _option(10, "see --beam-max-len-a")


def engine_of(cfg: SoftBeamSearchConfig, decoder: Any) -> str:
    """Return the engine that ``auto`` stands for: the cheaper one.

    An LSTM has to go through the steps anyhow, so that a second time pays for nothing.
    """
    if str(cfg.engine) != "auto":
        return str(cfg.engine)
    is_parallel = not isinstance(decoder, LSTMDecoder)
    return "two-pass" if is_parallel and str(cfg.mixing) == "hard" else "rollout"


def check_options(cfg: SoftBeamSearchConfig, pool_size: int, task: Any) -> None:
    """Raise ``ValueError`` for an option out of its range or unfit for the task."""
    for name, value, is_met, rule in [
        *_ranges(cfg),
        *_pool_rules(cfg, pool_size, task),
        *_schedule_rules(cfg),
        *(_combinations(cfg, task) if cfg.rho < 1 else ()),
        *(_rules_of_a_gradient(cfg) if cfg.rho < 1 else ()),
    ]:
        if not is_met:
            raise ValueError(f"`--{name}` must be {rule}, but is {value}.")


_Rule = tuple[str, Any, bool, str]
_POSITIVE, _NOT_NEGATIVE = "positive and finite", "0 or more and finite"


def _ranges(cfg: SoftBeamSearchConfig) -> list[_Rule]:
    end = cfg.epsilon if cfg.epsilon_end is None else cfg.epsilon_end
    positive = {
        "epsilon": cfg.epsilon,
        "epsilon-end": end,
        "survival-epsilon": cfg.survival_epsilon,
        "risk-epsilon": cfg.risk_epsilon,
        "mrt-alpha": cfg.mrt_alpha,
    }
    not_negative = {
        "selection-clip": cfg.selection_clip,
        "epsilon-updates": cfg.epsilon_updates,
        "beam-updates": cfg.beam_updates,
        "bso-margin": cfg.bso_margin,
        "beam-min-len": cfg.beam_min_len,
        "beam-max-len-a": cfg.beam_max_len_a,
        "beam-max-len-b": cfg.beam_max_len_b,
    }
    start = cfg.beam if cfg.beam_start is None else cfg.beam_start
    return [
        ("rho", cfg.rho, 0 <= cfg.rho <= 1, "between 0 and 1"),
        ("beam", cfg.beam, cfg.beam >= 1, "at least 1"),
        ("beam-start", start, start >= 1, "at least 1"),
        *((n, v, 0 < v < math.inf, _POSITIVE) for n, v in positive.items()),
        *((n, v, 0 <= v < math.inf, _NOT_NEGATIVE) for n, v in not_negative.items()),
    ]


def _pool_rules(cfg: SoftBeamSearchConfig, pool_size: int, task: Any) -> list[_Rule]:
    largest_pool = len(task.target_dictionary) - 2
    widest = max(cfg.beam, cfg.beam_start or 0)
    rule = (
        f"above the beam ({widest}) and at most {largest_pool}, the size of the "
        "vocabulary without padding and end of sentence"
    )
    return [("pool-size", pool_size, widest < pool_size <= largest_pool, rule)]


def _schedule_rules(cfg: SoftBeamSearchConfig) -> list[_Rule]:
    rule = "positive, the number of updates that `--{}` is about"
    moves = {
        "beam": (cfg.beam_updates, "beam-start", cfg.beam_start, cfg.beam),
        "epsilon": (cfg.epsilon_updates, "epsilon-end", cfg.epsilon_end, cfg.epsilon),
    }
    return [
        (
            f"{name}-updates",
            updates,
            other is None or other == value or updates > 0,
            rule.format(option),
        )
        for name, (updates, option, other, value) in moves.items()
    ]


def _rules_of_a_gradient(cfg: SoftBeamSearchConfig) -> list[_Rule]:
    """Return what must hold for the beam loss to teach anything at all."""
    losses = parse_loss_weights(cfg.beam_loss)
    needed = 2 if set(losses) <= set(FINISHING) else 1
    narrowest = {"beam": cfg.beam, "beam-start": cfg.beam_start or cfg.beam}
    compares = f"at least 2 with {' and '.join(losses)}: one hypothesis has no rival"
    shortest = cfg.beam_max_len_a + cfg.beam_max_len_b
    return [
        *((name, k, k >= needed, compares) for name, k in narrowest.items()),
        (
            "beam-min-len",
            cfg.beam_min_len,
            cfg.beam_min_len <= shortest,
            f"at most {shortest:g}, the longest hypothesis of a source of one token "
            "(--beam-max-len-a and --beam-max-len-b)",
        ),
        (
            "epsilon-end",
            cfg.epsilon_end,
            cfg.epsilon_end is None or str(cfg.mixing) != "hard",
            "left out with hard mixing, which has no epsilon",
        ),
    ]


def _combinations(cfg: SoftBeamSearchConfig, task: Any) -> list[_Rule]:
    left_pad = getattr(getattr(task, "cfg", None), "left_pad_target", False)
    prefix = cfg.ignore_prefix_size
    losses = parse_loss_weights(cfg.beam_loss)
    resets = cfg.reset_to_gold or "bso" in losses
    finishing = [name for name in FINISHING if name in losses]
    is_soft = str(cfg.mixing) != "hard"
    two_pass = str(cfg.engine) == "two-pass"
    return [
        ("left-pad-target", left_pad, not left_pad, "off"),
        ("ignore-prefix-size", prefix, prefix == 0, "0"),
        (
            "engine",
            cfg.engine,
            not (two_pass and is_soft),
            "rollout unless mixing is hard",
        ),
        (
            "beam-loss",
            cfg.beam_loss,
            not (resets and finishing),
            f"without {' and '.join(finishing)} when the beam starts anew from gold "
            "(--reset-to-gold or bso), since nothing then ends as it does in a search",
        ),
    ]


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
