"""Check a training before it starts: values, data, criterion and model."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy

from fairseq_plugins.compat.checkpoints import read_checkpoint
from fairseq_plugins.training.config import Config
from fairseq_plugins.training.fairseq_options import parse_options
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError

__all__ = ["check_training"]

_PROBABILITY = re.compile(r".*dropout.*|.*layerdrop|label_smoothing")
_POSITIVE = re.compile(
    r"(encoder|decoder)_(layers|attention_heads|hidden_size|(ffn_|out_)?embed_dim)"
    r"|max_tokens(_valid)?|batch_size(_valid)?|update_freq"
    r"|(log|save|validate)_interval"
)
_NOT_NEGATIVE = re.compile(
    r"lr|clip_norm|weight_decay|warmup_updates|max_update|max_epoch"
    r"|(save|validate)_interval_updates"
)
# Metrics of validation that an option switches on.
_OPTIONAL_METRICS = {"bleu": "eval_bleu", "accuracy": "report_accuracy"}


def check_training(
    config: Config, command: list[str], *, build_model: bool = False
) -> None:
    """Check what fairseq would find out late or report without the option's name.

    Args:
        config: with its inputs pinned.
        command: of ``fairseq-train`` for this configuration.
        build_model: also build the model, and compute the loss of one sentence with it.

    Raises:
        UserError: names the thing, the rule and the value.
    """
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parsed = parse_options(command[command.index("fairseq_cli.train") + 1 :])
    options = vars(parsed)
    _check_values(options)
    _check_metric(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hydra's
        cfg = convert_namespace_to_omegaconf(parsed)
    with _explain("the data"):
        task = tasks.setup_task(cfg.task)
        task.load_dataset("train", epoch=1)
    _check_lengths(task.dataset("train"), options)
    with _explain("the criterion"):
        criterion = task.build_criterion(cfg.criterion)
    _check_checkpoints(config, options, task, criterion)
    if build_model:
        with _explain("the model"):
            model = task.build_model(cfg.model)
        with _explain("the loss of a sentence"):
            dataset = task.dataset("train")
            criterion.train()(model.train(), dataset.collater([dataset[0]]))


@contextlib.contextmanager
def _explain(subject: str) -> Iterator[None]:
    """Turn any error into one that names its cause, once."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        if not (isinstance(error, ValueError) and reason.startswith("`")):
            reason = f"fairseq cannot make {subject} of this configuration: {reason}"
        raise UserError(reason if reason[-1] in ".?!" else f"{reason}.") from error


def _check_values(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        for each in values:
            if isinstance(each, bool) or not isinstance(each, (int, float)):
                continue
            for pattern, is_met, rule in (
                (_PROBABILITY, 0 <= each <= 1, "between 0 and 1"),
                (_POSITIVE, each > 0, "positive"),
                (_NOT_NEGATIVE, each >= 0, "0 or more"),
            ):
                if pattern.fullmatch(name) and not is_met:
                    raise UserError(f"`{name}` must be {rule}, but is {each}.")
    for part in ("encoder", "decoder"):
        heads, width = (
            options.get(f"{part}_{size}") for size in ("attention_heads", "embed_dim")
        )
        if heads and width and width % heads:
            raise UserError(
                f"`{part}_attention_heads` must divide `{part}_embed_dim` ({width}), "
                f"but is {heads}."
            )


def _check_metric(options: Mapping[str, Any]) -> None:
    metric = options["best_checkpoint_metric"]
    if options["disable_validation"] or metric not in _OPTIONAL_METRICS:
        return
    switch = _OPTIONAL_METRICS[metric]
    if not options.get(switch):
        raise UserError(
            f"`{switch}` must be true with `best_checkpoint_metric: {metric}`, but is "
            "not given."
        )
    if not options["maximize_best_checkpoint_metric"]:
        raise UserError(
            "`maximize_best_checkpoint_metric` must be true with "
            f"`best_checkpoint_metric: {metric}`, of which more is better."
        )


def _check_lengths(dataset: Any, options: Mapping[str, Any]) -> None:
    """Refuse a batch that is smaller than the longest sentence of training."""
    max_tokens = options["max_tokens"]
    if max_tokens is None or not hasattr(dataset, "num_tokens_vec"):
        return
    indices = numpy.arange(len(dataset))
    limits = [options.get(f"max_{side}_positions") for side in ("source", "target")]
    if all(limits):  # fairseq leaves out longer sentences
        indices, _ = dataset.filter_indices_by_size(indices, tuple(limits))
    longest = max(dataset.num_tokens_vec(indices), default=0)
    if longest > max_tokens:
        raise UserError(
            f"`max_tokens` must be at least {longest}, the length of the longest "
            f"sentence of training, but is {max_tokens}."
        )


def _check_checkpoints(
    config: Config, options: Mapping[str, Any], task: Any, criterion: Any
) -> None:
    last = RunFolder(Path(config["run"])).last_checkpoint
    if last.is_file():
        history = read_checkpoint(last)["optimizer_history"]
        before = history[-1].get("criterion_name") if history else None
        if before not in (None, type(criterion).__name__):
            raise UserError(
                f"`criterion` must be that of `{last}` ({before}), but is "
                f"{options['criterion']}. To continue with another criterion, use a "
                f"new `run` and `start_from: {last}`."
            )
    elif "start_from" in config:
        parameters = read_checkpoint(Path(config["start_from"]))["model"]
        for part, dictionary in (
            ("encoder", task.source_dictionary),
            ("decoder", task.target_dictionary),
        ):
            embedding = parameters.get(f"{part}.embed_tokens.weight")
            if (
                embedding is not None
                and dictionary
                and len(dictionary) != len(embedding)
            ):
                raise UserError(
                    f"`start_from` must have the vocabulary of `data`, but the {part} "
                    f"of `{config['start_from']}` has {len(embedding)} subwords and "
                    f"the dictionary {len(dictionary)}."
                )
