"""Run fairseq-train and record at every update what its log does not show.

    python tests/soak/watched_training.py NOTES WHAT FAIRSEQ-TRAIN-ARGUMENTS...

WHAT is ``state`` (checksums of parameters and optimizer), ``gradients`` or ``memory``.
Each process writes NOTES.RANK: a list with one dictionary per update, skipped updates
included. With ``memory`` it is a tensor of shape (updates, 2): resident bytes and open
files.
"""

from __future__ import annotations

import array
import functools
import os
import sys
import zlib
from typing import Any, Callable, Iterator

import psutil
import torch

NOTES: list[dict[str, Any]] = []
SIZES = array.array("q")  # notes of memory must hardly need memory themselves


def main() -> None:
    notes, what = sys.argv[1:3]
    sys.argv = ["fairseq-train", *sys.argv[3:]]
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    import fairseq_plugins

    fairseq_plugins.register()
    if what == "memory":
        _wrap(Trainer, "train_step", _note_memory)
    else:
        _wrap(Trainer, "train_step", functools.partial(_note_step, what=what))
        _wrap(Trainer, "_prepare_sample", _note_sample)
        _wrap(Trainer, "_reduce_and_log_stats", _note_loss)
    if what == "gradients":
        _wrap(Trainer, "clip_grad_norm", _note_gradients)
    cli_main()
    found = torch.tensor(SIZES).view(-1, 2) if what == "memory" else NOTES
    torch.save(found, f"{notes}.{os.environ.get('RANK', '0')}")


def _wrap(owner: Any, name: str, function: Callable[..., Any]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(functools.partial(method, self), self, *args, **kwargs)

    setattr(owner, name, wrapped)


def _note_memory(step: Any, _: Any, *args: Any, **kwargs: Any) -> Any:
    done = step(*args, **kwargs)
    process = psutil.Process()
    SIZES.extend((process.memory_info().rss, process.num_fds()))
    return done


def _note_step(step: Any, trainer: Any, *args: Any, what: str, **kwargs: Any) -> Any:
    note: dict[str, Any] = {"dummies": 0}
    NOTES.append(note)
    before = trainer.get_num_updates()
    if what == "state":
        note["before"] = _checksum(trainer)
    done = step(*args, **kwargs)
    note["updates"] = trainer.get_num_updates()
    note["skipped"] = note["updates"] == before
    if what == "state":
        note["after"] = _checksum(trainer)
        note["loss_scale"] = float(trainer.optimizer.scaler.loss_scale)
    return done


def _note_sample(
    prepare: Any, _: Any, sample: Any, is_dummy: bool = False, **kwargs: Any
) -> Any:
    # The method calls itself with a dummy batch if it is given none.
    if NOTES and not is_dummy:
        NOTES[-1]["dummies"] += not sample
    return prepare(sample, is_dummy, **kwargs)


def _note_loss(
    log: Any, _: Any, logged: Any, sample_size: Any, *args: Any, **kwargs: Any
) -> Any:
    if "loss" not in NOTES[-1]:  # of all processes, in nats per token
        total = sum(float(output["loss"]) for output in logged if "loss" in output)
        NOTES[-1]["loss"] = total / float(sample_size)
    return log(logged, sample_size, *args, **kwargs)


def _note_gradients(clip: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    # Here they are summed over processes and divided by the sample size.
    NOTES[-1]["gradients"] = {
        name: parameter.grad.clone()
        for name, parameter in trainer.get_model().named_parameters()
        if parameter.grad is not None
    }
    return clip(*args, **kwargs)


def _checksum(trainer: Any) -> int:
    """Return a checksum of all that an update changes, except the loss scale."""
    total = 0
    for tensor in _changing_tensors(trainer):
        content = tensor.detach().contiguous().view(torch.uint8).numpy()
        total = zlib.crc32(content.tobytes(), total)
    return total


def _changing_tensors(trainer: Any) -> Iterator[torch.Tensor]:
    yield from trainer.model.parameters()
    yield from trainer.optimizer.fp32_params
    for state in trainer.optimizer.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))
        yield torch.tensor([float(v) for v in state.values() if not torch.is_tensor(v)])


if __name__ == "__main__":
    main()
