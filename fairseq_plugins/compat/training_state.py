"""Fixes of training state that fairseq keeps out of its checkpoints."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, Callable

from fairseq_plugins.compat.patching import wrap

__all__ = [
    "resume_early_stopping",
    "resume_loss_scaler",
    "resume_plateau_schedule",
    "save_updates_at_epoch_end",
]

EARLY_STOPPING = "early_stopping"  # the key in a checkpoint's extra state
_SCALER_COUNTERS = (
    "_iter",
    "_last_overflow_iter",
    "_last_rescale_iter",
    "_overflows_since_rescale",
)


def resume_early_stopping() -> None:
    """Continue to count the validations of ``--patience`` after a restart.

    fairseq counts them in the process, so that a training that is resumed stops later
    than an uninterrupted one.
    """
    from fairseq.trainer import Trainer

    wrap(Trainer, "save_checkpoint", _save_early_stopping)
    wrap(Trainer, "load_checkpoint", _load_early_stopping)


def _early_stopping() -> Any:
    """Return fairseq's function that stops early and has the state as attributes."""
    for name in ("__main__", "fairseq_cli.train"):
        function = getattr(sys.modules.get(name), "should_stop_early", None)
        if function is not None:
            return function
    return None


def _save_early_stopping(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def save_checkpoint(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        state = vars(_early_stopping() or object)
        if "num_runs" in state:
            counted = {key: state[key] for key in ("best", "num_runs")}
            extra_state = {**extra_state, EARLY_STOPPING: counted}
        return save(self, filename, extra_state)

    return save_checkpoint


def _load_early_stopping(load: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(load)

    @functools.wraps(load)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        extra_state = load(*args, **kwargs)
        is_new = signature.bind(*args, **kwargs).arguments.get("reset_meters", False)
        function = _early_stopping()
        if function is not None and not is_new:
            vars(function).update((extra_state or {}).get(EARLY_STOPPING, {}))
        return extra_state

    return load_checkpoint


def resume_plateau_schedule() -> None:
    """Give ``reduce_lr_on_plateau`` the same learning rates after a restart.

    fairseq saves neither how many validations were worse nor, because it writes the
    checkpoint of an epoch first, the effect of the epoch's last validation.
    """
    from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
        ReduceLROnPlateauLRSchedule,
    )
    from fairseq.trainer import Trainer

    wrap(ReduceLROnPlateauLRSchedule, "state_dict", _save_bad_epochs)
    wrap(ReduceLROnPlateauLRSchedule, "load_state_dict", _load_bad_epochs)
    wrap(Trainer, "load_checkpoint", _apply_last_validation)


def _save_bad_epochs(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def state_dict(self: Any) -> dict[str, Any]:
        return {**save(self), "num_bad_epochs": self.lr_scheduler.num_bad_epochs}

    return state_dict


def _load_bad_epochs(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        load(self, state)
        self.lr_scheduler.num_bad_epochs = state.get("num_bad_epochs", 0)

    return load_state_dict


def _apply_last_validation(load: Callable[..., Any]) -> Callable[..., Any]:
    from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
        ReduceLROnPlateauLRSchedule,
    )

    signature = inspect.signature(load)

    @functools.wraps(load)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        extra_state = load(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        trainer = given["self"]
        if not extra_state or given.get("reset_lr_scheduler"):
            return extra_state
        is_end = extra_state["train_iterator"].get("iterations_in_epoch") == 0
        is_plateau = isinstance(trainer.lr_scheduler, ReduceLROnPlateauLRSchedule)
        if is_plateau and is_end and extra_state.get("val_loss") is not None:
            epoch = extra_state["train_iterator"]["epoch"]
            trainer.lr_step(epoch - 1, extra_state["val_loss"])
        return extra_state

    return load_checkpoint


def resume_loss_scaler() -> None:
    """Save when ``--fp16`` last changed its loss scale, and the scale of ``--amp``.

    fairseq counts from 0 after a restart. The scale then grows at other updates, so
    that other updates overflow and are skipped.
    """
    from fairseq.optim import amp_optimizer, fp16_optimizer

    for owner in (
        fp16_optimizer._FP16OptimizerMixin,
        fp16_optimizer._MemoryEfficientFP16OptimizerMixin,
        amp_optimizer.AMPOptimizer,
    ):
        wrap(owner, "state_dict", _save_scaler)
        wrap(owner, "load_state_dict", _load_scaler)


def _save_scaler(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def state_dict(self: Any) -> dict[str, Any]:
        state: dict[str, Any] = save(self)
        if hasattr(self.scaler, "state_dict"):  # torch's, with --amp
            state["loss_scaler"] = self.scaler.state_dict()
        elif self.scaler is not None:
            counters = {key: getattr(self.scaler, key) for key in _SCALER_COUNTERS}
            state["loss_scaler"] = counters
        return state

    return state_dict


def _load_scaler(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_state_dict(self: Any, state: dict[str, Any], *args: Any, **kw: Any) -> Any:
        result = load(self, state, *args, **kw)
        saved = state.get("loss_scaler")
        if saved and hasattr(self.scaler, "load_state_dict"):
            self.scaler.load_state_dict(saved)
        elif saved and self.scaler is not None:
            vars(self.scaler).update(saved)
        return result

    return load_state_dict


def save_updates_at_epoch_end() -> None:
    """Write the checkpoints of ``--save-interval-updates`` at the end of epochs, too.

    fairseq leaves out ``checkpoint_EPOCH_UPDATES.pt`` if the update is the last of an
    epoch, so that averages are taken over other checkpoints.
    """
    from fairseq import checkpoint_utils

    wrap(checkpoint_utils, "save_checkpoint", _save_within_and_after_epoch)


class _WithinEpoch:
    """An iterator over batches that denies being at the end of its epoch."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def end_of_epoch(self) -> bool:
        return False


def _save_within_and_after_epoch(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def save_checkpoint(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any) -> Any:
        saved = save(cfg, trainer, epoch_itr, val_loss)
        interval = cfg.save_interval_updates
        if (
            epoch_itr.end_of_epoch()
            and interval > 0
            and trainer.get_num_updates() % interval == 0
        ):
            # The best and the last checkpoint are written again, with the same content.
            saved = save(cfg, trainer, _WithinEpoch(epoch_itr), val_loss) or saved
        return saved

    return save_checkpoint
