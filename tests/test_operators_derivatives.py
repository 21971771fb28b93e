"""First and second derivatives of every operator, in every form of its arguments."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq_plugins.operators import (
    baselines,
    get_sorted_operator,
    hard_topk_softmax,
    pooled_soft_topk,
    sinkhorn,
    soft_knn_loss,
    soft_topk,
    soft_topk_logits,
    topk_softmax,
)

SCORES = torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).double()
MASK = torch.ones(3, 7, dtype=torch.bool)
MASK[0, 2] = MASK[1, 2:] = MASK[2, 3] = False  # row 1 has fewer than k entries
EPSILON = torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64)
K = torch.tensor([1.5, 2.3, 4.2], dtype=torch.float64)
RANKS = torch.tensor([1, 2, 3])


def logits_without_infinities(scores, k, *, mask=None, **options):
    logits = soft_topk_logits(scores, k, mask=mask, **options)
    return torch.where(logits.abs() < 1e300, logits, 0.0)  # -inf, or selects all


def masked_topk_softmax(scores, k, *, epsilon, mask=None):
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return topk_softmax(scores, k, epsilon=epsilon)


def pooled(scores, k, **options):
    return pooled_soft_topk(scores, k, **options).memberships


def by_two_targets(scores, k, *, epsilon, mask=None):
    anchors, capacities = torch.arange(2.0), torch.tensor([4.0, 3.0])
    options = {"epsilon": epsilon, "mask": mask, "max_iterations": 20}
    return sinkhorn(scores, anchors, capacities, **options).plan


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch):
    monkeypatch.setattr(baselines, "PUBLISHED_ITERATIONS", 20)


# Operator, and whether epsilon and k may be tensors with gradients.
OPERATORS = {
    "soft_topk": (soft_topk, True, K),
    "soft_topk_logits": (logits_without_infinities, True, K),
    "topk_softmax": (masked_topk_softmax, True, K),
    "pooled_soft_topk": (pooled, True, None),
    "sinkhorn": (by_two_targets, False, None),
    "ot": (get_sorted_operator("ot"), True, RANKS),
    "nested": (get_sorted_operator("nested"), True, RANKS),
    "softsort": (get_sorted_operator("softsort"), True, RANKS),
    "neuralsort": (get_sorted_operator("neuralsort"), True, RANKS),
    "sinkhorn_topk": (get_sorted_operator("sinkhorn"), False, RANKS),
}
FORMS = ["numbers", "numbers, nearly hard", "mask", "epsilon", "k", "k, epsilon, mask"]


def build_problem(name, form):
    """Return a function and its differentiable arguments."""
    operator, may_learn_epsilon, k_per_row = OPERATORS[name]
    if "epsilon" in form and not may_learn_epsilon:
        pytest.skip("epsilon is a number for this operator")
    if "k" in form and k_per_row is None:
        pytest.skip("k is a number for this operator")
    if "hard" in form and not may_learn_epsilon:
        pytest.skip("Sinkhorn's iteration does not converge")
    options = {"mask": MASK} if "mask" in form else {}
    epsilon = 0.02 if "hard" in form else 0.5
    arguments = [SCORES.clone()]
    if "epsilon" in form:
        arguments.append(EPSILON.clone())
    if "k" in form and k_per_row is K:
        arguments.append(K.clone())

    def function(scores, *rest):
        values = list(rest)
        epsilons = values.pop(0) if "epsilon" in form else epsilon
        k = values.pop(0) if values else k_per_row if "k" in form else 3
        return operator(scores, k, epsilon=epsilons, **options)

    return function, [argument.requires_grad_() for argument in arguments]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives_are_those_of_the_function(name, form):
    function, arguments = build_problem(name, form)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_penalty_on_the_gradient_adds_its_derivative_to_that_of_the_loss(name, form):
    # `create_graph=True` must not drop second-order terms without an error.
    function, arguments = build_problem(name, form)

    def loss(*values):
        result = function(*values)
        weights = torch.arange(result.numel()).view(result.shape).cos()
        return (result * weights).sum()

    def total(*values):
        value = loss(*values)
        gradients = torch.autograd.grad(value, values, create_graph=True)
        return value + sum(gradient.square().sum() for gradient in gradients)

    assert torch.autograd.gradcheck(total, arguments, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("selection", ["soft", "neuralsort", "softmax", "hard"])
def test_the_loss_of_neighbors_has_both_derivatives(selection):
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(4, 2, generator=generator).double().requires_grad_()
    references = torch.randn(6, 2, generator=generator).double().requires_grad_()
    epsilon = torch.tensor([0.5, 1.0, 2.0, 3.0]).double().requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 1, 0])

    def function(queries, references, epsilon):
        return soft_knn_loss(
            queries,
            labels[:4],
            references,
            labels,
            k=3,
            epsilon=epsilon,
            num_classes=2,
            selection=selection,
        )

    arguments = (queries, references, epsilon)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_hard_weights_have_both_derivatives():
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: hard_topk_softmax(s, 3), scores)


def test_the_loss_of_no_queries_is_zero():
    queries = torch.zeros(0, 2, requires_grad=True)
    labels = torch.tensor([0, 1, 0])
    loss = soft_knn_loss(
        queries,
        labels[:0],
        torch.eye(3)[:, :2],
        labels,
        k=1,
        epsilon=1.0,
        num_classes=2,
    )
    loss.backward()
    assert loss == 0 and queries.grad.shape == (0, 2)


def test_a_compiled_graph_refuses_second_derivatives():
    torch.compiler.reset()
    compiled = torch.compile(soft_topk, backend="aot_eager")
    scores = SCORES.clone().requires_grad_()
    loss = compiled(scores, 3, epsilon=0.5)[:, 0].sum()
    with pytest.raises(RuntimeError, match="double backward"):
        (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
        (loss + gradient.square().sum()).backward()
