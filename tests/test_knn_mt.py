"""Retrieval over decoder states: the datastore, the gate, the search, the command."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from conftest import ROOT
from test_evaluate_script import CONFIG, MAX_POSITIONS, prepare, python

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.knn_mt import experiment
from fairseq_plugins.knn_mt.datastore import (
    Datastore,
    LoadedModel,
    Neighbors,
    compute_log_probs,
    force_decode,
)
from fairseq_plugins.knn_mt.experiment import translate
from fairseq_plugins.knn_mt.gate import (
    Gate,
    GoldTokens,
    Retrieved,
    count_distinct,
    fit_gate,
    mean_loss,
    mix,
)
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError

VOCABULARY = 20


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(41)


@pytest.fixture
def retrieved(rng):
    distances = torch.rand(6, 8, generator=rng).sort(1).values * 10
    tokens = torch.randint(VOCABULARY, (6, 8), generator=rng)
    log_probs = torch.randn(6, VOCABULARY, generator=rng).log_softmax(1)
    return Retrieved.from_model(Neighbors(distances, tokens), log_probs), log_probs


@pytest.fixture
def loaded(task, make_model, arch):
    return LoadedModel(make_model(arch).eval(), task)


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("weights", ["soft", "softmax"])
def test_mixed_probabilities_are_a_distribution(retrieved, weights, is_adaptive):
    gate = Gate(8, scale=5.0, weights=weights, is_adaptive=is_adaptive)
    together = gate.log_probs(*retrieved)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(6))


@pytest.mark.parametrize("weights", ["soft", "softmax"])
def test_gold_has_the_probability_that_the_whole_distribution_gives_it(
    retrieved, weights, rng
):
    gate = Gate(8, scale=5.0, weights=weights, is_adaptive=True)
    torch.nn.init.normal_(gate.network[-1].weight, generator=rng)
    retrieved_, log_probs = retrieved
    gold = torch.randint(VOCABULARY, (6,), generator=rng)
    gold[0] = retrieved_.tokens[0, 3]
    at_gold = (torch.arange(6), gold)
    alone = gate.gold_log_prob(retrieved_, gold, log_probs[at_gold])
    torch.testing.assert_close(alone, gate.log_probs(retrieved_, log_probs)[at_gold])


def test_soft_weights_become_the_k_nearest_alike_as_temperature_falls(retrieved):
    gate = Gate(8, scale=1.0, weights="soft", is_adaptive=False)
    # num_neighbors_of(control) = 3
    control = torch.tensor(2 / 6.999).logit()
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([0.0, -8.0, control]))
    _, weights = gate(retrieved[0])
    expected = torch.tensor([1 / 3] * 3 + [0] * 5).expand(6, 8)
    torch.testing.assert_close(weights, expected, atol=1e-2, rtol=0)


def test_gradients_of_all_numbers_of_a_soft_gate_are_right(retrieved):
    retrieved_, log_probs = retrieved
    gate = Gate(8, scale=5.0, weights="soft", is_adaptive=False).double()
    distances = retrieved_.distances.double()
    neighbors = Neighbors(distances, retrieved_.tokens)
    retrieved_ = Retrieved.from_model(neighbors, log_probs.double())
    gold = neighbors.tokens[:, 1]
    gold_log_prob = log_probs.double().gather(1, gold.unsqueeze(1)).squeeze(1)

    def loss(bias):
        values = {"bias": bias, "scale": gate.scale}
        arguments = (retrieved_,)
        logit, weights = torch.func.functional_call(gate, values, arguments)
        votes = (weights * (neighbors.tokens == gold.unsqueeze(1))).sum(1)
        return mix(logit, gold_log_prob, votes)

    bias = gate.bias.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (bias,))


def test_mixing_leaves_impossible_gold_tokensimpossible():
    log_probs = torch.tensor([[0.0, -math.inf]])
    mixed = mix(torch.zeros(1, 1), log_probs, torch.tensor([[0.5, 0.5]]))
    assert mixed[0, 1] == -math.inf and mixed[0, 0] == pytest.approx(math.log(0.75))


def test_distinct_gold_tokensare_counted():
    tokens = torch.tensor([[3, 3, 5, 3, 7]])
    assert count_distinct(tokens).tolist() == [[1, 1, 2, 2, 3]]


@pytest.mark.parametrize("weights", ["soft", "softmax"])
def test_a_gate_learns_to_trust_the_better_source(weights, rng):
    # The nearest neighbor is always right, the others never; the model knows nothing.
    size = 400
    gold = torch.randint(10, VOCABULARY, (size,), generator=rng)
    tokens = torch.randint(10, (size, 6), generator=rng)
    tokens[:, 0] = gold
    distances = torch.arange(1, 7.0).expand(size, 6)
    log_probs = torch.full((size, VOCABULARY), -math.log(VOCABULARY))
    gold_tokens = GoldTokens(
        Retrieved.from_model(Neighbors(distances, tokens), log_probs),
        gold,
        log_probs[:, 0],
    )
    gate = fit_gate(
        gold_tokens, weights=weights, is_adaptive=False, updates=400, seed=1
    )
    logit, given = gate(gold_tokens.retrieved)
    assert logit.sigmoid().min() > 0.9 and given[:, 0].min() > 0.8
    assert mean_loss(gate, gold_tokens) < 0.3 < -gold_tokens.gold_log_prob.mean()


@pytest.mark.parametrize("library", ["faiss", "scikit-learn"])
def test_exact_search_finds_the_nearest(library, rng, monkeypatch):
    if library == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    keys = torch.randn(200, 5, generator=rng)
    queries = torch.randn(7, 5, generator=rng)
    store = Datastore(keys.numpy(), numpy.arange(1000, 1200))
    expected = torch.cdist(queries, keys).square().topk(4, largest=False)
    distances, tokens = store.search(queries, 4)
    torch.testing.assert_close(distances, expected.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(tokens, 1000 + expected.indices)
    with pytest.raises(UserError, match="must be 200 or less, .* but is 201"):
        store.search(queries, 201)


def test_approximate_search_in_all_cells_is_exact(rng):
    pytest.importorskip("faiss")
    keys = torch.randn(200, 5, generator=rng).numpy()
    tokens = numpy.arange(200)
    queries = torch.randn(7, 5, generator=rng)
    exact = Datastore(keys, tokens).search(queries, 4)
    cells = Datastore(keys, tokens, probes=28).search(queries, 4)
    assert torch.equal(exact.tokens, cells.tokens)


def test_approximate_search_without_faiss_says_what_to_install(rng, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    keys = torch.randn(20, 5, generator=rng).numpy()
    with pytest.raises(UserError, match="needs faiss.*pip install faiss-cpu"):
        Datastore(keys, numpy.arange(20), probes=2)


def test_forced_states_give_the_probabilities_of_the_model(loaded):
    dataset = loaded.task.dataset("train")
    seen = 0
    with torch.no_grad():
        for batch in force_decode(loaded, "train", max_tokens=300):
            number = int(batch.sentences[0])
            mine = batch.sentences == number
            assert batch.targets[mine].tolist() == dataset[number]["target"].tolist()
            sample = dataset.collater([dataset[number]])
            output = loaded.model(**sample["net_input"])
            expected = loaded.model.get_normalized_probs(output, log_probs=True)[0]
            got = compute_log_probs(loaded, batch.states[mine])
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
            seen += len(batch.targets)
    assert seen == dataset.tgt_sizes.sum()


def test_search_without_neighbors_is_fairseqs_and_a_closed_gate_changes_nothing(
    loaded, tmp_path
):
    alone = translate(loaded, "valid", beam=3)
    assert len(alone) == 20 and all(alone)
    store = Datastore.load_or_build(loaded, "train", tmp_path / "store.npz")
    gate = Gate(4, scale=1.0, weights="soft", is_adaptive=False).eval()
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([-60.0, 0.0, 0.0]))
    assert translate(loaded, "valid", beam=3, neighbors=(store, gate)) == alone


def test_states_in_the_search_are_those_of_teacher_forcing(loaded, tmp_path):
    # The corpus is its own datastore: the neighbors at distance 0 of a hypothesis that
    # follows the reference vote for the next token of the reference.
    store = Datastore.load_or_build(loaded, "valid", tmp_path / "store.npz")
    gate = Gate(2, scale=1e-3, weights="softmax", is_adaptive=False).eval()
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([8.0, 0.0, 0.0]))
    dictionary = loaded.task.target_dictionary
    dataset = loaded.task.dataset("valid")
    gold = [dictionary.string(dataset[i]["target"]) for i in range(len(dataset))]
    found = translate(loaded, "valid", beam=1, neighbors=(store, gate))
    matching = sum(a == b for a, b in zip(found, gold))
    without = sum(a == b for a, b in zip(translate(loaded, "valid", beam=1), gold))
    assert matching >= 18 > without


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knn_mt")
    prepare(folder / "corpus")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(positions=MAX_POSITIONS))
    done = python(
        ROOT / "scripts" / "train.py", config,
        f"data={folder / 'corpus'}", f"run={folder / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_command_compares_with_the_model_alone(run, tmp_path):
    script = ROOT / "scripts" / "knn_mt.py"
    options = [
        run, "--systems", "soft", "softmax", "--neighbors", 4, "--updates", 20,
        "--beam", 2, "--json", tmp_path / "rows.json",
    ]  # fmt: skip
    done = python(script, *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["system"] for row in rows] == ["alone", "soft", "softmax"]
    assert "bleu_p_value" in rows[1] and 1 <= rows[1]["k"] <= 4
    again = python(script, *options)
    assert again.stdout == done.stdout and "translating" not in again.stderr


def experiment_of(run, out):
    return experiment.Experiment(
        RunFolder(run).checkpoints / "checkpoint_best.pt",
        PreparedCorpus.load(run.parent / "corpus"),
        out,
        experiment.Options(),
    )


def test_a_kill_leaves_no_description_of_other_hypotheses(run, tmp_path, monkeypatch):
    comparison = experiment_of(run, tmp_path)
    comparison.compare([], ["test"], beam=1)
    assert list(tmp_path.glob("*.json"))
    comparison._digest = "another checkpoint"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare([], ["test"], beam=1)
    assert not list(tmp_path.glob("*.json"))


def test_translations_of_another_test_text_are_not_reused(run, tmp_path, monkeypatch):
    comparison = experiment_of(run, tmp_path)
    comparison.compare([], ["test"], beam=1)
    translate, translated = experiment.translate, []

    def counted(*args, **options):
        translated.append(args)
        return translate(*args, **options)

    monkeypatch.setattr(experiment, "translate", counted)
    comparison.compare([], ["test"], beam=1)
    assert not translated
    monkeypatch.setattr(experiment, "digest_data", lambda *_: "of another text")
    comparison.compare([], ["test"], beam=1)
    assert translated


def test_the_command_names_what_is_wrong(run):
    script = ROOT / "scripts" / "knn_mt.py"
    done = python(script, run, "--subset", "tset")
    assert done.returncode == 2 and "Did you mean `test`" in done.stderr
    done = python(script, run, "--neighbors", 1)
    assert done.returncode == 2
    assert "must be 2 or more, but is 1" in done.stderr
