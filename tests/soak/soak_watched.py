"""Train by fairseq, and note at every update what its log does not show.

    python tests/soak/soak_watched.py NOTES WHAT FAIRSEQ-TRAIN-ARGUMENTS...

WHAT is `state` (checksums of parameters and optimizer), `gradients`, or `memory`. Each
process of torchrun writes NOTES.RANK: a list with one dictionary for each update,
whether it was made or skipped; with `memory` a tensor of (updates, 2) with the bytes of
the process that are in memory and its open files.
"""

from __future__ import annotations

import array
import functools
import os
import sys
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator

import torch

NOTES: list[dict[str, Any]] = []
# Notes of memory must not need memory themselves: 16 bytes for each update.
SIZES = array.array("q")


def main() -> None:
    notes, what = sys.argv[1:3]
    sys.argv = ["fairseq-train", *sys.argv[3:]]
    from fairseq_cli.train import cli_main

    import fairseq_plugins

    fairseq_plugins.register()
    if what == "memory":
        watch_memory()
    else:
        watch(what)
    cli_main()
    found = torch.tensor(SIZES).view(-1, 2) if what == "memory" else NOTES
    torch.save(found, f"{notes}.{os.environ.get('RANK', '0')}")


def watch_memory() -> None:
    """Make fairseq's trainer note memory and open files after every update."""
    from fairseq.trainer import Trainer

    def noted(step: Any, _: Any, *args: Any, **kwargs: Any) -> Any:
        done = step(*args, **kwargs)
        SIZES.extend((resident_memory(), open_handles()))
        return done

    _around(Trainer, "train_step", noted)


def watch(what: str) -> None:
    """Make fairseq's trainer take the other notes."""
    from fairseq.trainer import Trainer

    _around(Trainer, "train_step", functools.partial(_noted_step, what=what))
    _around(Trainer, "_prepare_sample", _noted_sample)
    _around(Trainer, "_reduce_and_log_stats", _noted_losses)
    if what == "gradients":
        _around(Trainer, "clip_grad_norm", _noted_gradients)


def _around(owner: Any, name: str, function: Callable[..., Any]) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(functools.partial(method, self), self, *args, **kwargs)

    setattr(owner, name, watched)


def _noted_step(step: Any, trainer: Any, *args: Any, what: str, **kwargs: Any) -> Any:
    note: dict[str, Any] = {"dummies": 0}
    NOTES.append(note)
    before = trainer.get_num_updates()
    if what == "state":
        note["before"] = checksum(trainer)
    done = step(*args, **kwargs)
    note.update(updates=trainer.get_num_updates())
    note["skipped"] = note["updates"] == before
    if what == "state":
        note.update(after=checksum(trainer), loss_scale=_loss_scale(trainer))
    return done


def _noted_sample(
    prepare: Any, _: Any, sample: Any, is_dummy: bool = False, **kwargs: Any
) -> Any:
    # It calls itself with another sample if it is given none.
    if NOTES and not is_dummy:
        NOTES[-1]["dummies"] += not sample
    return prepare(sample, is_dummy, **kwargs)


def _noted_losses(
    log: Any, _: Any, logged: Any, sample_size: Any, *args: Any, **kwargs: Any
) -> Any:
    if "loss" not in NOTES[-1]:  # of all processes, in nats for each token
        total = sum(float(output["loss"]) for output in logged if "loss" in output)
        NOTES[-1]["loss"] = total / float(sample_size)
    return log(logged, sample_size, *args, **kwargs)


def _noted_gradients(clip: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    # They are summed over processes and divided by the sample size at this point.
    NOTES[-1]["gradients"] = {
        name: parameter.grad.clone()
        for name, parameter in trainer.get_model().named_parameters()
        if parameter.grad is not None
    }
    return clip(*args, **kwargs)


def checksum(trainer: Any) -> int:
    """Return a checksum of all that an update changes but the loss scale."""
    total = 0
    for tensor in _changing(trainer):
        content = tensor.detach().contiguous().view(torch.uint8).numpy()
        total = zlib.crc32(content.tobytes(), total)
    return total


def _changing(trainer: Any) -> Iterator[torch.Tensor]:
    yield from trainer.model.parameters()
    yield from getattr(trainer.optimizer, "fp32_params", [])
    for state in trainer.optimizer.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))
        yield torch.tensor([float(v) for v in state.values() if not torch.is_tensor(v)])


def _loss_scale(trainer: Any) -> float:
    scaler = getattr(trainer.optimizer, "scaler", None)
    return 1.0 if scaler is None else float(scaler.loss_scale)


def resident_memory() -> int:
    """Return the bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
