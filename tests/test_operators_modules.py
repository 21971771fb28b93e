"""The operators as modules, the dimension of the candidates, and the documents."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

from fairseq_plugins.operators import (
    SORTED_OPERATORS,
    SoftTopK,
    SoftTopKLogits,
    SortedSoftTopK,
    TopKSoftmax,
    get_sorted_operator,
    hard_topk_softmax,
    soft_topk,
    soft_topk_logits,
    sorted_soft_topk,
    topk_softmax,
)

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
MODULES = [
    (SoftTopK, soft_topk),
    (SoftTopKLogits, soft_topk_logits),
    (SortedSoftTopK, sorted_soft_topk),
    (TopKSoftmax, topk_softmax),
]


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(29)
    return torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind, function", MODULES)
def test_a_module_equals_its_function(kind, function, scores):
    module = kind(2, epsilon=0.5, dim=1)
    assert torch.equal(module(scores), function(scores, 2, epsilon=0.5, dim=1))
    assert not list(module.parameters())
    if kind is not TopKSoftmax:
        mask = torch.rand(2, 7, 3) < 0.8
        smallest = kind(2, epsilon=0.5, dim=1, largest=False)(scores, mask)
        expected = function(scores, 2, epsilon=0.5, dim=1, mask=mask, largest=False)
        assert torch.equal(smallest, expected)


@pytest.mark.parametrize("kind, function", MODULES)
def test_a_learned_epsilon_starts_at_its_value_and_gets_a_gradient(
    kind, function, scores
):
    module = kind(2, epsilon=0.5, learn_epsilon=True).double()
    result = module(scores)
    torch.testing.assert_close(result, function(scores, 2, epsilon=0.5))
    (result.square() * torch.arange(result.numel()).view(result.shape)).sum().backward()
    assert module.log_epsilon.grad.abs() > 1e-3
    copy = pickle.loads(pickle.dumps(module))
    assert torch.equal(copy(scores), result)
    other = kind(2, epsilon=9.0, learn_epsilon=True).double()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(scores), result)
    assert "k=2, epsilon=0.5, learn_epsilon=True, dim=-1" in repr(module)


@pytest.mark.parametrize("name", SORTED_OPERATORS)
def test_a_sorted_module_may_use_another_operator(name, scores):
    module = SortedSoftTopK(2, epsilon=1.0, operator=name)
    expected = get_sorted_operator(name)(scores, 2, epsilon=1.0)
    assert torch.equal(module(scores), expected)


def test_a_module_refuses_an_epsilon_that_its_function_refuses():
    with pytest.raises(ValueError, match="`epsilon` must be a positive number"):
        SoftTopK(2, epsilon=0.0, learn_epsilon=True)


@pytest.mark.parametrize("dim", [0, 1, -2, -3, 2])
def test_candidates_may_be_in_any_dimension(dim, scores):
    mask = torch.tensor([True, True, False]).expand(2, 7, 3)
    last = scores.movedim(dim, -1)
    shape = last.shape[:-1]
    k = torch.ones(shape, dtype=torch.long)
    epsilon = torch.rand(shape, dtype=torch.float64) + 0.1
    options = {"epsilon": epsilon, "largest": False}
    for function in (soft_topk, soft_topk_logits):
        moved = function(scores, k, mask=mask, dim=dim, **options)
        expected = function(last, k, mask=mask.movedim(dim, -1), **options)
        assert torch.equal(moved, expected.movedim(-1, dim))
    for name in set(SORTED_OPERATORS) - {"sinkhorn"}:
        function = get_sorted_operator(name)
        moved = function(scores, k, mask=mask, dim=dim, **options)
        expected = function(last, k, mask=mask.movedim(dim, -1), **options)
        assert moved.shape == (*scores.shape, 1)
        assert torch.equal(moved.squeeze(-1), expected.squeeze(-1).movedim(-1, dim))
    for function in (
        lambda s, dim: topk_softmax(s, k, epsilon=epsilon, dim=dim),
        lambda s, dim: hard_topk_softmax(s, 2, dim=dim),
    ):
        assert torch.equal(function(scores, dim), function(last, -1).movedim(-1, dim))


def test_a_dimension_that_does_not_exist_is_refused(scores):
    with pytest.raises(IndexError, match="Dimension out of range"):
        soft_topk(scores, 2, epsilon=1.0, dim=3)


def read_examples():
    text = DOCUMENT.read_text()
    section = text.split("## Examples")[1].split("\n## ")[0]
    return re.findall(r"\*\*(.*?)\*\*.*?```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("title, code", read_examples())
def test_the_examples_of_the_document_run(title, code):
    exec(compile(code, title, "exec"), {})  # each ends with an assertion
