"""Updates with extreme sentences and epsilons: nothing becomes NaN or infinite."""

from __future__ import annotations

import math
import random
from typing import Any, Callable

import pytest
import torch
from fairseq.data.language_pair_dataset import collate
from soak_tools import scaled

LOSSES = ("risk=1,survival=0.5", "slot-ce", "bso", "mrt", "risk")
MIXINGS = ("soft", "straight-through", "hard")
NARROWEST = {1: 1, 3: 2, 5: 1}  # beams by the last digit: slot-ce, mrt, risk + survival
LONG = 500  # tokens
FP16_SCALE = 128.0  # of the loss, as fairseq's --fp16-init-scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "updates", [24, pytest.param(scaled(1000), marks=[pytest.mark.soak])]
)
def test_losses_logs_and_gradients_stay_finite(
    dtype: torch.dtype,
    updates: int,
    task: Any,
    make_model: Callable[..., Any],
    make_criterion: Callable[..., Any],
) -> None:
    rng = random.Random(1)
    models = [
        make_model(arch, dropout=0.1).to(dtype) for arch in ("lstm", "transformer")
    ]
    for number in range(updates):
        beam = NARROWEST.get(number % 10, 35 if number % 50 == 7 else 4)
        criterion = make_criterion(
            beam_loss=LOSSES[number % 5], mixing=MIXINGS[number // 5 % 3], beam=beam,
            epsilon=10 ** (-4 + 5 * number / max(1, updates - 1)), beam_max_len_a=1.0,
            beam_max_len_b=5, rho=0.2, label_smoothing=0.1,
            pool_size=37 if beam > 10 else 0,
        )  # fmt: skip
        sample = draw_batch(task, rng, number)
        problem = update(models[number % 2], criterion, sample, dtype)
        assert not problem, (number, problem, criterion.cfg)


def draw_batch(task: Any, rng: random.Random, number: int) -> Any:
    """Return an ordinary or an extreme batch; each 25th has one of 500 tokens."""
    words = task.target_dictionary

    def sentence(length: int, word: int | None = None) -> torch.Tensor:
        ids = [rng.randrange(words.nspecial, len(words)) for _ in range(length)]
        return torch.tensor([*(ids if word is None else [word] * length), words.eos()])

    def ordinary() -> tuple[torch.Tensor, torch.Tensor]:
        return sentence(rng.randint(2, 8)), sentence(rng.randint(2, 8))

    if number % 25 == 24:
        pairs = [(sentence(LONG), sentence(LONG)), (sentence(1), sentence(1))]
    else:
        pairs = rng.choice((
            [ordinary() for _ in range(4)],
            [(sentence(1), sentence(1)) for _ in range(3)],
            [(sentence(3), sentence(0)), ordinary()],  # an empty target
            [(sentence(0), sentence(0)) for _ in range(2)],
            [(sentence(5, words.unk()), sentence(5, words.unk())) for _ in range(2)],
        ))  # fmt: skip
    items = [{"id": i, "source": s, "target": t} for i, (s, t) in enumerate(pairs)]
    return collate(items, words.pad(), words.eos(), left_pad_source=True)


def update(model: Any, criterion: Any, sample: Any, dtype: torch.dtype) -> str:
    """Make one update; return what was not finite. fp16 overflows are skipped."""
    scale = FP16_SCALE if dtype == torch.float16 else 1.0
    model.zero_grad()
    loss, size, logged = criterion(model, sample)
    values = {"loss": loss.item()}
    for name, value in logged.items():
        if isinstance(value, (int, float)) or torch.is_tensor(value):
            values[f"logged {name}"] = float(value)
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        return ", ".join(wrong)
    (loss * (scale / max(size, 1))).backward()
    with_gradient = [p for p in model.parameters() if p.grad is not None]
    if not all(bool(torch.isfinite(p.grad).all()) for p in with_gradient):
        return "" if dtype == torch.float16 else "gradient"
    with torch.no_grad():
        norms = [float(p.grad.float().norm()) / scale for p in with_gradient]
        step = 0.05 * min(1.0, 1.0 / (math.hypot(*norms) + 1e-6)) / scale
        for parameter in with_gradient:
            parameter.sub_((step * parameter.grad.float()).to(dtype))
    return ""
