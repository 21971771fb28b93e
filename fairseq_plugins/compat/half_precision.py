"""Mends of ``--fp16``: it runs without a GPU, and says how many updates it skipped."""
from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any, Callable, Iterator
from unittest import mock

import torch

from fairseq_plugins.compat.wrapping import wrap

__all__ = ["count_skipped_updates", "let_fp16_run_without_gpu"]


def count_skipped_updates() -> None:
    """Log how many updates were skipped, because gradients overflowed, as `overflows`.

    fairseq says each time that it ignores a gradient, but counts nothing, and with a
    log interval of 100 nobody sees how often it did.
    """
    from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler

    wrap(DynamicLossScaler, "check_overflow", _counting_check, bound=True)


def _counting_check(check: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(check)
    def check_overflow(*args: Any, **kwargs: Any) -> Any:
        try:
            done = check(*args, **kwargs)
        except OverflowError:
            _log_overflows(1)
            raise
        _log_overflows(0)
        return done

    return check_overflow


def _log_overflows(count: int) -> None:
    from fairseq.logging import meters, metrics

    # Beside the loss scale. A sum: of the log interval, and of the epoch.
    metrics.log_custom(meters.SumMeter, "overflows", count, priority=710)


def let_fp16_run_without_gpu() -> None:
    """Keep ``--fp16`` from asking for a GPU when the model is not on one.

    fairseq flattens the gradients on "the current GPU", and when it skips an update it
    makes a number for the log there (``Torch not compiled with CUDA enabled``).
    """
    from fairseq.optim.fp16_optimizer import FP16Optimizer
    from fairseq.trainer import Trainer

    wrap(FP16Optimizer, "build_optimizer", _flat_on_gpu_only)
    wrap(Trainer, "train_step", _step_on_its_own_device, bound=True)


def _flat_on_gpu_only(build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def build_optimizer(cfg: Any, params: list[Any], **kwargs: Any) -> Any:
        if not any(parameter.is_cuda for parameter in params):
            cfg = copy.deepcopy(cfg)
            cfg.common.fp16_no_flatten_grads = True
        return build(cfg, params, **kwargs)

    return build_optimizer


def _step_on_its_own_device(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.nullcontext() if self.cuda else _tensors_stay():
            return step(self, *args, **kwargs)

    return train_step


@contextlib.contextmanager
def _tensors_stay() -> Iterator[None]:
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor):
        yield
