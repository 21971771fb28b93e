"""The operators under torch.compile, autocast, inference mode, on a GPU."""

from __future__ import annotations

import pytest
import torch

from fairseq_plugins.operators import (
    nested_soft_topk,
    neuralsort_topk,
    pooled_soft_topk,
    soft_topk,
    soft_topk_logits,
    softsort_topk,
    sorted_soft_topk,
)

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
def test_autocast_does_not_reach_the_maths(operator, n):
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
def test_inference_mode_leaves_nothing_behind_that_breaks_training(operator, scores):
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
def test_gpu_gives_what_cpu_gives(operator, n):
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
