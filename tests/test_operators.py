"""All operators: properties on arbitrary scores, other solvers, modes of PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import expit, logsumexp

from fairseq_plugins.operators import (
    nested_soft_topk,
    neuralsort_topk,
    pooled_soft_topk,
    sinkhorn,
    soft_topk,
    soft_topk_logits,
    softsort_topk,
    sorted_soft_topk,
)

FEW = settings(max_examples=60, deadline=None, derandomize=True)
EXACT = {"rtol": 0, "atol": 1e-10}


@st.composite
def problems(draw, max_scale=2.0, min_epsilon=-2.0, max_n=9):
    """Return scores (n,), k < n, and epsilon; ties and near ties are frequent."""
    n = draw(st.integers(2, max_n))
    k = draw(st.integers(1, n - 1))
    number = st.one_of(
        st.floats(-max_scale, max_scale), st.integers(-3, 3).map(lambda i: i / 4)
    )
    scores = draw(st.lists(number, min_size=n, max_size=n))
    epsilon = 10 ** draw(st.floats(min_epsilon, 3.0))
    return torch.tensor(scores, dtype=torch.float64), k, epsilon


def bisect(scores, k, epsilon):
    """Memberships by scipy's bracketing root finder."""
    values, temperature = scores.numpy(), epsilon / 2
    low = values.min() - temperature * 40
    high = values.max() + temperature * 40

    def surplus(tau):
        return expit((values - tau) / temperature).sum() - k

    return expit((values - brentq(surplus, low, high, xtol=1e-15)) / temperature)


def minimize_dual(scores, k, epsilon):
    """The sorted plan by scipy's quasi-Newton minimiser on the dual."""
    slope = 2 * np.outer(scores.numpy(), np.arange(k, -1, -1)) / epsilon
    capacities = np.append(np.ones(k), len(scores) - k)

    def dual(potentials):
        logits = slope + np.append(potentials, 0.0)
        log_total = logsumexp(logits, axis=1, keepdims=True)
        plan = np.exp(logits - log_total)
        value = log_total.sum() - capacities[:k] @ potentials
        return value, plan[:, :k].sum(0) - capacities[:k]

    options = {"gtol": 1e-12, "maxiter": 2000, "ftol": 1e-16}
    found = minimize(dual, np.zeros(k), jac=True, method="L-BFGS-B", options=options)
    logits = slope + np.append(found.x, 0.0)
    plan = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    return plan[:, :k], np.abs(dual(found.x)[1]).max()


@FEW
@given(problems())
def test_memberships_equal_scipys_root(problem):
    scores, k, epsilon = problem
    exact = soft_topk(scores, k, epsilon=epsilon)
    # A root is only found up to the rounding of its own value, hence the tolerance.
    np.testing.assert_allclose(exact, bisect(scores, k, epsilon), rtol=0, atol=1e-9)


