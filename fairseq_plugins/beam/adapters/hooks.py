"""Temporary changes of fairseq's modules: outputs, modes and dropout masks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fairseq_plugins.beam.trace import PrefixTree

__all__ = ["SharedDropout", "capture_output", "evaluation_mode", "replace_method"]


@contextlib.contextmanager
def replace_method(
    owner: Any, name: str, function: Callable[..., Any]
) -> Iterator[None]:
    """Replace a method of one object while the block runs."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def capture_output(module: nn.Module) -> Iterator[list[Any]]:
    """Collect the outputs of a module while the block runs."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


@contextlib.contextmanager
def evaluation_mode(decoder: nn.Module) -> Iterator[None]:
    """Switch a decoder's own dropout and activation checkpointing off.

    Independent dropout masks would let competing hypotheses win or lose by chance.
    Checkpointing would run layers again in the backward pass, when the mode of the
    decoder, the masks and the state of the search have changed. Afterwards each module
    has its former mode.
    """
    before = [(module, module.training) for module in decoder.modules()]
    with contextlib.ExitStack() as changes:
        for module, _ in before:
            if hasattr(module, "precheckpoint_forward"):  # --checkpoint-activations
                plain: Any = module.precheckpoint_forward
                changes.enter_context(replace_method(module, "forward", plain))
        decoder.eval()
        try:
            yield
        finally:
            for module, training in before:
                module.training = training


class SharedDropout:
    """Dropout with one mask for all hypotheses of a sentence at a step.

    Competing hypotheses are treated alike, as in beam search optimization (Wiseman and
    Rush, 2016), and scoring a finished search reuses the masks of the search. A mask
    is identified by module, number of the module's call within a pass, and step.

    Args:
        batch_dims: the dropout modules, each with the batch dimension of its input.
        batch_size: number of sentences at the first step.
    """

    def __init__(self, batch_dims: Mapping[Any, int], *, batch_size: int) -> None:
        self._batch_dims = {m: dim for m, dim in batch_dims.items() if m.p > 0}
        self._batch_size = batch_size
        self._masks: dict[tuple[Any, int, int], Tensor] = {}

    @contextlib.contextmanager
    def apply_at_step(self, step: int, sentences: Tensor | None) -> Iterator[None]:
        """Drop units of the slots at one step of a search.

        Args:
            sentences: indices of the sentences that are left; None for all.
        """

        def mask_of(module: Any, call: int, rows: Tensor) -> Tensor:
            mask = self._mask(module, call, step, rows)
            mask = mask if sentences is None else mask.index_select(0, sentences)
            return mask.repeat_interleave(rows.size(0) // len(mask), dim=0)

        with self._replace(mask_of):
            yield

    @contextlib.contextmanager
    def apply_to_tree(self, tree: PrefixTree) -> Iterator[None]:
        """Drop units of all nodes of a tree, which one pass computes."""
        depths = tree.depths.unsqueeze(-1)  # (B, N, 1)
        length = tree.node.size(1)

        def mask_of(module: Any, call: int, rows: Tensor) -> Tensor:
            masks = [self._mask(module, call, at, rows[:, :1]) for at in range(length)]
            where = depths.expand(-1, -1, rows.size(2))
            return torch.cat(masks, dim=1).gather(1, where)

        with self._replace(mask_of):
            yield

    def _mask(self, module: Any, call: int, step: int, rows: Tensor) -> Tensor:
        """Return the units that all sentences keep at a step, shape (B, ...)."""
        key = (module, call, step)
        if key not in self._masks:
            shape = (self._batch_size, *rows.shape[1:])
            mask = torch.empty(shape, dtype=torch.bool, device=rows.device)
            self._masks[key] = mask.bernoulli_(1 - module.p)
        return self._masks[key]

    @contextlib.contextmanager
    def _replace(self, mask_of: Callable[..., Tensor]) -> Iterator[None]:
        with contextlib.ExitStack() as changes:
            for module, batch_dim in self._batch_dims.items():
                drop = _create_dropout(module, batch_dim, mask_of)
                changes.enter_context(replace_method(module, "forward", drop))
            yield


def _create_dropout(
    module: Any, batch_dim: int, mask_of: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    num_calls = 0

    def drop(inputs: Tensor, inplace: bool = False) -> Tensor:
        nonlocal num_calls
        rows = inputs.movedim(batch_dim, 0)
        mask = mask_of(module, num_calls, rows)
        num_calls += 1
        return (rows * mask / (1 - module.p)).movedim(0, batch_dim)

    return drop
