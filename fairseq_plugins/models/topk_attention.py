"""Top-k attention: options, weights, and fairseq's attentions with these weights.

The weights are ``softmax(f + log A)`` with A the SOFT top-k memberships of the scores f
(Xie et al., 2020, arXiv:2002.06504, section 6), or one of two competitors.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models.lstm import AttentionLayer
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_plugins.operators import hard_topk_softmax, topk_softmax
from fairseq_plugins.utils.errors import did_you_mean
from fairseq_plugins.utils.schedule import geometric

__all__ = [
    "TopkAttentionLayer",
    "TopkMultiheadAttention",
    "TopkSettings",
    "TopkWeights",
    "add_options",
    "fill_in_defaults",
]

ATTENTIONS = ("cross", "decoder", "encoder")

# Option, default, keywords of `add_argument`, help.
_OPTIONS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("topk-operator", "soft", {"choices": ("soft", "hard", "entmax15")},
     "how attention is restricted: by SOFT top-k (soft), to the k largest scores "
     "(hard) or by entmax-1.5, which has no k (entmax15)"),
    ("topk-k", 8.0, {"type": float, "metavar": "K"},
     "number of positions that an attention may use, not necessarily whole"),
    ("topk-k-end", None, {"type": float, "metavar": "K"},
     "k after --topk-updates; default: --topk-k"),
    ("topk-epsilon", 1.0, {"type": float, "metavar": "E"},
     "smoothing of the selection in units of the attention scores"),
    ("topk-epsilon-end", None, {"type": float, "metavar": "E"},
     "epsilon after --topk-updates; default: --topk-epsilon"),
    ("topk-updates", 0, {"type": int, "metavar": "N"},
     "number of updates in which k and epsilon change geometrically to their end "
     "values"),
    ("topk-learn", "none", {"choices": ("none", "epsilon", "k", "both")},
     "learn epsilon, k or both, one value per head, starting from the given values"),
    ("topk-attentions", "cross", {"metavar": "NAMES"},
     "comma-separated attentions to replace: over the source (cross), or the "
     "self-attention of the decoder or of the encoder (decoder, encoder)"),
    ("topk-layers", "all", {"metavar": "LAYERS"},
     "layers in which to replace them, such as 0,1 or -1 for the last"),
]  # fmt: skip


def add_options(parser: Any) -> None:
    """Add the options to fairseq's parser of a model, which supplies no defaults."""
    for name, default, keywords, text in _OPTIONS:
        shown = f"{default:g}" if isinstance(default, float) else default
        suffix = "" if default is None else f"; default: {shown}"
        parser.add_argument(f"--{name}", help=text + suffix, **keywords)


def fill_in_defaults(args: argparse.Namespace) -> None:
    """Set the missing options to their defaults, as an architecture does."""
    for name, default, _, _ in _OPTIONS:
        name = name.replace("-", "_")
        setattr(args, name, getattr(args, name, default))


@dataclass(frozen=True)
class TopkSettings:
    """How attention scores become weights; see ``--help`` of the options.

    Attributes:
        operator: ``soft`` (Xie et al., 2020, section 6), ``hard`` (softmax over the k
            largest scores) or ``entmax15`` (Peters et al., 2019; has no k).
        k, epsilon: values at the first update; epsilon is in nats.
        k_end, epsilon_end: values after ``updates`` updates.
        updates: number of updates in which both change geometrically.
        learn: ``none``, ``epsilon``, ``k`` or ``both``; one value per head.
        attentions: the attentions to replace, from `ATTENTIONS`.
        layers: the layers in which to replace them; None for all.
    """

    operator: str
    k: float
    k_end: float
    epsilon: float
    epsilon_end: float
    updates: int
    learn: str
    attentions: tuple[str, ...]
    layers: tuple[int, ...] | None

    @property
    def learns_k(self) -> bool:
        return self.learn in ("k", "both")

    @property
    def learns_epsilon(self) -> bool:
        return self.learn in ("epsilon", "both")

    def is_selected(self, attention: str, layer: int, num_layers: int) -> bool:
        """Return whether this attention of this layer is to be replaced."""
        is_layer = (
            self.layers is None
            or layer in self.layers
            or layer - num_layers in self.layers
        )
        return is_layer and attention in self.attentions

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TopkSettings:
        """Read and check the options; missing ones are set to their defaults.

        Raises:
            ValueError: names the option, the rule and the value.
        """
        fill_in_defaults(args)
        k, epsilon = float(args.topk_k), float(args.topk_epsilon)
        k_end, epsilon_end = args.topk_k_end, args.topk_epsilon_end
        settings = cls(
            operator=args.topk_operator,
            k=k,
            k_end=k if k_end is None else float(k_end),
            epsilon=epsilon,
            epsilon_end=epsilon if epsilon_end is None else float(epsilon_end),
            updates=int(args.topk_updates),
            learn=args.topk_learn,
            attentions=_attention_names(args.topk_attentions),
            layers=_layer_numbers(args.topk_layers),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        is_constant = (self.k, self.epsilon) == (self.k_end, self.epsilon_end)
        rules = [
            *(
                (name, value, value > 0 and math.isfinite(value), "positive")
                for name, value in (
                    ("topk-k", self.k),
                    ("topk-k-end", self.k_end),
                    ("topk-epsilon", self.epsilon),
                    ("topk-epsilon-end", self.epsilon_end),
                )
            ),
            ("topk-updates", self.updates, self.updates >= 0, "0 or more"),
            ("topk-updates", self.updates, self.updates > 0 or is_constant,
             "above 0 when k or epsilon has an end value"),
            ("topk-k", self.k, self.operator != "hard" or self.k.is_integer(),
             "whole when the operator is hard"),
            ("topk-learn", self.learn, self.operator == "soft" or self.learn == "none",
             "none unless the operator is soft"),
            ("topk-learn", self.learn, self.updates == 0 or self.learn == "none",
             "none with a schedule (--topk-updates)"),
            ("topk-k", self.k, not self.learns_k or self.k > 1,
             "above 1 when it is learned"),
        ]  # fmt: skip
        for name, value, is_met, rule in rules:
            if not is_met:
                raise ValueError(f"`--{name}` must be {rule}, but is {value}.")
        if self.operator == "entmax15" and importlib.util.find_spec("entmax") is None:
            raise ValueError(
                "`--topk-operator` must not be entmax15, because the library entmax "
                "is not installed (pip install --no-deps entmax)."
            )


def _attention_names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ATTENTIONS:
            raise ValueError(
                f"`--topk-attentions` must name some of {', '.join(ATTENTIONS)}, but "
                f"has `{name}`.{did_you_mean(name, ATTENTIONS)}"
            )
    return names


def _layer_numbers(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            "`--topk-layers` must be `all` or numbers of layers such as 0,1 or -1, "
            f"but is `{text}`."
        ) from None


class TopkWeights(nn.Module):
    """Computes attention weights from attention scores, in place of softmax.

    With fixed k and epsilon it adds nothing to a checkpoint, which then also fits an
    ordinary model. A schedule adds the number of updates, so that translation uses the
    values that training had reached. Learning adds numbers per head, stored as
    log epsilon and log(k - 1). An entry that a checkpoint lacks, such as that of an
    ordinary model, starts from the options.
    """

    updates: Tensor

    def __init__(self, settings: TopkSettings, num_heads: int) -> None:
        super().__init__()
        self.settings, self.num_heads = settings, num_heads
        self._num_updates = 0
        if settings.updates:
            # An integer buffer stays exact under --fp16.
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        if settings.learns_epsilon:
            start = math.log(settings.epsilon)
            self.log_epsilon = nn.Parameter(torch.full((num_heads,), start))
        if settings.learns_k:
            start = math.log(settings.k - 1)
            self.log_k_above_1 = nn.Parameter(torch.full((num_heads,), start))

    def set_num_updates(self, num_updates: int) -> None:
        """Set the position in the schedule; fairseq calls this before each update."""
        if self.settings.updates:
            self._num_updates = num_updates
            self.updates.fill_(num_updates)

    @property
    def epsilon(self) -> float | Tensor:
        """The current epsilon: a number, or one per head, shape (H,)."""
        if self.settings.learns_epsilon:
            return self.log_epsilon.float().exp()
        return self._scheduled(self.settings.epsilon, self.settings.epsilon_end)

    @property
    def k(self) -> float | Tensor:
        """The current k: a number, or one per head, shape (H,)."""
        if self.settings.learns_k:
            return 1 + self.log_k_above_1.float().exp()
        k = self._scheduled(self.settings.k, self.settings.k_end)
        return max(1, round(k)) if self.settings.operator == "hard" else k

    def _scheduled(self, start: float, end: float) -> float:
        return geometric(start, end, self.settings.updates, self._num_updates)

    def is_softmax(self, length: int) -> bool:
        """Return whether rows of this length get an ordinary softmax."""
        if self.settings.operator == "entmax15" or self.settings.learn != "none":
            return False  # a learned value must get a gradient in every update
        return float(self.k) >= length

    def forward(self, scores: Tensor) -> Tensor:
        """Return the weights of (B * H, T, S) scores; heads of a sentence together."""
        if self.settings.operator == "entmax15":
            from entmax import entmax15

            weights: Tensor = entmax15(scores.float(), dim=-1)
            return weights
        k, epsilon = self.k, self.epsilon
        if self.settings.operator == "hard":
            return hard_topk_softmax(scores, int(k))
        by_head = scores.unflatten(0, (-1, self.num_heads))
        weights = topk_softmax(by_head, _column(k), epsilon=_column(epsilon))
        return weights.view(scores.shape)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, value in self.state_dict().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.settings.updates:
            self._num_updates = int(self.updates)


def _column(value: float | Tensor) -> float | Tensor:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def _adopt_children(new: nn.Module, old: nn.Module) -> None:
    """Give ``new`` the projections and the dropout of ``old``."""
    for name, child in old.named_children():
        setattr(new, name, child)


class TopkMultiheadAttention(MultiheadAttention):
    """A Transformer's attention with top-k weights.

    Scores, masks and cached states are fairseq's. It takes the place of an existing
    attention and keeps its parameters: a model has the same parameters, and draws the
    same random numbers, with top-k attention and without.

    Raises:
        ValueError: the attention is of another class or has an additional key.
    """

    topk: TopkWeights

    def __init__(self, attention: nn.Module, settings: TopkSettings) -> None:
        if type(attention) is not MultiheadAttention or attention.use_xformers:
            raise ValueError(
                "top-k attention must replace fairseq's MultiheadAttention without "
                f"xformers, but this model has {type(attention).__name__}."
            )
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("top-k attention must not have an additional key.")
        with torch.random.fork_rng(devices=[]):
            super().__init__(
                attention.embed_dim,
                attention.num_heads,
                kdim=attention.kdim,
                vdim=attention.vdim,
                self_attention=attention.self_attention,
                encoder_decoder_attention=attention.encoder_decoder_attention,
            )
        _adopt_children(self, attention)
        self.topk = TopkWeights(settings, attention.num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: Any = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results as in fairseq. ``attn_mask`` may also be one
        per sentence and head, (B * H, T, S).

        Raises:
            ValueError: ``before_softmax`` is true.
        """
        if before_softmax:
            raise ValueError("`before_softmax` must be false in top-k attention.")
        length = len(query if self.self_attention or key is None else key)
        if incremental_state is None and self.topk.is_softmax(length):
            return super().forward(
                query, key, value, key_padding_mask, incremental_state, need_weights,
                static_kv, attn_mask, need_head_weights=need_head_weights,
            )  # fmt: skip
        self.skip_embed_dim_check = True  # torch's fused attention hides the scores
        try:
            scores, values = super().forward(
                query, key, value, key_padding_mask, incremental_state,
                need_weights=False, static_kv=static_kv, before_softmax=True,
            )  # fmt: skip
        finally:
            self.skip_embed_dim_check = False
        if attn_mask is not None:
            scores.add_(attn_mask)  # fairseq refuses (B * H, T, S) here
        weights = self.topk(scores)  # (B * H, T, S)
        probs = self.dropout_module(weights.type_as(scores))
        output = self.out_proj(self._context(probs, values, query.size(1)))
        if not (need_weights or need_head_weights):
            return output, None
        by_head = weights.unflatten(0, (-1, self.num_heads)).transpose(1, 0)
        return output, by_head if need_head_weights else by_head.mean(dim=0)

    def _context(self, probs: Tensor, values: Tensor, batch_size: int) -> Tensor:
        """Return the mixed values, (T, B, D); several rows may share their values."""
        num_keys = len(values) // self.num_heads
        if num_keys == batch_size:
            mixed = torch.bmm(probs, values)
        else:
            mixed = torch.einsum(
                "bxhts,bhsd->bxhtd",
                probs.unflatten(0, (num_keys, -1, self.num_heads)),
                values.unflatten(0, (num_keys, self.num_heads)),
            ).flatten(0, 2)
        mixed = mixed.transpose(0, 1).contiguous()
        return mixed.view(len(mixed), batch_size, self.embed_dim)


class TopkAttentionLayer(AttentionLayer):
    """An LSTM's attention (Bahdanau et al., 2015) with top-k weights.

    It takes the place of an existing attention and keeps its parameters.

    Raises:
        ValueError: the decoder has no attention.
    """

    topk: TopkWeights

    def __init__(self, attention: Any, settings: TopkSettings) -> None:
        if type(attention) is not AttentionLayer:
            raise ValueError("`--decoder-attention` must be on for top-k attention.")
        with torch.random.fork_rng(devices=[]):
            super().__init__(1, 1, 1)
        _adopt_children(self, attention)
        self.topk = TopkWeights(settings, num_heads=1)

    def forward(
        self, input: Tensor, source_hids: Tensor, encoder_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend from (B, D) to (S, B, H): (B, D) and the weights (S, B)."""
        if self.topk.is_softmax(len(source_hids)):
            return super().forward(input, source_hids, encoder_padding_mask)
        queries = self.input_proj(input)
        scores = (source_hids * queries).sum(dim=2)
        if encoder_padding_mask is not None:
            scores = scores.masked_fill(encoder_padding_mask, float("-inf"))
        weights = self.topk(scores.t().unsqueeze(1)).squeeze(1).t()
        weights = weights.type_as(source_hids)
        context = (weights.unsqueeze(2) * source_hids).sum(dim=0)
        output = torch.tanh(self.output_proj(torch.cat((context, input), dim=1)))
        return output, weights
