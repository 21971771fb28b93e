"""The options of ``soft_beam_search`` and their rules.

``python -m fairseq_plugins.criterions.options`` prints docs/options.md.
"""

# fairseq reads the types of the options at run time: no postponed annotations here.
import math
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum

from fairseq_plugins.beam.costs import COST_UNITS, COSTS
from fairseq_plugins.beam.losses import LOSSES
from fairseq_plugins.beam.rescore import ENGINES
from fairseq_plugins.beam.step import MIXINGS
from fairseq_plugins.criterions.generation import find_task_options
from fairseq_plugins.utils.errors import did_you_mean

__all__ = [
    "SoftBeamSearchConfig",
    "check_options",
    "format_options",
    "parse_loss_weights",
]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SoftBeamSearchConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """The options of the criterion. The defaults gave the best results on Multi30k."""

    rho: float = _option(
        0.02,
        "weight of the cross entropy; the beam loss has the weight 1 - rho, and 1 is "
        "exactly label_smoothed_cross_entropy (paper: 0.8)",
    )
    beam: int = _option(5, "beam size in training (paper: 5)")
    beam_start: Optional[int] = _option(
        None, "beam size at the first update; default: --beam"
    )
    beam_updates: int = _option(
        0, "number of updates in which the beam size moves to --beam"
    )
    beam_loss: str = _option(
        "risk",
        f"one of {', '.join(LOSSES)}, or a weighted sum such as "
        "'risk=1,survival=0.3' (paper: slot-ce)",
    )
    engine: ChoiceEnum(ENGINES) = _option(  # type: ignore[valid-type]
        "auto",
        "rollout keeps the graph of the search; two-pass searches without gradients "
        "and then scores the result, with hard mixing only; auto takes two-pass where "
        "it is faster",
    )
    mixing: ChoiceEnum(MIXINGS) = _option(  # type: ignore[valid-type]
        "hard",
        "a slot holds a mixture of hypotheses (soft, as in the paper), one hypothesis "
        "with the gradient of the mixture (straight-through), or one hypothesis "
        "without that gradient (hard)",
    )
    selection_clip: float = _option(
        1.0,
        "largest norm of the gradient through one selection of one sentence, which "
        "would otherwise explode over the steps; 0 does not clip (paper: 0)",
    )
    epsilon: float = _option(
        2.0,
        "smoothing of the selection in nats of log-probability at the first update, "
        "for soft and straight-through mixing (paper: 0.1)",
    )
    epsilon_end: Optional[float] = _option(
        None, "epsilon after --epsilon-updates; default: --epsilon"
    )
    epsilon_updates: int = _option(
        0, "number of updates in which epsilon moves to --epsilon-end geometrically"
    )
    survival_epsilon: float = _option(
        2.0, "smoothing of the memberships in the survival loss, in nats"
    )
    risk_epsilon: float = _option(
        0.2,
        "smoothing of the choice among finished hypotheses, in nats per token if "
        "--beam-lenpen is 1",
    )
    mrt_alpha: float = _option(
        0.1, "inverse temperature of the distribution over hypotheses in mrt"
    )
    bso_margin: float = _option(
        1.0,
        "margin of bso in nats; the beam is reset to the reference below this margin",
    )
    beam_cost: str = _option(
        "gleu",
        f"cost that risk, mrt and bso minimize, one of {', '.join(COSTS)}: 1 - "
        "sentence BLEU, GLEU or chrF, or the edit distance",
    )
    beam_cost_unit: ChoiceEnum(COST_UNITS) = _option(  # type: ignore[valid-type]
        "word",
        "the cost compares subwords (subword) or words of the detokenized text (word), "
        "as BLEU counts them in the target language; chrF always compares characters",
    )
    beam_dropout: ChoiceEnum(["none", "shared"]) = _option(  # type: ignore # noqa: F821
        "shared",
        "dropout of the decoder during the search: none, or one mask for all "
        "hypotheses of a sentence at a step (shared)",
    )
    pool_size: int = _option(
        0,
        "number of best candidates among which the selection is soft; 0 is four times "
        "the beam, or the vocabulary if it is smaller",
    )
    reset_to_gold: bool = _option(
        False,
        "reset the beam to the reference prefix when that would be pruned, instead of "
        "ending the survival loss of the sentence",
    )
    beam_lenpen: float = _option(
        1.0, "exponent of the length by which finished hypotheses are compared"
    )
    beam_min_len: int = _option(
        1, "length of the shortest hypothesis without its end of sentence"
    )
    beam_max_len_a: float = _option(
        1.5,
        "length of the longest hypothesis without its end of sentence: a * x + b, "
        "where x is the length of the source",
    )
    beam_max_len_b: int = _option(10, "see --beam-max-len-a")


def check_options(
    cfg: SoftBeamSearchConfig, pool_size: int, largest_pool: int, task: Any
) -> None:
    """Raise ``ValueError`` for an option out of its range or unfit for the task.

    Args:
        pool_size: in use, if ``--pool-size`` is 0.
        largest_pool: size of the vocabulary without padding and end of sentence.
    """
    rules = _general_rules(cfg, pool_size, largest_pool)
    if cfg.rho < 1:
        rules += _beam_loss_rules(cfg, task)
    for name, value, is_met, rule in rules:
        if not is_met:
            raise ValueError(f"`--{name}` must be {rule}, but is {value}.")


