"""Soft votes of the nearest neighbours, their limits, and exact prediction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.operators import (
    hard_topk,
    knn_predict,
    nearest_neighbours,
    soft_knn_log_votes,
    soft_knn_loss,
    soft_topk,
    squared_distances,
)
from fairseq_plugins.operators.knn import SELECTIONS

CLASSES = 3


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(31)


@pytest.fixture
def features(rng):
    """Five queries and eleven references with labels, in float64."""
    queries = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    references = torch.randn(11, 4, generator=rng, dtype=torch.float64)
    labels = torch.randint(CLASSES, (11,), generator=rng)
    return queries, references, labels


def log_votes(features, selection, **options):
    options = {"k": 4, "epsilon": 0.7, "num_classes": CLASSES, **options}
    return soft_knn_log_votes(*features, selection=selection, **options)


def test_distances_are_those_of_the_definition(features):
    queries, references, _ = features
    differences = queries.unsqueeze(1) - references
    got = squared_distances(queries, references)
    torch.testing.assert_close(got, differences.square().sum(-1))


def test_distances_far_from_the_origin_keep_their_digits(features):
    queries, references, _ = (each.float() for each in features)
    near = squared_distances(queries, references)
    far = squared_distances(queries + 1000, references + 1000)
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-3)


def test_soft_votes_are_memberships_counted_by_class(features):
    queries, references, labels = features
    distances = squared_distances(queries, references)
    members = soft_topk(distances, 4, epsilon=0.7, largest=False)
    expected = torch.stack(
        [members[:, labels == c].sum(1) / 4 for c in range(CLASSES)], 1
    )
    torch.testing.assert_close(log_votes(features, "soft").exp(), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_votes_sum_to_one(selection, features):
    votes = log_votes(features, selection).exp()
    torch.testing.assert_close(votes.sum(1), torch.ones(5).double())


@pytest.mark.parametrize("selection", ["soft", "neuralsort"])
def test_hard_limit_is_the_count_of_the_k_nearest(selection, features):
    queries, references, labels = features
    _, nearest = nearest_neighbours(queries, references, 4)
    counts = torch.nn.functional.one_hot(labels[nearest], CLASSES).sum(1) / 4
    votes = log_votes(features, selection, epsilon=1e-6).exp()
    torch.testing.assert_close(votes, counts.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_large_epsilon_counts_all_selected_references(selection, features):
    _, references, labels = features
    votes = log_votes(features, selection, epsilon=1e9).exp()
    shares = torch.bincount(labels, minlength=CLASSES) / len(labels)
    if selection == "hard":
        shares = log_votes(features, "soft", epsilon=1e-6).exp()
    torch.testing.assert_close(votes, shares.double().expand(5, CLASSES))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_loss_has_the_gradients_of_finite_differences(selection, features, rng):
    queries, references, labels = features
    query_labels = torch.randint(CLASSES, (5,), generator=rng)
    epsilon = torch.tensor(0.7, dtype=torch.float64)
    leaves = [each.requires_grad_() for each in (queries, references, epsilon)]

    def loss(queries, references, epsilon):
        return soft_knn_loss(
            queries, query_labels, references, labels,
            k=4, epsilon=epsilon, num_classes=CLASSES, selection=selection,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves)


def test_only_the_soft_selection_attracts_a_reference_from_outside(features):
    queries, references, labels = (each.clone() for each in features)
    labels[:] = 0
    far = squared_distances(queries[:1], references).argmax()
    labels[far] = 1  # the only one of the query's class, and not among the 4 nearest
    norms = {}
    for selection in ("soft", "hard"):
        leaf = references.clone().requires_grad_()
        soft_knn_loss(
            queries[:1], torch.tensor([1]), leaf, labels,
            k=4, epsilon=0.7, num_classes=2, selection=selection,
        ).backward()  # fmt: skip
        norms[selection] = leaf.grad[far].norm()
    assert norms["soft"] > 0.1 and norms["hard"] == 0


def test_loss_and_gradient_stay_finite_for_a_distant_class():
    queries = torch.zeros(2, 1, requires_grad=True)
    references = torch.tensor([[0.0], [0.1], [1e4]])
    loss = soft_knn_loss(
        queries, torch.tensor([1, 2]), references, torch.tensor([0, 0, 1]),
        k=1, epsilon=0.1, num_classes=3,
    )  # fmt: skip
    loss.backward()
    # No reference has the class of the second query, which adds nothing.
    assert loss.isfinite() and loss > 1e6
    assert queries.grad.isfinite().all() and queries.grad[1] == 0


def test_training_improves_the_prediction_of_the_nearest_neighbors(rng):
    centers = 0.3 * torch.randn(CLASSES, 6, generator=rng)
    labels = torch.arange(120) % CLASSES
    noise = torch.randn(120, 6, generator=rng) * torch.tensor([0.2] * 3 + [3.0] * 3)
    points = centers[labels] + noise
    scale = torch.ones(6, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.1)

    def accuracy():
        with torch.no_grad():
            known, asked = (points * scale)[:60], (points * scale)[60:]
            found = knn_predict(asked, known, labels[:60], k=5, num_classes=CLASSES)
            return (found == labels[60:]).float().mean()

    before = accuracy()
    for _ in range(60):
        used = points[:60] * scale
        loss = soft_knn_loss(
            used[:30], labels[:30], used[30:], labels[30:60],
            k=5, epsilon=1.0, num_classes=CLASSES,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # It learns to leave out the coordinates that only hold noise.
    assert accuracy() > before + 0.1
    assert scale[:3].abs().min() > scale[3:].abs().max()


@settings(max_examples=30, deadline=None)
@given(
    q=st.integers(1, 9),
    r=st.integers(1, 20),
    block=st.integers(1, 21),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_blocks_give_the_result_of_the_whole_matrix(q, r, block, seed, data):
    k = data.draw(st.integers(1, r))
    generator = torch.Generator().manual_seed(seed)
    queries, references = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (q, r)
    )
    whole = torch.cdist(queries, references).square().topk(k, largest=False)
    distances, indices = nearest_neighbours(queries, references, k, block=block)
    torch.testing.assert_close(distances, whole.values)
    assert torch.equal(indices, whole.indices)


def test_blocks_bound_the_size_of_distance_matrices(monkeypatch, rng):
    sizes = []
    original = torch.Tensor.topk

    def spy(self, *args, **kwargs):
        sizes.append(tuple(self.shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", spy)
    points = torch.randn(100, 2, generator=rng)
    nearest_neighbours(points, points, 3, block=10)
    assert len(sizes) == 100 and max(sizes) <= (10, 13)


def test_prediction_is_scikit_learns(features, rng):
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries = torch.randn(200, 4, generator=rng, dtype=torch.float64)
    references = torch.randn(300, 4, generator=rng, dtype=torch.float64)
    labels = torch.randint(2, (300,), generator=rng)  # two classes, odd k: no ties
    theirs = neighbors.KNeighborsClassifier(7).fit(references, labels).predict(queries)
    ours = knn_predict(queries, references, labels, k=7, num_classes=2, block=64)
    assert ours.tolist() == theirs.tolist()


def test_a_tie_goes_to_the_nearest():
    references = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    labels = torch.tensor([2, 1, 1, 2])
    found = knn_predict(torch.tensor([[-1.0]]), references, labels, k=4, num_classes=3)
    assert found.tolist() == [2]


def test_no_queries_have_no_neighbors():
    distances, indices = nearest_neighbours(torch.zeros(0, 2), torch.zeros(4, 2), 3)
    assert distances.shape == indices.shape == (0, 3)


def test_wrong_arguments_are_named(features):
    queries, references, labels = features
    with pytest.raises(ValueError, match="`k` must be between 1 and 11 .* but is 12"):
        nearest_neighbours(queries, references, 12)
    with pytest.raises(ValueError, match="`block` must be 1 or more, but is 0"):
        nearest_neighbours(queries, references, 2, block=0)
    with pytest.raises(ValueError, match="`selection` must be one of soft, .*'best'"):
        log_votes(features, "best")
    with pytest.raises(
        ValueError, match="`labels` must be from 0 to 1, but range from"
    ):
        log_votes(features, "soft", num_classes=2)
    with pytest.raises(ValueError, match="one for each of 11 features"):
        log_votes((queries, references, labels[:3]), "soft")


def test_hard_selection_takes_exactly_the_nearest(features):
    queries, references, _ = features
    distances = squared_distances(queries, references)
    members = SELECTIONS["hard"](distances, 4, epsilon=0.7)
    chosen = hard_topk(distances, 4, largest=False).sum(-1).bool()
    assert torch.equal(members > -math.inf, chosen)