@FEW
@given(problems(max_scale=1.0, min_epsilon=-0.3, max_n=6))
def test_memberships_and_gradients_equal_sinkhorns(problem):
    scores, k, epsilon = problem
    capacities = torch.tensor([k, len(scores) - k])
    anchors = torch.tensor([0.0, 1.0], dtype=torch.float64)
    weights = torch.linspace(-1, 1, len(scores), dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    oracle = sinkhorn(-leaf, anchors, capacities, epsilon=epsilon, max_iterations=3000)
    assume(oracle.residual < 1e-11)
    exact = soft_topk(leaf, k, epsilon=epsilon)
    torch.testing.assert_close(exact, oracle.plan[:, 0], **EXACT)
    gradients = [
        torch.autograd.grad((each * weights).sum(), leaf)[0]
        for each in (exact, oracle.plan[:, 0])
    ]
    torch.testing.assert_close(*gradients, **EXACT)


@FEW
@given(problems(max_scale=1.0, min_epsilon=-0.3, max_n=6))
def test_assignments_and_gradients_equal_sinkhorns(problem):
    scores, k, epsilon = problem
    capacities = torch.tensor([1] * k + [len(scores) - k])
    anchors = torch.arange(k + 1, dtype=torch.float64)
    weights = torch.linspace(-1, 1, len(scores) * k).double().view(-1, k).cos()
    leaf = scores.clone().requires_grad_()
    oracle = sinkhorn(-leaf, anchors, capacities, epsilon=epsilon, max_iterations=3000)
    assume(oracle.residual < 1e-11)
    exact = sorted_soft_topk(leaf, k, epsilon=epsilon)
    torch.testing.assert_close(exact, oracle.plan[:, :k], **EXACT)
    gradients = [
        torch.autograd.grad((each * weights).sum(), leaf)[0]
        for each in (exact, oracle.plan[:, :k])
    ]
    torch.testing.assert_close(*gradients, **EXACT)


@FEW
@given(problems(max_scale=1.0, min_epsilon=-0.7, max_n=7))
def test_assignments_equal_scipys_minimum(problem):
    scores, k, epsilon = problem
    plan, residual = minimize_dual(scores, k, epsilon)
    assume(residual < 1e-8)
    exact = sorted_soft_topk(scores, k, epsilon=epsilon)
    np.testing.assert_allclose(exact, plan, rtol=0, atol=1e-5)


@FEW
@given(problems(max_scale=1e4, min_epsilon=-6.0))
def test_marginals_hold_at_every_scale(problem):
    scores, k, epsilon = problem
    memberships = soft_topk(scores, k, epsilon=epsilon)
    assert abs(memberships.sum() - k) < 1e-12
    assert memberships.min() >= 0 and memberships.max() <= 1
    for operator in (sorted_soft_topk, nested_soft_topk):
        assignment = operator(scores, k, epsilon=epsilon)
        assert (assignment.sum(0) - 1).abs().max() < 1e-11
        assert assignment.sum(1).max() < 1 + 1e-12 and assignment.min() >= -1e-15


@FEW
@given(problems(), st.randoms(use_true_random=False))
def test_permuting_scores_permutes_results(problem, random):
    scores, k, epsilon = problem
    order = list(range(len(scores)))
    random.shuffle(order)
    for operator in (soft_topk, sorted_soft_topk, nested_soft_topk):
        straight = operator(scores, k, epsilon=epsilon)[order]
        permuted = operator(scores[order], k, epsilon=epsilon)
        torch.testing.assert_close(straight, permuted, rtol=0, atol=1e-11)


@FEW
@given(problems(), st.integers(-1000, 1000), st.floats(0.01, 100))
def test_shifts_and_joint_scaling_change_nothing(problem, shift, factor):
    scores, k, epsilon = problem
    for operator in (soft_topk, sorted_soft_topk, nested_soft_topk):
        plain = operator(scores, k, epsilon=epsilon)
        moved = operator(factor * (scores + shift), k, epsilon=factor * epsilon)
        torch.testing.assert_close(plain, moved, rtol=0, atol=1e-9)


@FEW
@given(problems())
def test_better_scores_get_more(problem):
    scores, k, epsilon = problem
    order = scores.argsort(descending=True)
    logits = soft_topk_logits(scores, k, epsilon=epsilon)[order]
    assert (logits.diff() <= 0).all()
    upto = sorted_soft_topk(scores, k, epsilon=epsilon).cumsum(-1)[order]
    assert (upto.diff(dim=0) <= 1e-12).all()


@FEW
@given(problems())
def test_raising_a_score_raises_its_membership_and_lowers_the_others(problem):
    scores, k, epsilon = problem
    jacobian = torch.autograd.functional.jacobian(
        lambda values: soft_topk(values, k, epsilon=epsilon), scores
    )
    others = jacobian - torch.diag(jacobian.diagonal())
    assert (jacobian.diagonal() >= 0).all() and (others <= 1e-15).all()
    assert jacobian.sum(0).abs().max() < 1e-9 / epsilon


@FEW
@given(problems(), problems())
def test_rows_are_independent(one, other):
    scores, k, epsilon = one
    mate = other[0].repeat(9)[: len(scores)]
    assume(len(mate) == len(scores))
    for operator in (soft_topk, sorted_soft_topk):
        alone = operator(scores, k, epsilon=epsilon)
        together = operator(torch.stack([scores, mate]), k, epsilon=epsilon)[0]
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


@FEW
@given(problems(), st.data())
def test_masking_is_deleting(problem, data):
    scores, k, epsilon = problem
    size = len(scores)
    valid = st.lists(st.booleans(), min_size=size, max_size=size)
    mask = torch.tensor(data.draw(valid))
    assume(mask.sum() >= k)
    for operator in (soft_topk, sorted_soft_topk, nested_soft_topk):
        masked = operator(scores, k, epsilon=epsilon, mask=mask)
        deleted = operator(scores[mask], k, epsilon=epsilon)
        torch.testing.assert_close(masked[mask], deleted, rtol=0, atol=1e-12)
        assert (masked[~mask] == 0).all()


@FEW
@given(problems(max_scale=10.0, min_epsilon=-4.0))
def test_bias_is_within_theorem_2(problem):
    # Xie et al. (2020): |plan - hard plan|_F <= eps (ln n + ln 2) / (n gap).
    scores, k, epsilon = problem
    n = len(scores)
    ordered = scores.sort(descending=True).values
    gap = ordered[k - 1] - ordered[k]
    assume(gap > 1e-6)
    hard = torch.zeros_like(scores).scatter(0, scores.topk(k).indices, 1.0)
    selected = (soft_topk(scores, k, epsilon=epsilon) - hard).norm() / n
    distance = math.sqrt(2) * selected  # both columns of the plan
    assert distance <= epsilon * (math.log(n) + math.log(2)) / (n * gap) + 1e-12


@pytest.mark.parametrize("operator", [soft_topk, sorted_soft_topk, nested_soft_topk])
def test_bias_vanishes_with_epsilon(operator):
    scores = torch.tensor([0.3, 2.0, 1.1, -0.4], dtype=torch.float64)
    hard = operator(scores, 2, epsilon=1e-9)
    biases = [
        float((operator(scores, 2, epsilon=epsilon) - hard).abs().max())
        for epsilon in (10, 1, 0.3, 0.1, 0.03)
    ]
    assert biases == sorted(biases, reverse=True) and biases[-1] < 1e-9


OPERATORS = [
    soft_topk,
    soft_topk_logits,
    sorted_soft_topk,
    nested_soft_topk,
    softsort_topk,
    neuralsort_topk,
]


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(25)
    return torch.randn(4, 30, generator=generator).requires_grad_()


def value_and_gradient(function, scores):
    value = function(scores)
    (gradient,) = torch.autograd.grad(value.square().sum(), scores)
    return value, gradient


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiled_in_one_graph_gives_the_same(operator, scores):
    def function(values):
        return operator(values, 3, epsilon=0.5)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        value_and_gradient(compiled, scores), value_and_gradient(function, scores)
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [30, 6000])
def test_autocast_does_not_change_results(operator, n):
    if n > 30 and operator in (nested_soft_topk, sorted_soft_topk):
        pytest.skip("the sorted operators have one path for all lengths")
    generator = torch.Generator().manual_seed(26)
    scores = torch.randn(3, n, generator=generator).requires_grad_()

    def function(values):
        return operator(values, 3, epsilon=0.1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(function, scores)
    for got, expected in zip(inside, value_and_gradient(function, scores)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_training_works_after_inference_mode(operator, scores):
    with torch.inference_mode():
        before = operator(scores, 3, epsilon=0.5)
    after = operator(scores, 3, epsilon=0.5)
    after.square().sum().backward()
    assert torch.equal(before, after) and scores.grad.abs().sum() > 0


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_and_gradients_keep_the_dtype(operator, dtype, scores):
    leaf = scores.detach().to(dtype).requires_grad_()
    result = operator(leaf, 3, epsilon=0.5)
    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    assert result.dtype == gradient.dtype == dtype
    exact = operator(leaf.float(), 3, epsilon=0.5)
    torch.testing.assert_close(result.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [30, 6000])
def test_gpu_and_cpu_agree(operator, n):
    generator = torch.Generator().manual_seed(27)
    scores = torch.randn(3, n, generator=generator).requires_grad_()
    results = []
    for device in ("cpu", "cuda"):
        value = operator(scores.to(device), 3, epsilon=0.1)
        (gradient,) = torch.autograd.grad(value.square().sum(), scores)
        results.append((value.cpu(), gradient))
    for cpu, gpu in zip(*results):
        torch.testing.assert_close(cpu, gpu, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_pool_is_certified():
    scores = torch.randn(3, 50_000, device="cuda")
    pooled = pooled_soft_topk(scores, 5, epsilon=0.05)
    dense = torch.zeros_like(scores).scatter(1, pooled.members, pooled.memberships)
    exact = soft_topk(scores.double(), 5, epsilon=0.05)
    assert (dense - exact).abs().max() <= pooled.bound.max() + 1e-6


def test_operators_do_not_import_fairseq():
    code = "import sys, fairseq_plugins.operators; print('fairseq' in sys.modules)"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr
