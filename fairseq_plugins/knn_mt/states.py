"""Decoder states of a trained fairseq model, by teacher forcing or in its search."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from fairseq_plugins.pipeline.errors import UserError

__all__ = ["Forced", "Loaded", "adjusted", "batches", "force", "load", "log_probs_of"]

# (rows, D) states and (rows, V) log-probabilities to other log-probabilities
Adjust = Callable[[Tensor, Tensor], Tensor]


class Loaded(NamedTuple):
    """A model in evaluation mode and the task that it was trained for."""

    model: Any
    task: Any


class Forced(NamedTuple):
    """One batch of gold targets: T tokens, end marks included, padding left out.

    Attributes:
        states: what the decoder's output layer reads, shape (T, D).
        targets: gold tokens, shape (T).
        sentences: number of each token's sentence in the corpus, shape (T).
    """

    states: Tensor
    targets: Tensor
    sentences: Tensor


def load(checkpoint: Path, data: Path) -> Loaded:
    """Load a checkpoint of a translation model for a binarised folder.

    Raises:
        UserError: the checkpoint does not exist, or has no decoder with states.
    """
    from fairseq.checkpoint_utils import load_model_ensemble_and_task

    import fairseq_plugins

    fairseq_plugins.register()
    if not checkpoint.is_file():
        raise UserError(f"`{checkpoint}` does not exist.")
    models, _, task = load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    model = models[0].eval()
    if not hasattr(model.decoder, "extract_features"):
        raise UserError(
            f"the decoder of `{checkpoint}` must have `extract_features`, but "
            f"{type(model.decoder).__name__} has not."
        )
    return Loaded(model, task)


def batches(loaded: Loaded, subset: str, max_tokens: int) -> list[dict[str, Any]]:
    """Return the batches of a subset, every sentence once, in order of length."""
    if subset not in loaded.task.datasets:
        loaded.task.load_dataset(subset)
    return list(
        loaded.task.get_batch_iterator(
            loaded.task.dataset(subset),
            max_tokens=max_tokens,
            required_batch_size_multiple=1,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)
    )


@torch.no_grad()
def force(loaded: Loaded, subset: str, *, max_tokens: int = 4000) -> Iterator[Forced]:
    """Yield the states at every gold token of a subset, batch by batch."""
    model = loaded.model
    for sample in batches(loaded, subset, max_tokens):
        net_input = sample["net_input"]
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        states, _ = model.decoder.extract_features(
            net_input["prev_output_tokens"], encoder_out=encoder_out
        )
        is_token = sample["target"] != loaded.task.target_dictionary.pad()
        states = states[is_token]
        yield Forced(
            states=states,
            targets=sample["target"][is_token],
            sentences=sample["id"].unsqueeze(-1).expand_as(is_token)[is_token],
        )


@torch.no_grad()
def log_probs_of(loaded: Loaded, states: Tensor) -> Tensor:
    """Return the model's log-probabilities after these states, (T, D) to (T, V)."""
    logits = loaded.model.decoder.output_layer(states)
    probs: Tensor = loaded.model.get_normalized_probs((logits, None), log_probs=True)
    return probs


@contextlib.contextmanager
def adjusted(model: Any, adjust: Adjust) -> Iterator[None]:
    """Let ``adjust`` change what the model predicts, in any of fairseq's searches.

    It is called at each step with the states and log-probabilities of all hypotheses.
    The model's class stays as it is, and so does the model after it.
    """
    decoder, latest = model.decoder, {}

    def extract_features(*args: Any, **kwargs: Any) -> Any:
        features, extra = type(decoder).extract_features(decoder, *args, **kwargs)
        latest["states"] = features[:, -1]
        return features, extra

    def get_normalized_probs(output: Any, log_probs: bool, sample: Any = None) -> Any:
        usual = type(model).get_normalized_probs(model, output, True, sample)
        usual[:, -1] = adjust(latest["states"], usual[:, -1])
        return usual if log_probs else usual.exp()

    decoder.extract_features = extract_features
    model.get_normalized_probs = get_normalized_probs
    try:
        yield
    finally:
        del decoder.extract_features, model.get_normalized_probs
