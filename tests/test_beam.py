"""The differentiable beam against a plain beam search and against its limits."""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from fairseq_plugins.operators import soft_topk_logits

BEAM = 3


@pytest.fixture
def settings(task: Any) -> Any:
    from fairseq_plugins.beam.state import BeamSettings

    vocabulary = len(task.target_dictionary)
    return BeamSettings(
        beam_size=BEAM,
        pool_size=vocabulary - 2,
        epsilon=0.1,
        survival_epsilon=2.0,
        mixing="hard",
        selection_clip=0.0,
        reset_to_gold=False,
        pad_id=task.target_dictionary.pad(),
        eos_id=task.target_dictionary.eos(),
    )


def run(model: Any, sample: Any, settings: Any, losses: tuple[str, ...]) -> Any:
    from fairseq_plugins.beam.decoder import IncrementalDecoder, without_dropout
    from fairseq_plugins.beam.rollout import rollout

    net_input, target = sample["net_input"], sample["target"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    decoder = IncrementalDecoder(
        model, encoder_out, batch_size=len(target), beam_size=settings.beam_size
    )
    with without_dropout(model.decoder):
        return rollout(
            decoder, net_input["prev_output_tokens"][:, 0], target,
            settings=settings, losses=losses,
        )  # fmt: skip


def start_state() -> Any:
    from fairseq_plugins.beam.state import BeamState

    return BeamState.start(1, BEAM, torch.device("cpu"))


def four_candidates(scores: torch.Tensor) -> Any:
    from fairseq_plugins.beam.step import Candidates

    origins = torch.zeros(1, 4, dtype=torch.long)
    tokens = torch.arange(4).unsqueeze(0)
    return Candidates(scores, origins, tokens, torch.zeros(1, 4, dtype=torch.bool))


def plain_beam(model: Any, item: Any, collate: Any, settings: Any) -> dict[str, float]:
    """Beam search over lists of tokens, each prefix decoded anew, for one sentence."""
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
        banned = {settings.pad_id}
        if gold_token != settings.eos_id:
            banned.add(settings.eos_id)
        candidates = sorted(
            (
                (score + float(value), [*prefix, token])
                for score, prefix in beam
                for token, value in enumerate(log_probs(prefix))
                if token not in banned
            ),
            reverse=True,
        )
        prefixes = [prefix for _, prefix in candidates]
        if gold[: position + 1] in prefixes:
            rank = prefixes.index(gold[: position + 1])
            pool = candidates[: settings.pool_size]
            if rank >= settings.pool_size:
                rank = settings.pool_size - 1
                pool[-1] = candidates[prefixes.index(gold[: position + 1])]
            scores = torch.tensor([score for score, _ in pool], dtype=torch.float64)
            logits = soft_topk_logits(
                scores, settings.beam_size, epsilon=settings.survival_epsilon
            )
            result["survival"] += math.log1p(math.exp(-float(logits[rank])))
            result["gold_in_beam"] += rank < settings.beam_size
        beam = candidates[: settings.beam_size]
        if settings.reset_to_gold and gold[: position + 1] not in prefixes[:BEAM]:
            beam = [candidates[prefixes.index(gold[: position + 1])]]
    return result


@pytest.mark.parametrize("reset_to_gold", [False, True])
def test_hard_rollout_is_a_plain_beam_search_over_token_lists(
    arch, reset_to_gold, make_model, sentences, collate, settings
):
    model = make_model(arch)
    settings = dataclasses.replace(
        settings, pool_size=4 * BEAM, reset_to_gold=reset_to_gold
    )
    result = run(model, collate(sentences), settings, ("slot-ce", "survival"))
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
        loss = run(model, sample, chosen, ("slot-ce",)).losses["slot-ce"]
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
    hard = run(model, sample, settings, losses)
    errors = []
    for epsilon in (1.0, 1e-2, 1e-5):
        chosen = dataclasses.replace(settings, mixing="soft", epsilon=epsilon)
        soft = run(model, sample, chosen, losses)
        errors.append(
            max(float((soft.losses[n] - hard.losses[n]).abs().max()) for n in losses)
        )
    assert errors[0] > 0.05 > errors[2]
    assert errors[2] < 1e-3
    assert torch.equal(soft.gold_in_beam, hard.gold_in_beam)


def test_a_one_hot_mixture_is_fairseqs_reordering(
    arch, make_model, sentences, collate
):
    from fairseq_plugins.beam.decoder import IncrementalDecoder, without_dropout

    sample, model = collate(sentences[:4]), make_model(arch)
    net_input = sample["net_input"]
    order = torch.tensor([[2, 0, 0], [1, 1, 2], [0, 1, 2], [2, 2, 2]])
    one_hot = torch.nn.functional.one_hot(order, BEAM).float()
    rows = (order + BEAM * torch.arange(4).unsqueeze(1)).flatten()
    inputs = model.decoder.embed_tokens(torch.arange(4, 4 + 4 * BEAM).view(4, BEAM))
    outputs = []
    with without_dropout(model.decoder):
        encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
        for mixes in (True, False):
            decoder = IncrementalDecoder(
                model, encoder_out, batch_size=4, beam_size=BEAM
            )
            for position in range(3):
                log_probs = decoder.step(inputs, position)
                if mixes:
                    decoder.mix(one_hot)
                else:
                    # The cross attention's keys are one row a sentence: leave them.
                    state = {
                        name: value
                        for name, value in decoder._state.items()
                        if all(v is None or v.size(0) != 4 for v in value.values())
                    }
                    model.decoder.reorder_incremental_state_scripting(state, rows)
                    decoder._state.update(state)
            outputs.append(log_probs)
    assert torch.equal(*outputs)


def test_steps_of_slots_agree_with_parallel_decoding(
    arch, make_model, sentences, collate
):
    from fairseq_plugins.beam.decoder import IncrementalDecoder

    sample, model = collate(sentences), make_model(arch)
    net_input = sample["net_input"]
    tokens = net_input["prev_output_tokens"]
    encoder_out = model.encoder(net_input["src_tokens"], net_input["src_lengths"])
    parallel = model.get_normalized_probs(
        model.decoder(tokens, encoder_out=encoder_out), log_probs=True
    )
    decoder = IncrementalDecoder(
        model, encoder_out, batch_size=len(tokens), beam_size=2
    )
    for position in range(tokens.size(1)):
        inputs = decoder.embed(tokens[:, position]).unsqueeze(1).expand(-1, 2, -1)
        log_probs = decoder.step(inputs, position)
        alive = sample["target"][:, position].ne(1)
        for slot in range(2):
            torch.testing.assert_close(
                log_probs[alive, slot], parallel[alive, position], rtol=1e-4, atol=1e-4
            )


def test_gradients_of_one_step_are_those_of_finite_differences(settings):
    from fairseq_plugins.beam.losses import survival
    from fairseq_plugins.beam.state import BeamState
    from fairseq_plugins.beam.step import pool_candidates, select

    generator = torch.Generator().manual_seed(0)
    settings = dataclasses.replace(
        settings, mixing="soft", epsilon=0.7, pool_size=10, pad_id=1, eos_id=2
    )
    logits = torch.randn(2, BEAM, 12, generator=generator, dtype=torch.float64)
    scores = torch.randn(2, BEAM, generator=generator, dtype=torch.float64)
    gold = torch.tensor([5, 2])

    def step(scores: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = BeamState(
            scores,
            torch.tensor([[True, False, False], [False, True, False]]),
            torch.eye(BEAM, dtype=torch.bool).expand(2, -1, -1),
        )
        pool = pool_candidates(state, logits.log_softmax(-1), gold, settings)
        selection = select(state, pool, settings)
        return selection.from_slots, survival(pool, settings), selection.weights

    scores.requires_grad_(), logits.requires_grad_()
    assert torch.autograd.gradcheck(step, (scores, logits))


def test_a_slots_score_has_the_shares_as_its_gradient(settings):
    from fairseq_plugins.beam.step import select

    settings = dataclasses.replace(settings, mixing="soft", epsilon=0.7)
    scores = torch.tensor([[3.0, 2.7, 1.0, 0.0]], dtype=torch.float64)
    scores.requires_grad_()
    candidates = four_candidates(scores)
    selection = select(start_state(), candidates, settings)
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
        candidates = four_candidates(scores)
        weights = select(start_state(), candidates, chosen).weights
        (weights * torch.linspace(-9, 9, 12).view(1, 4, 3)).sum().backward()
        gradients[clip] = scores.grad
    cosine = torch.cosine_similarity(gradients[0.0], gradients[0.1])
    assert float(cosine) == pytest.approx(1)
    norm = torch.linspace(-9, 9, 12).norm()
    torch.testing.assert_close(gradients[0.1], gradients[0.0] * 0.1 / norm)


def test_gold_stays_a_candidate_however_badly_it_scores(settings):
    from fairseq_plugins.beam.step import pool_candidates

    settings = dataclasses.replace(settings, pool_size=4, pad_id=1, eos_id=2)
    log_probs = torch.arange(12.0).expand(1, BEAM, 12).log_softmax(-1)
    pool = pool_candidates(
        start_state(), log_probs, torch.tensor([3]), settings
    )
    assert pool.tokens.tolist() == [[11, 10, 9, 3]]
    assert pool.is_gold.tolist() == [[False, False, False, True]]
    assert pool.origins.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("gold, has_end", [(2, True), (5, False), (1, False)])
def test_the_end_of_sentence_competes_only_where_gold_ends(gold, has_end, settings):
    from fairseq_plugins.beam.step import pool_candidates

    settings = dataclasses.replace(settings, pool_size=4, pad_id=1, eos_id=2)
    log_probs = torch.zeros(1, BEAM, 12)
    log_probs[..., :4] = torch.tensor([3.0, 9.0, 8.0, 2.0])
    pool = pool_candidates(
        start_state(), log_probs.log_softmax(-1), torch.tensor([gold]), settings
    )
    assert (2 in pool.tokens[0].tolist()) == has_end
    assert 1 not in pool.tokens[0].tolist()
    assert pool.is_gold.any() == (gold != 1)


def test_schedule_is_geometric_and_ends():
    from fairseq_plugins.beam.schedule import geometric

    values = [geometric(1.0, 0.25, 4, update) for update in (0, 2, 4, 100)]
    assert values == pytest.approx([1.0, 0.5, 0.25, 0.25])
    assert geometric(1.0, 0.5, 0, 0) == 0.5
