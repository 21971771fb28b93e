"""Mends for what is broken in fairseq on today's Python and torch.

One function per breakage. Each says what breaks, and does no harm to a fairseq that
does not need it. The tests show for each that the unmended fairseq fails and that the
mended one works.
"""

from __future__ import annotations

from fairseq_plugins.compat.batches import (
    keep_the_last_batch,
    resume_with_the_same_batches,
)
from fairseq_plugins.compat.checkpoints import (
    allow_what_checkpoints_hold,
    copy_checkpoints_whole,
    let_processes_share_a_checkpoint,
    load_checkpoints_safely,
)
from fairseq_plugins.compat.devices import (
    count_skipped_updates,
    keep_to_the_plain_encoder_layer,
    let_bf16_run_without_tpu,
    let_fp16_run_without_gpu,
    let_torchrun_work_without_gpu,
)

__all__ = ["allow_what_checkpoints_hold", "apply"]


def apply() -> None:
    """Mend the imported fairseq; a second call changes nothing."""
    allow_what_checkpoints_hold()
    load_checkpoints_safely()
    let_bf16_run_without_tpu()
    let_torchrun_work_without_gpu()
    let_fp16_run_without_gpu()
    count_skipped_updates()
    keep_to_the_plain_encoder_layer()
    keep_the_last_batch()
    copy_checkpoints_whole()
    resume_with_the_same_batches()
    let_processes_share_a_checkpoint()
