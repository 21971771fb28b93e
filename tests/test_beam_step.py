"""The differentiable beam against a plain beam search and against its limits."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from typing import Any

import pytest
import torch

from fairseq_plugins.operators import soft_topk_logits

BEAM = 3


@pytest.fixture
def settings(task: Any) -> Any:
    from fairseq_plugins.beam.step import BeamSettings

    vocabulary = len(task.target_dictionary)
    return BeamSettings(
        beam_size=BEAM,
        pool_size=vocabulary - 2,
        max_len=50,
        min_len=0,
        epsilon=0.1,
        pad_id=task.target_dictionary.pad(),
        eos_id=task.target_dictionary.eos(),
    )


@dataclasses.dataclass
class Result:
    losses: dict[str, torch.Tensor]
    gold_in_beam: torch.Tensor


def run(model: Any, sample: Any, settings: Any) -> Result:
    """Search along the reference with the rollout engine."""
    from fairseq_plugins.beam.losses import slot_ce, survival
    from fairseq_plugins.beam.rescore import search_with_gradients
    from fairseq_plugins.beam.search import RequiredScores, SearchRequest

    net_input = sample["net_input"]
    request = SearchRequest(
        model=model,
        encoder_out=model.encoder(net_input["src_tokens"], net_input["src_lengths"]),
        start_tokens=net_input["prev_output_tokens"][:, 0],
        target=sample["target"],
        settings=settings,
        required=RequiredScores(gold=True, gold_first=True),
    )
    trace = search_with_gradients(request, "rollout")
    options = Namespace(survival_epsilon=2.0)
    batch: Any = Namespace(trace=trace, options=options)
    losses = {"slot-ce": slot_ce(batch), "survival": survival(batch)}
    return Result(losses, trace.gold_in_beam.sum(-1))


def start_state() -> Any:
    from fairseq_plugins.beam.step import BeamState

    return BeamState.start(torch.tensor([5]), BEAM)


def four_candidates() -> Any:
    from fairseq_plugins.beam.step import Candidates

    origins = torch.zeros(1, 4, dtype=torch.long)
    tokens = torch.arange(4).unsqueeze(0)
    none = torch.zeros(1, BEAM, dtype=torch.bool)
    return Candidates(origins, tokens, torch.tensor([-1]), torch.tensor([4]), none)


def plain_beam(model: Any, item: Any, collate: Any, settings: Any) -> dict[str, float]:
    """Beam search over token lists that decodes each prefix again, one sentence."""
    sample = collate([item])
    net_input = sample["net_input"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    gold = [int(token) for token in item["target"]]

    def log_probs(prefix: list[int]) -> torch.Tensor:
        tokens = torch.tensor([[settings.eos_id, *prefix]])
        output = model.decoder(tokens, encoder_out=encoder_out)
        return model.get_normalized_probs(output, log_probs=True)[0, -1]

    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    result = {"slot-ce": 0.0, "survival": 0.0, "gold_in_beam": 0}
    for position, gold_token in enumerate(gold):
        result["slot-ce"] -= float(log_probs(beam[0][1])[gold_token])
        everything = sorted(
            (
                (score + float(value), [*prefix, token])
                for score, prefix in beam
                for token, value in enumerate(log_probs(prefix))
                if token != settings.pad_id
            ),
            reverse=True,
        )
        candidates = [c for c in everything if c[1][-1] != settings.eos_id]
        ends = [c for c in everything if c[1][-1] == settings.eos_id]
        prefixes = [prefix for _, prefix in candidates]
        goal = gold[: position + 1]
        if goal in [prefix for _, prefix in everything]:
            pool = candidates[: settings.pool_size]
            if gold_token == settings.eos_id:
                pool = sorted(pool + ends, reverse=True)
            elif prefixes.index(goal) >= settings.pool_size:
                pool[-1] = candidates[prefixes.index(goal)]
            rank = [prefix for _, prefix in pool].index(goal)
            scores = torch.tensor([score for score, _ in pool], dtype=torch.float64)
            logits = soft_topk_logits(scores, settings.beam_size, epsilon=2.0)
            result["survival"] += math.log1p(math.exp(-float(logits[rank])))
            result["gold_in_beam"] += rank < settings.beam_size
        beam = candidates[: settings.beam_size]
        if settings.reset_margin is not None and goal in prefixes[BEAM:]:
            beam = [candidates[prefixes.index(goal)]]
    return result


@pytest.mark.parametrize("reset_margin", [None, 0.0])
def test_hard_rollout_is_a_plain_beam_search_over_token_lists(
    arch, reset_margin, make_model, sentences, collate, settings
):
    model = make_model(arch)
    settings = dataclasses.replace(
        settings, pool_size=4 * BEAM, reset_margin=reset_margin
    )
    result = run(model, collate(sentences), settings)
    order = collate(sentences)["id"].tolist()
    model.eval()
    with torch.no_grad():
        plain = [plain_beam(model, sentences[i], collate, settings) for i in order]
    for name in ("slot-ce", "survival"):
        expected = torch.tensor([sentence[name] for sentence in plain])
        torch.testing.assert_close(
            result.losses[name].detach(), expected, rtol=2e-3, atol=2e-3
        )
    assert result.gold_in_beam.tolist() == [one["gold_in_beam"] for one in plain]
    assert 0 < sum(result.gold_in_beam) < sum(len(s["target"]) for s in sentences)


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_soft(
    arch, make_model, sentences, collate, settings
):
    sample, model = collate(sentences), make_model(arch)
    values, gradients = {}, {}
    for mixing in ("hard", "straight-through", "soft"):
        model.zero_grad()
        chosen = dataclasses.replace(settings, mixing=mixing, epsilon=1.0)
        loss = run(model, sample, chosen).losses["slot-ce"]
        loss.sum().backward()
        values[mixing] = loss.detach()
        gradients[mixing] = model.decoder.embed_tokens.weight.grad.clone()
    assert torch.equal(values["hard"], values["straight-through"])
    assert not torch.allclose(values["hard"], values["soft"])
    assert not torch.allclose(gradients["hard"], gradients["straight-through"])


def test_soft_rollout_becomes_the_hard_one_as_epsilon_goes_to_0(
    arch, make_model, sentences, collate, settings
):
    sample, model = collate(sentences), make_model(arch)
    losses = ("slot-ce", "survival")
    hard = run(model, sample, settings)
    errors = []
    for epsilon in (1.0, 1e-2, 1e-5):
        chosen = dataclasses.replace(settings, mixing="soft", epsilon=epsilon)
        soft = run(model, sample, chosen)
        errors.append(
            max(float((soft.losses[n] - hard.losses[n]).abs().max()) for n in losses)
        )
    assert errors[0] > 0.05 > errors[2]
    assert errors[2] < 1e-3
    assert torch.equal(soft.gold_in_beam, hard.gold_in_beam)


def test_a_one_hot_mixture_is_fairseqs_reordering(arch, make_model, sentences, collate):
    from fairseq_plugins.beam.adapters import find_adapter
    from fairseq_plugins.beam.adapters.hooks import evaluation_mode

    sample, model = collate(sentences[:4]), make_model(arch)
    net_input = sample["net_input"]
    order = torch.tensor([[2, 0, 0], [1, 1, 2], [0, 1, 2], [2, 2, 2]])
    one_hot = torch.nn.functional.one_hot(order, BEAM).float()
    rows = (order + BEAM * torch.arange(4).unsqueeze(1)).flatten()
    inputs = model.decoder.embed_tokens(torch.arange(4, 4 + 4 * BEAM).view(4, BEAM))
    outputs = []
    with evaluation_mode(model.decoder):
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        for mixes in (True, False):
            decoder = find_adapter(model)(
                model, encoder_out, batch_size=4, beam_size=BEAM
            )
            for position in range(3):
                features = decoder.step(inputs, position)
                if mixes:
                    decoder.mix(one_hot)
                else:
                    # The cross attention's keys have one row per sentence: leave them.
                    state = {
                        name: value
                        for name, value in decoder.state.items()
                        if all(v is None or v.size(0) != 4 for v in value.values())
                    }
                    model.decoder.reorder_incremental_state_scripting(state, rows)
                    decoder.state.update(state)
            outputs.append(features)
    assert torch.equal(*outputs)


def test_steps_of_slots_agree_with_parallel_decoding(
    arch, make_model, sentences, collate
):
    from fairseq_plugins.beam.adapters import find_adapter

    sample, model = collate(sentences), make_model(arch)
    net_input = sample["net_input"]
    tokens = net_input["prev_output_tokens"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    parallel = model.get_normalized_probs(
        model.decoder(tokens, encoder_out=encoder_out), log_probs=True
    )
    decoder = find_adapter(model)(
        model, encoder_out, batch_size=len(tokens), beam_size=2
    )
    for position in range(tokens.size(1)):
        inputs = decoder.embed(tokens[:, position]).unsqueeze(1).expand(-1, 2, -1)
        log_probs = decoder.log_probs(decoder.step(inputs, position))
        alive = sample["target"][:, position].ne(1)
        for slot in range(2):
            torch.testing.assert_close(
                log_probs[alive, slot], parallel[alive, position], rtol=1e-4, atol=1e-4
            )


def test_gradients_of_one_selection_are_those_of_finite_differences(settings):
    from fairseq_plugins.beam.step import select

    settings = dataclasses.replace(settings, mixing="soft", epsilon=0.7)
    scores = torch.tensor([[3.0, 2.7, 1.0, 0.0]], dtype=torch.float64)

    def weights(scores: torch.Tensor) -> torch.Tensor:
        return select(start_state(), four_candidates(), scores, settings).weights

    assert torch.autograd.gradcheck(weights, scores.requires_grad_())


def test_a_slots_score_has_the_weights_as_its_gradient(settings):
    from fairseq_plugins.beam.step import select

    settings = dataclasses.replace(settings, mixing="soft", epsilon=0.7)
    scores = torch.tensor([[3.0, 2.7, 1.0, 0.0]], dtype=torch.float64)
    scores.requires_grad_()
    selection = select(start_state(), four_candidates(), scores, settings)
    for slot in range(BEAM):
        (gradient,) = torch.autograd.grad(
            selection.state.log_probs[0, slot], scores, retain_graph=True
        )
        torch.testing.assert_close(gradient, selection.weights[:, :, slot].detach())


def test_clipping_bounds_the_gradient_through_a_selection_and_not_its_value(settings):
    from fairseq_plugins.beam.step import select

    gradients = {}
    for clip in (0.0, 0.1):
        chosen = dataclasses.replace(
            settings, mixing="soft", epsilon=0.1, selection_clip=clip
        )
        scores = torch.tensor([[3.0, 2.9, 2.8, 2.7]], requires_grad=True)
        weights = select(start_state(), four_candidates(), scores, chosen).weights
        (weights * torch.linspace(-9, 9, 12).view(1, 4, 3)).sum().backward()
        gradients[clip] = scores.grad
    cosine = torch.cosine_similarity(gradients[0.0], gradients[0.1])
    assert float(cosine) == pytest.approx(1)
    norm = torch.linspace(-9, 9, 12).norm()
    torch.testing.assert_close(gradients[0.1], gradients[0.0] * 0.1 / norm)


def expanded(log_probs: torch.Tensor, gold: int, settings: Any, position: int) -> Any:
    from fairseq_plugins.beam.step import expand

    settings = dataclasses.replace(settings, pool_size=4, pad_id=1, eos_id=2, min_len=1)
    return expand(
        start_state(), log_probs.log_softmax(-1), torch.tensor([gold]), position,
        settings,
    )  # fmt: skip


def test_gold_stays_a_candidate_however_badly_it_scores(settings):
    pool = expanded(torch.arange(12.0).expand(1, BEAM, 12), 3, settings, 0)
    assert pool.tokens.tolist() == [[11, 10, 9, 3]]
    assert pool.gold.tolist() == [3]
    assert pool.origins.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "position, gold, where, finishes",
    [
        (0, 2, -1, False),  # shorter than the shortest hypothesis
        (1, 2, 4, True),  # behind the pool's four: the end of slot 0
        (1, 5, 3, True),
        (1, 1, -1, True),  # gold has ended
        (5, 5, -1, True),  # longer than the longest hypothesis
    ],
)
def test_an_end_leaves_the_beam_and_is_gold_only_where_gold_ends(
    position, gold, where, finishes, settings
):
    log_probs = torch.zeros(1, BEAM, 12)
    log_probs[..., :4] = torch.tensor([3.0, 9.0, 8.0, 2.0])
    candidates = expanded(log_probs, gold, settings, position)
    assert candidates.gold.tolist() == [where]
    assert candidates.finishes.tolist() == [[finishes, False, False]]
    if position < 5:  # then nothing but an end is allowed
        assert not {1, 2} & set(candidates.tokens[0].tolist())


def test_beam_size_schedule_stays_equally_long_at_each_size():
    from fairseq_plugins.utils.schedule import stepwise

    sizes = [stepwise(2, 5, 9, update) for update in range(11)]
    assert sizes == [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    assert stepwise(3, 3, 9, 4) == 3 and stepwise(5, 2, 3, 1) == 4


def test_schedule_is_geometric_and_ends():
    from fairseq_plugins.utils.schedule import geometric

    values = [geometric(1.0, 0.25, 4, update) for update in (0, 2, 4, 100)]
    assert values == pytest.approx([1.0, 0.5, 0.25, 0.25])
    assert geometric(1.0, 0.5, 0, 0) == 0.5
