"""The options of top-k attention, and what they must be."""

from __future__ import annotations

import argparse
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

from fairseq_plugins.utils.errors import did_you_mean

__all__ = ["TopkSettings", "add_options", "fill_in_defaults"]

OPERATORS = ("soft", "hard", "entmax15")
LEARNT = ("none", "epsilon", "k", "both")
ATTENTIONS = ("cross", "decoder", "encoder")

_DEFAULTS: dict[str, Any] = {
    "topk_operator": "soft",
    "topk_k": 8.0,
    "topk_k_end": None,
    "topk_epsilon": 1.0,
    "topk_epsilon_end": None,
    "topk_updates": 0,
    "topk_learn": "none",
    "topk_attentions": "cross",
    "topk_layers": "all",
}


@dataclass(frozen=True)
class TopkSettings:
    """How attention scores become weights.

    Attributes:
        operator: ``soft`` (Xie et al., 2020, section 6), ``hard`` (softmax over the k
            largest scores) or ``entmax15`` (Peters et al., 2019; has no k).
        k: number of positions at the first update, and `k_end` after `updates`.
        epsilon: smoothing in nats at the first update, `epsilon_end` after `updates`.
        updates: in how many updates k and epsilon go to their ends, geometrically.
        learn: which of the two is learnt, one value for each head.
        attentions: which attentions are concerned, out of `ATTENTIONS`.
        layers: which layers of them, None for all.
    """

    operator: str = "soft"
    k: float = 8.0
    k_end: float = 8.0
    epsilon: float = 1.0
    epsilon_end: float = 1.0
    updates: int = 0
    learn: str = "none"
    attentions: tuple[str, ...] = ("cross",)
    layers: tuple[int, ...] | None = None

    @property
    def is_scheduled(self) -> bool:
        return self.updates > 0

    @property
    def learns_k(self) -> bool:
        return self.learn in ("k", "both")

    @property
    def learns_epsilon(self) -> bool:
        return self.learn in ("epsilon", "both")

    def bears_on(self, attention: str, layer: int, num_layers: int) -> bool:
        """Tell whether this attention of this layer is concerned."""
        if attention not in self.attentions:
            return False
        return self.layers is None or bool(
            {layer, layer - num_layers} & set(self.layers)
        )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TopkSettings:
        """Read and check the options, filling in those that are missing.

        Raises:
            ValueError: names the option, the rule and the value.
        """
        fill_in_defaults(args)
        k, epsilon = float(args.topk_k), float(args.topk_epsilon)
        ends = args.topk_k_end, args.topk_epsilon_end
        settings = cls(
            operator=args.topk_operator,
            k=k,
            k_end=k if ends[0] is None else float(ends[0]),
            epsilon=epsilon,
            epsilon_end=epsilon if ends[1] is None else float(ends[1]),
            updates=int(args.topk_updates),
            learn=args.topk_learn,
            attentions=_names(args.topk_attentions),
            layers=_layers(args.topk_layers),
        )
        _check(settings)
        return settings


def fill_in_defaults(args: argparse.Namespace) -> None:
    """Give the options that are missing their defaults, as an architecture does."""
    for name, default in _DEFAULTS.items():
        setattr(args, name, getattr(args, name, default))


def add_options(parser: Any) -> None:
    """Add the options to fairseq's parser of a model, which supplies no defaults."""
    add = parser.add_argument
    add("--topk-operator", choices=OPERATORS,
        help="what restricts attention: SOFT top-k (soft), the k largest scores (hard) "
        "or entmax-1.5, which has no k (entmax15); default: soft")  # fmt: skip
    add("--topk-k", type=float, metavar="K",
        help="source positions that an attention may use, not necessarily whole; "
        "default: 8")  # fmt: skip
    add("--topk-k-end", type=float, metavar="K",
        help="k after --topk-updates; default: --topk-k")  # fmt: skip
    add("--topk-epsilon", type=float, metavar="E",
        help="smoothing of the selection in units of the attention scores; "
        "default: 1")  # fmt: skip
    add("--topk-epsilon-end", type=float, metavar="E",
        help="epsilon after --topk-updates; default: --topk-epsilon")  # fmt: skip
    add("--topk-updates", type=int, metavar="N",
        help="updates in which k and epsilon go to their ends, geometrically; "
        "default: 0")  # fmt: skip
    add("--topk-learn", choices=LEARNT,
        help="learn one epsilon, k or both for each head, from the values given; "
        "default: none")  # fmt: skip
    add("--topk-attentions", metavar="NAMES",
        help=f"which attentions, out of {','.join(ATTENTIONS)}: over the source, and "
        "decoder's and encoder's self-attention; default: cross")  # fmt: skip
    add("--topk-layers", metavar="LAYERS",
        help="which layers of these, such as 0,1 or -1 for the last; "
        "default: all")  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ATTENTIONS:
            raise ValueError(
                f"`--topk-attentions` must name some of {', '.join(ATTENTIONS)}, but "
                f"has `{name}`.{did_you_mean(name, ATTENTIONS)}"
            )
    return names


def _layers(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            "`--topk-layers` must be `all` or numbers of layers such as 0,1 or -1, "
            f"but is `{text}`."
        ) from None


def _check(settings: TopkSettings) -> None:
    for name, value, is_met, rule in _rules(settings):
        if not is_met:
            raise ValueError(f"`--{name}` must be {rule}, but is {value}.")
    if settings.operator == "entmax15":
        if importlib.util.find_spec("entmax") is None:
            raise ValueError(
                "`--topk-operator` must not be entmax15 here: the library is missing "
                "(pip install --no-deps entmax)."
            )


def _rules(settings: TopkSettings) -> list[tuple[str, Any, bool, str]]:
    s = settings
    values = {
        "topk-k": s.k,
        "topk-k-end": s.k_end,
        "topk-epsilon": s.epsilon,
        "topk-epsilon-end": s.epsilon_end,
    }
    is_soft = s.operator == "soft"
    changes = (s.k, s.epsilon) != (s.k_end, s.epsilon_end)
    return [
        *((n, v, v > 0 and math.isfinite(v), "positive") for n, v in values.items()),
        ("topk-updates", s.updates, s.updates >= 0, "0 or more"),
        ("topk-updates", s.updates, s.updates > 0 or not changes,
         "above 0 when k or epsilon has an end"),
        ("topk-k", s.k, s.operator != "hard" or s.k.is_integer(),
         "whole when the operator is hard"),
        ("topk-learn", s.learn, is_soft or s.learn == "none",
         "none unless the operator is soft"),
        ("topk-learn", s.learn, not (s.is_scheduled and s.learn != "none"),
         "none with a schedule (--topk-updates)"),
        ("topk-k", s.k, not s.learns_k or s.k > 1, "above 1 when it is learnt"),
    ]  # fmt: skip
