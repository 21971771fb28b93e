"""The number of updates, which fairseq tells the model but not the criterion."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

__all__ = ["report_update_number"]


def report_update_number(task: Any, receive: Callable[[int], None]) -> None:
    """Call ``receive`` with the number of updates before each training step."""
    train_step = task.train_step
    signature = inspect.signature(train_step)

    @functools.wraps(train_step)
    def train_step_with_report(*args: Any, **kwargs: Any) -> Any:
        receive(signature.bind(*args, **kwargs).arguments["update_num"])
        return train_step(*args, **kwargs)

    task.train_step = train_step_with_report
