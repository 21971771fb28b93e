"""Fixes for defects of fairseq on current versions of Python and torch.

Each fix is one function, whose docstring gives the defect. It has no effect on a
fairseq without that defect. The environment variable ``FAIRSEQ_SOFT_TOPK_SKIP`` lists
fixes to leave out, such as ``keep-last-batch,count-skipped-updates``.
"""

from __future__ import annotations

import os
from typing import Callable

from fairseq_plugins.compat.batches import keep_last_batch, resume_with_same_batches
from fairseq_plugins.compat.checkpoints import (
    allow_checkpoint_classes,
    broadcast_checkpoints,
    copy_checkpoints_atomically,
    load_checkpoints_safely,
)
from fairseq_plugins.compat.devices import (
    count_skipped_updates,
    disable_fused_encoder_layer,
    run_bf16_without_tpu,
    run_fp16_without_gpu,
    run_torchrun_without_gpu,
)
from fairseq_plugins.compat.training_state import (
    resume_early_stopping,
    resume_loss_scaler,
    resume_plateau_schedule,
    save_updates_at_epoch_end,
)

__all__ = ["FIXES", "SKIP_VARIABLE", "allow_checkpoint_classes", "apply_fixes"]

SKIP_VARIABLE = "FAIRSEQ_SOFT_TOPK_SKIP"
FIXES: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        allow_checkpoint_classes,
        load_checkpoints_safely,
        broadcast_checkpoints,
        copy_checkpoints_atomically,
        keep_last_batch,
        resume_with_same_batches,
        resume_early_stopping,
        resume_plateau_schedule,
        resume_loss_scaler,
        save_updates_at_epoch_end,
        run_bf16_without_tpu,
        run_fp16_without_gpu,
        run_torchrun_without_gpu,
        count_skipped_updates,
        disable_fused_encoder_layer,
    )
}


def apply_fixes() -> None:
    """Fix the imported fairseq; a second call changes nothing.

    Raises:
        ValueError: FAIRSEQ_SOFT_TOPK_SKIP names an unknown fix.
    """
    skipped = {name.strip() for name in os.environ.get(SKIP_VARIABLE, "").split(",")}
    unknown = skipped - FIXES.keys() - {""}
    if unknown:
        raise ValueError(
            f"`{SKIP_VARIABLE}` must be a comma-separated list out of "
            f"{', '.join(FIXES)}, but names `{'`, `'.join(sorted(unknown))}`."
        )
    for name, fix in FIXES.items():
        if name not in skipped:
            fix()
