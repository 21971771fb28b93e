"""A run folder: its files, and whether a configuration may resume in it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import re
from pathlib import Path
from typing import Iterator

import yaml

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.training.config import (
    Config,
    compute_batches_per_update,
    read_config,
)
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import write_atomically, write_json

__all__ = ["RunFolder"]

logger = logging.getLogger(__name__)

# How long to train: may change between two calls.
_LENGTH = {
    "max_epoch",
    "max_update",
    "patience",
    "stop_min_lr",
    "stop_time_hours",
}
# The length of these learning rate schedules is `max_update`.
_STRETCHED_SCHEDULES = {"cosine", "polynomial_decay", "tri_stage"}
# Logging, checkpoints and hardware: may change without any effect on results.
_PRESENTATION = {
    "all_gather_list_size",
    "azureml_logging",
    "cpu",
    "data_buffer_size",
    "device_id",
    "distributed_backend",
    "distributed_port",
    "distributed_world_size",
    "empty_cache_freq",
    "keep_best_checkpoints",
    "keep_interval_updates",
    "keep_interval_updates_pattern",
    "keep_last_epochs",
    "log_file",
    "log_format",
    "log_interval",
    "no_epoch_checkpoints",
    "no_progress_bar",
    "num_workers",
    "run",
    "save_interval",
    "save_interval_updates",
    "tensorboard_logdir",
    "wandb_project",
}
_BATCH = {"batches_per_update", "processes", "update_freq"}
_BATCH_HINT = (
    "The batch of an update is the same if `processes` times `update_freq` is, or with "
    "`batches_per_update` instead of `update_freq`. "
)
_BY_UPDATES = re.compile(r"checkpoint_\d+_(\d+)\.pt")
_BY_EPOCHS = re.compile(r"checkpoint(\d+)\.pt")


class RunFolder:
    """A folder with ``config.yaml``, ``command.txt``, ``train.log``, ``checkpoints/``.

    ``config.yaml`` is the flat configuration of the latest start that wrote a
    checkpoint. ``finished.json`` exists if that start was completed. It holds the
    model's number of ``updates`` and the ``seconds`` of training over all starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "checkpoint_last.pt"
        self.log = path / "train.log"
        self._config = path / "config.yaml"
        self._command = path / "command.txt"
        self._finished = path / "finished.json"

    def read_config(self) -> Config:
        """Return the configuration of this folder's results.

        Raises:
            UserError: this is not a run folder.
        """
        if not self._config.is_file():
            raise UserError(
                f"`{self.path}` must be a run folder of scripts/train.py, "
                "but has no config.yaml."
            )
        return read_config(self._config)

    def read_results_config(self) -> Config | None:
        """Return the configuration of the checkpoints; ``None`` without checkpoints."""
        return self.read_config() if any(self.checkpoints.glob("*.pt")) else None

    def last_save(self) -> int | None:
        """Return when a checkpoint was last written, in ns; ``None`` without any."""
        times = [path.stat().st_mtime_ns for path in self.checkpoints.glob("*.pt")]
        return max(times, default=None)

    def is_finished_with(self, config: Config) -> bool:
        """Return whether training with this configuration is complete."""
        recorded = self.read_results_config()
        return (
            self._finished.is_file()
            and recorded is not None
            and not _differing(recorded, config) - _PRESENTATION - {"processes"}
        )

    def check_resumable(self, config: Config) -> None:
        """Refuse to continue the results of a different configuration.

        Raises:
            UserError: names every key that differs but must not.
        """
        recorded = self.read_results_config()
        if recorded is None:
            return
        free = _PRESENTATION | _LENGTH
        if config.get("lr_scheduler") in _STRETCHED_SCHEDULES:
            free.discard("max_update")
        keys = sorted(_differing(recorded, config) - free)
        if keys:
            changes = "; ".join(
                f"`{key}` was {_shown(recorded.get(key))} and is "
                f"{_shown(config.get(key))}"
                for key in keys
            )
            raise UserError(
                f"`{self.path}` holds results of another configuration: {changes}. "
                f"{_BATCH_HINT if 'processes' in keys else ''}"
                "Give another `run` folder, or resume with the changed configuration "
                "by `--resume-anyway`."
            )

    def record_start(self, config: Config, command_line: str) -> None:
        """Save the configuration and the command of this start."""
        self._finished.unlink(missing_ok=True)
        with write_atomically(self._config) as stream:
            stream.write(f"# python scripts/train.py {self._config}\n")
            yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
        with write_atomically(self._command) as stream:
            stream.write(command_line + "\n")

    def record_end(self, progress: dict[str, float | None]) -> None:
        """Mark the run as complete, with its ``updates`` and ``seconds`` if known."""
        write_json(self._finished, progress)

    def newest_checkpoints(self, count: int, *, by_epochs: bool = False) -> list[Path]:
        """Return the last numbered checkpoints, the oldest first.

        ``save_interval_updates`` or the end of an epoch wrote them. There may be fewer
        than ``count``.

        Raises:
            UserError: there are none, or one in between or after them is missing.
        """
        pattern = _BY_EPOCHS if by_epochs else _BY_UPDATES
        numbered = sorted(
            (int(match[1]), path)
            for path in self.checkpoints.glob("*.pt")
            if (match := pattern.fullmatch(path.name))
        )
        if not numbered:
            kind = "epochs" if by_epochs else "updates"
            option = (
                "no_epoch_checkpoints: false" if by_epochs else "save_interval_updates"
            )
            raise UserError(
                f"`{self.checkpoints}` must hold checkpoints numbered by {kind}, but "
                f"has none. Train with `{option}`."
            )
        newest = numbered[-count:]
        key = "save_interval" if by_epochs else "save_interval_updates"
        self._refuse_gaps([number for number, _ in newest], key)
        return [path for _, path in newest]

    def _refuse_gaps(self, numbers: list[int], key: str) -> None:
        steps = [b - a for a, b in zip(numbers, numbers[1:])]
        default = 1 if key == "save_interval" else min(steps, default=0)
        interval = int(self.read_config().get(key) or default)
        expected = [*numbers[:1], *(number + interval for number in numbers[:-1])]
        missing = [each for each in expected if each not in numbers]
        newest = numbers[-1] + interval
        if interval and newest <= self._read_last_number(key):
            missing.append(newest)
        if missing:
            raise UserError(
                f"`{self.checkpoints}` must hold every checkpoint that `{key}: "
                f"{interval}` asks for, but after {', '.join(map(str, numbers))} "
                f"those of {', '.join(map(str, missing))} are missing. To average "
                "others, name their files."
            )

    def _read_last_number(self, key: str) -> int:
        """Return the update or the complete epochs of the last checkpoint, or 0."""
        if not self.last_checkpoint.is_file():
            return 0
        state = read_checkpoint(self.last_checkpoint)
        if key == "save_interval_updates":
            history = state.get("optimizer_history") or [{}]
            return int(history[-1].get("num_updates", 0))
        iterator = state.get("extra_state", {}).get("train_iterator", {})
        return int(iterator.get("epoch", 1)) - 1

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock that refuses a second training in this folder.

        Raises:
            UserError: another process is training here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another training uses `{self.path}` now.") from None
            except OSError:
                logger.warning("This disk has no file locks: start only one training.")
            yield


def _differing(one: Config, other: Config) -> set[str]:
    keys = {key for key in one | other if not _equal(one.get(key), other.get(key))}
    same = compute_batches_per_update(one) == compute_batches_per_update(other)
    return keys - _BATCH if same else keys


def _equal(one: object, other: object) -> bool:
    """Return whether two values are equal; YAML reads the number ``4e-3`` as text."""
    try:
        return one == other or float(str(one)) == float(str(other))
    except ValueError:
        return False


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