_Rule = tuple[str, Any, bool, str]
_POSITIVE = ("epsilon", "epsilon_end", "survival_epsilon", "risk_epsilon", "mrt_alpha")
_NOT_NEGATIVE = (
    "selection_clip", "epsilon_updates", "beam_updates", "bso_margin", "beam_min_len",
    "beam_max_len_a", "beam_max_len_b",
)  # fmt: skip


def _general_rules(
    cfg: SoftBeamSearchConfig, pool_size: int, largest_pool: int
) -> list[_Rule]:
    positive = [(name, getattr(cfg, name)) for name in _POSITIVE]
    not_negative = [(name, getattr(cfg, name)) for name in _NOT_NEGATIVE]
    beams = {"beam": cfg.beam, "beam_start": cfg.beam_start}
    widest = max(cfg.beam, cfg.beam_start or 0)
    fits = widest < largest_pool
    rules: list[_Rule] = [
        ("rho", cfg.rho, 0 <= cfg.rho <= 1, "between 0 and 1"),
        *((n, v, v is None or v >= 1, "at least 1") for n, v in beams.items()),
        *((n, v, v is None or 0 < v < math.inf, "positive and finite")
          for n, v in positive),
        *((n, v, 0 <= v < math.inf, "0 or more and finite") for n, v in not_negative),
        *((n, v, v is None or fits or v < widest,
           f"below {largest_pool}, the size of the vocabulary without padding and end "
           "of sentence") for n, v in beams.items()),
        ("pool_size", pool_size, widest < pool_size <= largest_pool,
         f"above the beam ({widest}) and at most {largest_pool}, the size of the "
         "vocabulary without padding and end of sentence"),
        ("beam_cost", cfg.beam_cost, cfg.beam_cost in COSTS,
         f"one of {', '.join(COSTS)}"),
        ("beam_updates", cfg.beam_updates,
         cfg.beam_start in (None, cfg.beam) or cfg.beam_updates > 0,
         "positive, the number of updates for `--beam-start`"),
        ("epsilon_updates", cfg.epsilon_updates,
         cfg.epsilon_end in (None, cfg.epsilon) or cfg.epsilon_updates > 0,
         "positive, the number of updates for `--epsilon-end`"),
    ]  # fmt: skip
    return [(name.replace("_", "-"), *rest) for name, *rest in rules]


def _beam_loss_rules(cfg: SoftBeamSearchConfig, task: Any) -> list[_Rule]:
    weights = parse_loss_weights(cfg.beam_loss)
    finishing = [name for name in weights if LOSSES[name].required.finished]
    resets = cfg.reset_to_gold or any(LOSSES[name].resets_to_gold for name in weights)
    needs_two = len(finishing) == len(weights)
    compares = (
        f"at least 2 with {' and '.join(weights)}: one hypothesis has no competitor"
    )
    is_hard = str(cfg.mixing) == "hard"
    left_pad = getattr(find_task_options(task), "left_pad_target", False)
    shortest = cfg.beam_max_len_a + cfg.beam_max_len_b
    return [
        ("left-pad-target", left_pad, not left_pad, "off"),
        ("ignore-prefix-size", cfg.ignore_prefix_size, cfg.ignore_prefix_size == 0,
         "0"),
        ("engine", cfg.engine, str(cfg.engine) != "two-pass" or is_hard,
         "rollout unless mixing is hard"),
        ("beam-loss", cfg.beam_loss, not (resets and finishing),
         f"without {' and '.join(finishing)} when the beam is reset to the reference "
         "(--reset-to-gold or bso), since hypotheses then do not end as in a search"),
        *((name, size, size >= 2 or not needs_two, compares)
          for name, size in [("beam", cfg.beam),
                             ("beam-start", cfg.beam_start or cfg.beam)]),
        ("beam-min-len", cfg.beam_min_len, cfg.beam_min_len <= shortest,
         f"at most {shortest:g}, the longest hypothesis of a source of one token "
         "(--beam-max-len-a and --beam-max-len-b)"),
        ("epsilon-end", cfg.epsilon_end, cfg.epsilon_end is None or not is_hard,
         "left out with hard mixing, which has no epsilon"),
    ]  # fmt: skip


def parse_loss_weights(text: str) -> dict[str, float]:
    """Return the weight of each named loss. A name alone has weight 1.

    Raises:
        ValueError: a name is unknown or repeated, or a weight is not positive.
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
        try:
            weights[name] = float(number or "1")
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < math.inf:
            raise ValueError(
                f"`--beam-loss` must give `{name}` a positive weight, but has "
                f"`{number}`."
            )
    return weights


def format_options() -> str:
    """Return docs/options.md."""
    lines = [
        "# Options of `soft_beam_search`",
        "",
        "`python -m fairseq_plugins.criterions.options > docs/options.md` writes this "
        "file. [method.md](method.md) explains the",
        "terms. fairseq's `--label-smoothing`, `--report-accuracy` and "
        "`--sentence-avg` keep their meaning.",
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    for option in fields(SoftBeamSearchConfig):
        if option.name in SoftBeamSearchConfig.__annotations__:
            name = option.name.replace("_", "-")
            default = {"None": "-", "False": "off"}.get(
                str(option.default), option.default
            )
            lines.append(f"| `--{name}` | {default} | {option.metadata['help']} |")
    lines += [
        "",
        "The paper's setting (`configs/multi30k_lstm_paper.yaml`) is `--rho 0.8 "
        "--mixing soft --beam-loss slot-ce --epsilon 0.1",
        "--selection-clip 0 --beam-dropout none`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(format_options(), end="")
