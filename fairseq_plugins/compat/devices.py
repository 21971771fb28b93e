"""Fixes of fairseq's assumptions on devices: TPU, GPU and half precision."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import sys
from typing import Any, Callable, Sequence
from unittest import mock

import torch

from fairseq_plugins.compat.patching import wrap

__all__ = [
    "count_skipped_updates",
    "disable_fused_encoder_layer",
    "run_bf16_without_tpu",
    "run_fp16_without_gpu",
    "run_torchrun_without_gpu",
]


def run_bf16_without_tpu() -> None:
    """Keep ``--bf16`` from switching ``--tpu`` on.

    fairseq takes bfloat16 as a sign of a TPU and fails without torch_xla
    (``'NoneType' object has no attribute 'xla_device'``; fairseq issue 4696).
    """
    from fairseq import options

    wrap(options, "parse_args_and_arch", _parse_without_tpu)


def _parse_without_tpu(parse: Callable[..., Any]) -> Callable[..., Any]:
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


def run_torchrun_without_gpu() -> None:
    """Let ``torchrun`` start CPU processes, and use its number of processes.

    fairseq divides by the number of GPUs to find the rank of a process, and tells torch
    that the model is on a GPU. It also reads torchrun's variables only if it counts
    more than one GPU, so single-GPU (or CPU) processes each train a separate model
    without a warning.
    """
    from fairseq.distributed import utils
    from fairseq.models import distributed_fairseq_model

    wrap(utils, "_infer_torch_distributed_launch_init", _infer_launch_on_cpu)
    wrap(utils, "infer_init_method", _infer_torchrun_world_size)
    wrap(distributed_fairseq_model, "DistributedDataParallel", _parallelize_on_cpu)


def _infer_launch_on_cpu(infer: Callable[[Any], None]) -> Callable[[Any], None]:
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


def _infer_torchrun_world_size(infer: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(infer)
    def infer_method(cfg: Any, *args: Any, **kwargs: Any) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ and cfg.distributed_world_size == 1:
            cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        infer(cfg, *args, **kwargs)

    return infer_method


def _parallelize_on_cpu(parallel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parallel, updated=())
    def distributed(module: torch.nn.Module, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
        return parallel(module, **options)

    return distributed


def run_fp16_without_gpu() -> None:
    """Keep ``--fp16`` from using a GPU when the model is not on one.

    fairseq flattens the gradients on the current GPU, and when it skips an update it
    creates a tensor for the log there (``Torch not compiled with CUDA enabled``).
    """
    from fairseq.optim.fp16_optimizer import FP16Optimizer
    from fairseq.trainer import Trainer

    wrap(FP16Optimizer, "build_optimizer", _flatten_on_gpu_only)
    wrap(Trainer, "train_step", _train_on_cpu)


def _flatten_on_gpu_only(build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def build_optimizer(cfg: Any, params: list[Any], **kwargs: Any) -> Any:
        if not any(parameter.is_cuda for parameter in params):
            cfg = copy.deepcopy(cfg)
            cfg.common.fp16_no_flatten_grads = True
        return build(cfg, params, **kwargs)

    return build_optimizer


def _train_on_cpu(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        stay: Any = mock.patch.object(
            torch.Tensor, "cuda", lambda tensor, *_, **__: tensor
        )
        with contextlib.nullcontext() if self.cuda else stay:
            return step(self, *args, **kwargs)

    return train_step


def count_skipped_updates() -> None:
    """Log as `overflows` how many updates were skipped because gradients overflowed.

    fairseq writes a line for each skipped update but counts none.
    """
    from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler

    wrap(DynamicLossScaler, "check_overflow", _count_overflows)


def _count_overflows(check: Callable[..., Any]) -> Callable[..., Any]:
    from fairseq.logging import meters, metrics

    @functools.wraps(check)
    def check_overflow(*args: Any, **kwargs: Any) -> Any:
        count = 0
        try:
            return check(*args, **kwargs)
        except OverflowError:
            count = 1
            raise
        finally:
            # Beside the loss scale; summed over the log interval and the epoch.
            metrics.log_custom(meters.SumMeter, "overflows", count, priority=710)

    return check_overflow


def disable_fused_encoder_layer() -> None:
    """Keep fairseq 0.12.2 from using torch's fused encoder layer.

    In a translating Transformer fairseq calls that layer without the mask type that
    torch 2 requires (``Mask Type should be defined``). Later versions do not use it.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    wrap(TransformerEncoderLayerBase, "__init__", _build_without_fused_layer)


def _build_without_fused_layer(build: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(build)
    def build_plain(layer: Any, *args: Any, **kwargs: Any) -> None:
        build(layer, *args, **kwargs)
        if hasattr(layer, "can_use_fastpath"):
            layer.can_use_fastpath = False

    return build_plain
