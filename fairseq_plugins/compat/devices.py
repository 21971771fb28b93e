"""Mends of what fairseq takes for granted of the devices that it runs on.

Mends of ``--fp16``: it runs without a GPU, and says how many updates it skipped.

A mend of the Transformer's encoder in the last release of fairseq.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import sys
from typing import Any, Callable, Iterator, Sequence
from unittest import mock

import torch

from fairseq_plugins.compat.wrapping import wrap

__all__ = [
    "count_skipped_updates",
    "keep_to_the_plain_encoder_layer",
    "let_bf16_run_without_tpu",
    "let_fp16_run_without_gpu",
    "let_torchrun_work_without_gpu",
]


def let_bf16_run_without_tpu() -> None:
    """Keep ``--bf16`` from switching ``--tpu`` on.

    fairseq takes bfloat16 for a sign of a TPU and dies without torch_xla
    (``'NoneType' object has no attribute 'xla_device'``; fairseq issue 4696).
    """
    from fairseq import options

    wrap(options, "parse_args_and_arch", _parser_without_tpu)


def _parser_without_tpu(parse: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parse)
    def parse_args(
        parser: argparse.ArgumentParser,
        input_args: Sequence[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = parse(parser, input_args, *args, **kwargs)
        namespace = result[0] if isinstance(result, tuple) else result
        typed = sys.argv[1:] if input_args is None else input_args
        if getattr(namespace, "bf16", False):
            namespace.tpu = "--tpu" in typed
        return result

    return parse_args


def let_torchrun_work_without_gpu() -> None:
    """Let ``torchrun`` start CPU processes, and believe its number of processes.

    fairseq divides by the number of GPUs to find a process' own, and tells torch that
    the model is on one. And it looks at
    torchrun's variables only when it has counted more than one GPU itself, so that
    single-GPU (or CPU) processes would each train alone, without a word.
    """
    from fairseq.distributed import utils
    from fairseq.models import distributed_fairseq_model

    wrap(utils, "_infer_torch_distributed_launch_init", _launch_init_on_cpu)
    wrap(utils, "infer_init_method", _init_method_of_torchrun)
    wrap(distributed_fairseq_model, "DistributedDataParallel", _parallel_on_cpu)


def _launch_init_on_cpu(infer: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(infer)
    def infer_launch(cfg: Any) -> None:
        if torch.cuda.device_count() > 0:
            return infer(cfg)
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        cfg.distributed_rank = int(os.environ["RANK"])
        cfg.device_id = 0
        cfg.distributed_no_spawn = True

    return infer_launch


def _init_method_of_torchrun(infer: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(infer)
    def infer_method(cfg: Any, *args: Any, **kwargs: Any) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ and cfg.distributed_world_size == 1:
            cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        infer(cfg, *args, **kwargs)

    return infer_method


def _parallel_on_cpu(parallel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parallel, updated=())
    def distributed(module: torch.nn.Module, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
        return parallel(module, **options)

    return distributed


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


def keep_to_the_plain_encoder_layer() -> None:
    """Keep fairseq 0.12.2 from torch's fused encoder layer.

    When a Transformer translates, fairseq gives that layer a mask without the type that
    torch 2 wants (``Mask Type should be defined``). Later fairseqs do not use it.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    wrap(TransformerEncoderLayerBase, "__init__", _without_fused_layer, bound=True)


def _without_fused_layer(build: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(build)
    def build_plain(layer: Any, *args: Any, **kwargs: Any) -> None:
        build(layer, *args, **kwargs)
        if hasattr(layer, "can_use_fastpath"):
            layer.can_use_fastpath = False

    return build_plain
