"""Log-domain Sinkhorn, the oracle."""

from __future__ import annotations

import pytest
import torch

from fairseq_plugins.operators import sinkhorn


@pytest.fixture
def problem():
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(24)).double()
    return scores, torch.tensor([0.0, 0.5, 2.0]).double(), torch.tensor([2.0, 1, 4])


def test_plan_meets_rows_and_columns_and_says_how_well(problem):
    result = sinkhorn(*problem, epsilon=0.7, tolerance=1e-9)
    rows, columns = result.plan.sum(-1), result.plan.sum(-2)
    assert (result.residual <= 1e-9).all() and result.iterations < 1000
    torch.testing.assert_close((rows - 1).abs().amax(-1), result.residual)
    torch.testing.assert_close(columns, problem[2].double().expand(3, 3))


def test_plan_has_the_form_that_is_optimal(problem):
    scores, anchors, _ = problem
    plan = sinkhorn(*problem, epsilon=0.7).plan
    cost = (scores.unsqueeze(-1) - anchors).square()
    potentials = plan.log() + cost / 0.7  # must be f_i + g_j
    mixed = potentials - potentials[:, :1] - potentials[..., :1]
    spread = (mixed + potentials[:, :1, :1]).abs().max()
    assert spread < 1e-10


def test_unfinished_iterations_are_reported(problem):
    result = sinkhorn(*problem, epsilon=0.001, max_iterations=25)
    assert result.iterations == 25 and result.residual.max() > 1e-3


def test_masked_scores_go_to_the_last_anchor(problem):
    scores, anchors, capacities = problem
    mask = torch.tensor([True] * 5 + [False] * 2)
    masked = sinkhorn(*problem, epsilon=0.7, mask=mask).plan
    short = sinkhorn(scores[:, :5], anchors, torch.tensor([2.0, 1, 2]), epsilon=0.7)
    torch.testing.assert_close(masked[:, :5], short.plan, rtol=0, atol=1e-10)
    assert (masked[:, 5:, :2] == 0).all()


@pytest.mark.parametrize(
    "anchors, capacities, epsilon, message",
    [
        ([0.0, 1.0], [2.0, 1.0, 4.0], 1.0, r"shapes \(2,\) and \(3,\)"),
        ([0.0, 1.0], [2.0, 1.0], 1.0, "`capacities` must sum to 7 .* but sum to 3"),
        ([0.0, 1.0], [3.0, 4.0], -1.0, "`epsilon` must be a positive number"),
    ],
)
def test_wrong_problems_are_refused(problem, anchors, capacities, epsilon, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(
            problem[0], torch.tensor(anchors), torch.tensor(capacities), epsilon=epsilon
        )
