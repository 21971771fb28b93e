"""The operators under `torch.func`, forward-mode differentiation and meta tensors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from fairseq_plugins.operators import (
    hard_topk_softmax,
    nested_soft_topk,
    neuralsort_topk,
    soft_topk,
    soft_topk_logits,
    softsort_topk,
    sorted_soft_topk,
    topk_softmax,
)

OPERATORS = [
    soft_topk,
    soft_topk_logits,
    sorted_soft_topk,
    nested_soft_topk,
    softsort_topk,
    neuralsort_topk,
    topk_softmax,
    lambda scores, k, *, epsilon: hard_topk_softmax(scores, k),
]
SCORES = torch.randn(4, 7, generator=torch.Generator().manual_seed(30)).double()


@pytest.fixture(params=OPERATORS, ids=lambda o: getattr(o, "__name__", "operator"))
def function(request):
    return lambda scores: request.param(scores, 3, epsilon=0.5)


def test_vmap_over_rows_or_batches_equals_the_batch(function):
    expected = function(SCORES)
    torch.testing.assert_close(vmap(function)(SCORES), expected)
    torch.testing.assert_close(vmap(function, in_dims=1)(SCORES.t()), expected)
    batches = SCORES.view(2, 2, 7)
    torch.testing.assert_close(vmap(function)(batches), function(batches))


def test_first_derivatives_equal_those_of_autograd(function):
    expected = torch.autograd.functional.jacobian(function, SCORES)
    torch.testing.assert_close(jacrev(function)(SCORES), expected)
    torch.testing.assert_close(jacfwd(function)(SCORES), expected)
    tangent = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).double()
    _, change = jvp(function, (SCORES,), (tangent,))
    torch.testing.assert_close(change, (expected * tangent).sum((-2, -1)))


def test_gradients_per_row_and_hessians_equal_those_of_autograd(function):
    def loss(scores):
        result = function(scores)
        return (result * torch.arange(result.numel()).view(result.shape).cos()).sum()

    per_row = torch.stack([torch.autograd.functional.jacobian(loss, s) for s in SCORES])
    torch.testing.assert_close(vmap(grad(loss))(SCORES), per_row)
    expected = torch.autograd.functional.hessian(loss, SCORES[0])
    torch.testing.assert_close(hessian(loss)(SCORES[0]), expected)
    torch.testing.assert_close(jacrev(jacrev(loss))(SCORES[0]), expected)


@pytest.mark.parametrize("operator", [soft_topk, soft_topk_logits, topk_softmax])
def test_k_and_epsilon_per_row_work_with_transforms(operator):
    k = torch.tensor([1.5, 2.0, 3.2, 6.5], dtype=torch.float64)
    epsilon = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64)

    def function(scores, k, epsilon):
        return operator(scores, k, epsilon=epsilon)

    arguments = (SCORES, k, epsilon)
    torch.testing.assert_close(vmap(function)(*arguments), function(*arguments))
    shared = vmap(function, in_dims=(None, 0, None))(SCORES[0], k, epsilon[0])
    expected = function(SCORES[:1].expand(4, -1), k, epsilon[:1].expand(4))
    torch.testing.assert_close(shared, expected)
    expected = torch.autograd.functional.jacobian(function, arguments)
    for transform in (jacrev, jacfwd):
        found = transform(function, argnums=(0, 1, 2))(*arguments)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other)


def test_rows_that_select_all_or_nothing_have_zero_forward_derivatives():
    scores = SCORES[:3].clone()
    scores[0, 2:] = -torch.inf
    k = torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64)
    tangent = torch.ones_like(scores).cumsum(-1)
    _, change = jvp(lambda s: soft_topk(s, k, epsilon=0.5), (scores,), (tangent,))
    assert (change[:2] == 0).all() and change[2].abs().sum() > 0


def test_long_rows_work_with_transforms():
    scores = torch.randn(2, 5000, generator=torch.Generator().manual_seed(2)).double()

    def loss(values):
        return soft_topk(values, 5, epsilon=0.1).square().sum()

    expected = torch.autograd.functional.jacobian(loss, scores)
    torch.testing.assert_close(grad(loss)(scores), expected)


def test_operators_give_shapes_without_values(function):
    expected = function(SCORES)
    on_meta = function(SCORES.to("meta"))
    assert on_meta.is_meta and on_meta.shape == expected.shape
    with FakeTensorMode() as mode:
        fake = function(mode.from_tensor(SCORES))
        assert fake.shape == expected.shape and fake.dtype == expected.dtype
        long = soft_topk(torch.zeros(2, 5000), 5, epsilon=0.1)
        assert long.shape == (2, 5000)
