"""Mends of what fairseq takes for granted of the devices that it runs on."""
from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any, Callable, Sequence

import torch

from fairseq_plugins.compat.wrapping import wrap

__all__ = ["let_bf16_run_without_tpu", "let_torchrun_work_without_gpu"]


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
