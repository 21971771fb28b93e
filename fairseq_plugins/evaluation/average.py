"""The mean of several checkpoints' parameters, as one checkpoint."""

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
    """Write a checkpoint whose parameters are the mean of those of others.

    One checkpoint is open at a time and only its parameters are read, so that the
    memory needed is that of two models, whatever their number. Sums are in float64.
    Everything else, such as the options, is the last checkpoint's, without the state
    of its optimizer, which belongs to no average. Parameters that share their memory
    share it still, and the same checkpoints give the same bytes.

    Args:
        paths: checkpoints of one model that fairseq wrote.
        output: is either written whole or left as it was.

    Raises:
        UserError: there is no checkpoint, one cannot be read, or two do not have the
            same parameters.
    """
    if not paths:
        raise UserError("there must be a checkpoint or more to average, but is none.")
    sums: Parameters = {}
    for path in paths:
        state = _read(path)
        parameters: Parameters = state["model"]
        if not sums:
            sums = {name: _wide(value) for name, value in parameters.items()}
            continue
        _check_same_parameters(sums, parameters, paths[0], path)
        for name, value in parameters.items():
            sums[name] += _wide(value)
    # `state` is the last one's.
    state["model"] = _means(sums, state["model"], len(paths))
    state["last_optimizer_state"] = None
    with write_atomically(output, "wb") as stream:
        torch.save(state, stream)


def _read(path: Path) -> State:
    state = read_checkpoint(path)
    if not isinstance(state.get("model"), dict):
        raise UserError(f"`{path}` must be a checkpoint of fairseq, but has no model.")
    return state


def _wide(value: torch.Tensor) -> torch.Tensor:
    """Return a copy that many can be added to without loss."""
    wide = torch.float64 if value.is_floating_point() else torch.int64
    return value.to(wide, copy=True)


def _check_same_parameters(
    sums: Parameters, parameters: Parameters, first: Path, path: Path
) -> None:
    differing = sums.keys() ^ parameters.keys()
    for name in sorted(differing):
        has, lacks = (first, path) if name in sums else (path, first)
        raise UserError(
            f"checkpoints must be of one model to be averaged, but `{has}` has "
            f"`{name}` and `{lacks}` has not."
        )
    for name, value in parameters.items():
        if value.shape != sums[name].shape:
            raise UserError(
                f"checkpoints must be of one model to be averaged, but `{name}` is "
                f"{list(sums[name].shape)} in `{first}` and {list(value.shape)} in "
                f"`{path}`."
            )


def _means(sums: Parameters, like: Parameters, count: int) -> Parameters:
    """Divide; tensors that were one in the checkpoint stay one."""
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
