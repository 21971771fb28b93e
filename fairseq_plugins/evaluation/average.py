"""Average the parameters of several checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import torch

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically

__all__ = ["average_checkpoints"]

State = dict[str, Any]
Parameters = dict[str, torch.Tensor]


def average_checkpoints(paths: Sequence[Path], output: Path) -> None:
    """Write a checkpoint with the mean of the parameters of others.

    Only the parameters of one checkpoint are read at a time, so the required memory is
    that of two models, for any number of checkpoints. Sums are in float64. Everything
    else, such as the options, is copied from the last checkpoint, except the state of
    its optimizer. Shared parameters remain shared, and the same checkpoints give the
    same bytes.

    Args:
        paths: fairseq's checkpoints of one model.
        output: file to write; it is replaced only when it is complete.

    Raises:
        UserError: there are no checkpoints, one cannot be read, or two have different
            parameters.
    """
    if not paths:
        raise UserError("at least one checkpoint must be given to average.")
    sums: Parameters = {}
    for path in paths:
        state = _read(path)
        parameters: Parameters = state["model"]
        if not sums:
            sums = {name: _widen(value) for name, value in parameters.items()}
            continue
        _check_same_parameters(sums, parameters, paths[0], path)
        for name, value in parameters.items():
            sums[name] += _widen(value)
    # `state` is that of the last checkpoint.
    state["model"] = _divide_sums(sums, state["model"], len(paths))
    state["last_optimizer_state"] = None
    with write_atomically(output, "wb") as stream:
        torch.save(state, stream)


def _read(path: Path) -> State:
    state = read_checkpoint(path)
    if not isinstance(state.get("model"), dict):
        raise UserError(f"`{path}` must be a fairseq checkpoint, but has no model.")
    return state


def _widen(value: torch.Tensor) -> torch.Tensor:
    """Return a copy in a type that sums without loss of precision."""
    wide = torch.float64 if value.is_floating_point() else torch.int64
    return value.to(wide, copy=True)


def _check_same_parameters(
    sums: Parameters, parameters: Parameters, first: Path, path: Path
) -> None:
    differing = sums.keys() ^ parameters.keys()
    for name in sorted(differing):
        has, lacks = (first, path) if name in sums else (path, first)
        raise UserError(
            "checkpoints to average must be of one model, but only "
            f"`{has}`, not `{lacks}`, has `{name}`."
        )
    for name, value in parameters.items():
        if value.shape != sums[name].shape:
            raise UserError(
                f"checkpoints to average must be of one model, but `{name}` is "
                f"{list(sums[name].shape)} in `{first}` and {list(value.shape)} in "
                f"`{path}`."
            )


def _divide_sums(sums: Parameters, like: Parameters, count: int) -> Parameters:
    """Divide the sums; tensors that share memory in ``like`` share it again."""
    means: Parameters = {}
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    for name, value in like.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if place not in made or not value.numel():
            total = sums.pop(name)
            mean = total / count if total.is_floating_point() else total // count
            made[place] = mean.to(value.dtype)
        means[name] = made[place]
    return means
