"""SOFT top-k memberships and logits: values, derivatives, edge cases, convergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from fairseq_plugins.operators import sinkhorn, soft_topk, soft_topk_logits

EPSILONS = (1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4)
ALL_EPSILONS = (1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 1e3)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(20)


def two_target_plan(scores, k, epsilon):
    n = scores.size(-1)
    anchors = torch.tensor([0.0, 1.0], dtype=scores.dtype)
    return sinkhorn(-scores, anchors, torch.tensor([k, n - k]), epsilon=epsilon)


def test_published_example_is_reproduced():
    # google-research/soft_topk/demo.ipynb: cost divided by its maximum, 36; smallest.
    scores = torch.tensor([5.0, 2, 3, 4, 1, 6], dtype=torch.float64, requires_grad=True)
    memberships = soft_topk(scores, 3, epsilon=0.05 * 36, largest=False)
    memberships[1:4].sum().backward()
    expected = [0.15886909, 0.84113085, 0.63542354, 0.36457655, 0.9414631, 0.05853688]
    gradient = [0.10541585, -0.04306151, -0.07465184, -0.07465144, 0.04347444]
    torch.testing.assert_close(
        memberships.tolist(), expected, rtol=0, atol=1e-6, check_dtype=False
    )
    torch.testing.assert_close(
        scores.grad[:5].tolist(), gradient, rtol=0, atol=1e-6, check_dtype=False
    )


@pytest.mark.parametrize("n, k, epsilon", [(6, 1, 2.0), (12, 3, 1.0), (40, 39, 0.7)])
def test_memberships_equal_the_converged_sinkhorn_plan(n, k, epsilon, rng):
    scores = torch.randn(4, n, generator=rng, dtype=torch.float64)
    oracle = two_target_plan(scores, k, epsilon)
    assert oracle.residual.max() < 1e-11
    exact = soft_topk(scores, k, epsilon=epsilon)
    torch.testing.assert_close(exact, oracle.plan[..., 0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("operator", [soft_topk, soft_topk_logits])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
def test_first_and_second_derivatives_are_those_of_the_function(operator, epsilon, rng):
    scores = torch.randn(2, 6, generator=rng, dtype=torch.float64, requires_grad=True)

    def function(values):
        return operator(values, 2, epsilon=epsilon)

    assert torch.autograd.gradcheck(function, scores)
    assert torch.autograd.gradgradcheck(function, scores)


@pytest.mark.parametrize("operator", [soft_topk, soft_topk_logits])
def test_epsilon_may_differ_by_row_and_has_a_gradient(operator, rng):
    scores = torch.randn(2, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    together = operator(scores, 2, epsilon=epsilon)
    for row in range(2):
        alone = operator(scores[row], 2, epsilon=epsilon[row].item())
        torch.testing.assert_close(together[row], alone)
    assert torch.autograd.gradcheck(
        lambda s, e: operator(s, 2, epsilon=e), (scores, epsilon)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_memberships_are_exact_to_rounding(dtype, epsilon, scale, rng):
    scores = (scale * torch.randn(64, 50, generator=rng)).to(dtype)
    memberships = soft_topk(scores, 5, epsilon=epsilon)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    total = memberships.double().sum(-1)
    torch.testing.assert_close(total, torch.full_like(total, 5), rtol=tolerance, atol=0)
    exact = soft_topk(scores.double(), 5, epsilon=epsilon)
    torch.testing.assert_close(memberships.double(), exact, rtol=0, atol=5e-7)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_float32_logits_and_gradients_are_relatively_exact(epsilon, rng):
    scores = torch.randn(64, 50, generator=rng)
    results = []
    for values in (scores, scores.double()):
        values = values.clone().requires_grad_()
        logits = soft_topk_logits(values, 5, epsilon=epsilon)
        soft_topk(values, 5, epsilon=epsilon)[:, :9].sum().backward()
        results.append((logits.double(), values.grad.double()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-6, atol=2e-6)
    largest = results[1][1].abs().amax(-1, keepdim=True)
    assert ((results[0][1] - results[1][1]).abs() <= 1e-4 * largest + 1e-30).all()


def test_hard_limit_is_the_indicator_of_topk(rng):
    scores = torch.randn(32, 40, generator=rng)
    hard = torch.zeros_like(scores).scatter(-1, scores.topk(4).indices, 1.0)
    torch.testing.assert_close(soft_topk(scores, 4, epsilon=1e-6), hard)


def test_large_epsilon_spreads_evenly(rng):
    memberships = soft_topk(torch.randn(8, 10, generator=rng), 3, epsilon=1e6)
    torch.testing.assert_close(memberships, torch.full((8, 10), 0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("operator", [soft_topk, soft_topk_logits])
def test_a_mask_deletes(operator, largest, rng):
    scores = torch.randn(1, 9, generator=rng, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0]).bool()
    options = {"epsilon": 0.4, "largest": largest}
    masked = operator(scores, 3, mask=mask, **options)
    short = operator(scores[:, mask], 3, **options)
    torch.testing.assert_close(masked[:, mask], short)
    assert (masked[:, ~mask].sigmoid() <= 0.5).all()  # 0 or -inf
    (from_masked,) = torch.autograd.grad(masked[:, mask][:, 0].sum(), scores)
    (from_short,) = torch.autograd.grad(short[:, 0].sum(), scores)
    torch.testing.assert_close(from_masked, from_short)


def test_minus_infinity_deletes_too(rng):
    scores = torch.randn(3, 7, generator=rng)
    mask = torch.rand(3, 7, generator=rng) < 0.8
    masked = soft_topk(scores, 2, epsilon=0.5, mask=mask)
    deleted = soft_topk(scores.masked_fill(~mask, -math.inf), 2, epsilon=0.5)
    assert torch.equal(masked, deleted)


@pytest.mark.parametrize("num_valid", [0, 1, 3])
def test_a_row_with_too_few_candidates_selects_them_all_without_gradient(num_valid):
    scores = torch.randn(2, 6, requires_grad=True)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, num_valid:] = False
    logits = soft_topk_logits(scores, 3, epsilon=0.5, mask=mask)
    memberships = soft_topk(scores, 3, epsilon=0.5, mask=mask)
    assert torch.equal(memberships[0], mask[0].float())
    assert torch.equal(logits[0] > 0, mask[0])
    loss = -logsigmoid(logits[mask]).sum() + memberships.square().sum()
    loss.backward()
    assert torch.equal(scores.grad[0], torch.zeros(6))
    assert scores.grad[1].abs().sum() > 0 and scores.grad.isfinite().all()


def test_selecting_all_gives_ones_and_no_gradient():
    scores = torch.tensor([[3.0, -1.0, -math.inf]], requires_grad=True)
    memberships = soft_topk(scores, 3, epsilon=0.1)
    memberships.sum().backward()
    assert memberships.tolist() == [[1, 1, 0]]
    assert torch.equal(scores.grad, torch.zeros(1, 3))
    assert soft_topk(torch.zeros(2, 1), 1, epsilon=1.0).tolist() == [[1], [1]]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_ties_share_equally(epsilon):
    all_tied = soft_topk(torch.full((2, 8), -200.0), 3, epsilon=epsilon)
    torch.testing.assert_close(all_tied, torch.full((2, 8), 3 / 8))
    many = soft_topk(torch.zeros(2, 3000), 20, epsilon=epsilon)
    expected = torch.full((2, 3000), 20 / 3000)
    torch.testing.assert_close(many, expected, rtol=2e-6, atol=0)
    pair = soft_topk(torch.tensor([9.0, 5.0, 5.0, -9.0]), 2, epsilon=1e-3)
    torch.testing.assert_close(pair, torch.tensor([1.0, 0.5, 0.5, 0.0]))


def test_loss_on_a_candidate_without_a_chance_stays_finite():
    scores = torch.tensor([0.0, -1.0, -2.0, -200.0], requires_grad=True)
    loss = -logsigmoid(soft_topk_logits(scores, 2, epsilon=0.05)[-1])
    loss.backward()
    assert 7000 < loss < 8000  # about 198.5 / T
    torch.testing.assert_close(scores.grad[-1], torch.tensor(-40.0))


def test_nan_and_plus_infinity_stay_in_their_row():
    scores = torch.randn(3, 6)
    scores[0, 2], scores[1, 4] = math.nan, math.inf
    memberships = soft_topk(scores, 2, epsilon=0.5)
    assert memberships[0].isnan().all()
    assert memberships[1, 4] == 1
    torch.testing.assert_close(memberships[1].sum(), torch.tensor(2.0))
    alone = soft_topk(scores[2], 2, epsilon=0.5)
    torch.testing.assert_close(memberships[2], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, rng):
    scores = torch.randn(4, 20, generator=rng).to(dtype).requires_grad_()
    memberships = soft_topk(scores, 3, epsilon=0.2)
    assert memberships.dtype == dtype
    expected = soft_topk(scores.float(), 3, epsilon=0.2).to(dtype)
    assert torch.equal(memberships, expected)
    memberships[:, 0].sum().backward()
    assert scores.grad.dtype == dtype


def test_arguments_are_unchanged_and_shapes_are_kept(rng):
    scores = torch.randn(2, 1, 3, 8, generator=rng)
    copy = scores.clone()
    memberships = soft_topk(scores, 2, epsilon=0.5)
    assert torch.equal(scores, copy)
    assert memberships.shape == scores.shape
    flat = soft_topk(scores.reshape(-1, 8), 2, epsilon=0.5)
    torch.testing.assert_close(memberships.reshape(-1, 8), flat)
    assert soft_topk(torch.zeros(0, 5), 2, epsilon=1.0).shape == (0, 5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 9}, r"`k` must be between 1 and 4 \(the number .*\), but is 9\."),
        ({"k": 0}, "`k` must be between 1 and 4"),
        ({"k": 4.5}, r"`k` must be above 0 and at most 4 .*, but is 4.5"),
        ({"k": True}, "`k` must be an integer or a tensor, but is True"),
        ({"k": torch.ones(3)}, r"`k` .* has shape \(3,\)"),
        ({"epsilon": 0.0}, "`epsilon` must be a positive number, but is 0.0"),
        ({"epsilon": math.nan}, "`epsilon` must be a positive number, but is nan"),
        ({"epsilon": torch.ones(3)}, r"`epsilon` .* has shape \(3,\)"),
        ({"scores": torch.zeros(2, 4, dtype=torch.long)}, "`scores` .* torch.int64"),
        ({"scores": torch.zeros(2, 0)}, r"`scores` .* shape \(2, 0\)"),
        ({"mask": torch.ones(2, 4)}, "`mask` must be boolean"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"`mask` .* shape \(2, 5\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"scores": torch.zeros(2, 4), "k": 2, "epsilon": 1.0, **change}
    scores, k = arguments.pop("scores"), arguments.pop("k")
    with pytest.raises(ValueError, match=message):
        soft_topk(scores, k, **arguments)


def test_k_may_differ_by_row_and_need_not_be_whole(rng):
    scores = torch.randn(5, 9, generator=rng, dtype=torch.float64)
    k = torch.tensor([1, 2.5, 7.3, 0, 9], dtype=torch.float64)
    for epsilon in EPSILONS:
        memberships = soft_topk(scores, k, epsilon=epsilon)
        torch.testing.assert_close(memberships.sum(-1), k, rtol=0, atol=1e-12)
    alone = soft_topk(scores[0], 1, epsilon=0.3)
    together = soft_topk(scores, k, epsilon=0.3)
    torch.testing.assert_close(together[0], alone)
    whole = soft_topk(scores, torch.tensor(2), epsilon=0.3)
    torch.testing.assert_close(whole, soft_topk(scores, 2, epsilon=0.3))


@pytest.mark.parametrize("operator", [soft_topk, soft_topk_logits])
def test_k_has_a_gradient(operator, rng):
    scores = torch.randn(3, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([1, 2.5, 4.3], dtype=torch.float64, requires_grad=True)

    def function(values, sizes):
        return operator(values, sizes, epsilon=0.7)

    assert torch.autograd.gradcheck(function, (scores, k))
    assert torch.autograd.gradgradcheck(function, (scores, k))


def test_rows_that_select_nothing_or_all_have_no_gradient(rng):
    scores = torch.randn(3, 6, generator=rng, requires_grad=True)
    k = torch.tensor([0.0, 6.0, 2.0], requires_grad=True)
    logits = soft_topk_logits(scores, k, epsilon=0.5)
    logits.sigmoid().square().sum().backward()
    assert torch.equal(scores.grad[:2], torch.zeros(2, 6))
    assert k.grad[:2].tolist() == [0, 0] and k.grad[2] > 0


@pytest.mark.parametrize("epsilon", [1e-6, 0.01])
def test_mask_with_k_per_row_deletes(epsilon, rng):
    scores = torch.randn(2, 8, generator=rng)
    mask = torch.rand(2, 8, generator=rng) < 0.7
    k = torch.tensor([2, 3])
    masked = soft_topk(scores, k, epsilon=epsilon, mask=mask)
    for row in range(2):
        short = soft_topk(scores[row, mask[row]], int(k[row]), epsilon=epsilon)
        torch.testing.assert_close(masked[row, mask[row]], short)
    assert (masked[~mask] == 0).all()


def bisect(scores, k, epsilon):
    """Memberships in float64, halving in units of the temperature around the best."""
    values = scores.double()
    values = 2 * (values - values.amax(-1, keepdim=True)) / epsilon
    low = values.amin(-1, keepdim=True) - 40
    high = torch.full_like(low, 40.0)
    for _ in range(120):
        middle = (low + high) / 2
        too_many = torch.sigmoid(values - middle).sum(-1, keepdim=True) > k
        low = torch.where(too_many, middle, low)
        high = torch.where(too_many, high, middle)
    return torch.sigmoid(values - (low + high) / 2)


def kinds_of_scores(rng, n):
    plain = torch.randn(3, n, generator=rng)
    steps = torch.arange(n).expand(3, n)
    return {
        "normal": plain,
        "equal": torch.full_like(plain, -200.0),
        "two values": (steps % 3 == 0).float(),
        "tied": (2 * plain).round() / 2,
        "geometric": 2.0 ** -(steps % 60),
        "ladder": -0.7 * steps,
        "one far above": plain.index_fill(1, torch.tensor([0]), 1e4),
        "one far below": plain.index_fill(1, torch.tensor([0]), -1e4),
        "huge": 1e4 * plain,
        "near ties": 1.0 + 1e-6 * plain,
    }


@pytest.mark.parametrize("epsilon", ALL_EPSILONS)
@pytest.mark.parametrize("n", [2, 40, 256, 300])
def test_every_epsilon_and_kind_of_scores_converges(epsilon, n, rng):
    for kind, scores in kinds_of_scores(rng, n).items():
        for k in sorted({1, 2, n // 2, n - 1} - {n}):
            exact = bisect(scores, k, epsilon)
            rough = soft_topk(scores, k, epsilon=epsilon).double()
            assert (rough - exact).abs().max() < 1e-6, (kind, k)
            fine = soft_topk(scores.double(), k, epsilon=epsilon)
            assert (fine.sum(-1) - k).abs().max() < 1e-13 * n, (kind, k)


@pytest.mark.parametrize("epsilon", ALL_EPSILONS)
def test_gradients_of_every_kind_are_finite_and_sum_to_zero(epsilon, rng):
    for kind, scores in kinds_of_scores(rng, 40).items():
        leaf = scores.double().requires_grad_()
        weights = torch.randn(3, 40, generator=rng).double()
        (soft_topk(leaf, 7, epsilon=epsilon) * weights).sum().backward()
        assert leaf.grad.isfinite().all(), kind
        assert leaf.grad.sum(-1).abs().max() <= 1e-10 / epsilon, kind


def test_gradient_of_a_hard_row_is_zero(rng):
    scores = torch.arange(12.0).expand(2, 12).clone().requires_grad_()
    soft_topk(scores, 3, epsilon=1e-4).square().sum().backward()
    assert torch.equal(scores.grad, torch.zeros(2, 12))


@pytest.mark.parametrize("epsilon", ALL_EPSILONS)
def test_a_saturated_and_an_ordinary_row_may_share_a_batch(epsilon, rng):
    scores = torch.randn(3, 20, generator=rng)
    scores[0, 4:] = -math.inf
    scores[1] = -math.inf
    together = soft_topk(scores, 5, epsilon=epsilon)
    alone = soft_topk(scores[2], 5, epsilon=epsilon)
    assert torch.equal(together[:2], (scores[:2] > -math.inf).float())
    torch.testing.assert_close(together[2], alone, rtol=0, atol=1e-6)
