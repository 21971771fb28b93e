"""Hundreds of updates at the edges of numbers: nothing may become NaN or infinite."""

from __future__ import annotations

import logging
import math
import random
import tempfile
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any, Iterator

__all__ = ["PARTS", "batches", "build_task", "train_at_the_edges"]

logger = logging.getLogger("fairseq_plugins.soak")

_UPDATES = 1000
_LOSSES = ("risk=1,survival=0.5", "slot-ce", "bso", "mrt", "risk")
_NARROW = {1: 1, 3: 2, 5: 1}  # by the last digit: slot-ce, mrt, risk + survival
_MIXINGS = ("soft", "straight-through", "hard")
_SCALE = 128.0  # of the loss in fp16, as fairseq's --fp16-init-scale
_EVERY_LONG = 25
_LONG = 500


def build_task(folder: Path) -> Any:
    """Return fairseq's translation task with a dictionary of 40 words, no data."""
    from fairseq.data import Dictionary
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    dictionary = Dictionary()
    for number in range(40):
        dictionary.add_symbol(f"w{number}", n=40 - number)
    for language in ("xx", "yy"):
        dictionary.save(str(folder / f"dict.{language}.txt"))
    cfg = TranslationConfig(data=str(folder), source_lang="xx", target_lang="yy")
    return TranslationTask.setup_task(cfg)


def batches(task: Any, rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Yield ordinary batches and, again and again, extreme ones by their name."""
    import torch
    from fairseq.data.language_pair_dataset import collate

    words = task.target_dictionary
    pad, eos, unk = words.pad(), words.eos(), words.unk()

    def sentence(length: int, word: int | None = None) -> Any:
        ids = [rng.randrange(words.nspecial, len(words)) for _ in range(length)]
        return torch.tensor([*(ids if word is None else [word] * length), eos])

    def batch(pairs: list[tuple[Any, Any]]) -> Any:
        items = [{"id": i, "source": source, "target": target}
                 for i, (source, target) in enumerate(pairs)]  # fmt: skip
        return collate(items, pad, eos, left_pad_source=True)

    def ordinary() -> tuple[Any, Any]:
        return sentence(rng.randint(2, 8)), sentence(rng.randint(2, 8))

    number = 0
    while True:
        number += 1
        if not number % _EVERY_LONG:
            name = "500 tokens"
            pairs = [(sentence(_LONG), sentence(_LONG)), (sentence(1), sentence(1))]
        else:
            name, pairs = rng.choice((
                ("ordinary", [ordinary() for _ in range(4)]),
                ("1 token", [(sentence(1), sentence(1)) for _ in range(3)]),
                ("empty target", [(sentence(3), sentence(0)), ordinary()]),
                ("all empty", [(sentence(0), sentence(0)) for _ in range(2)]),
                ("all <unk>", [(sentence(5, unk), sentence(5, unk)) for _ in range(2)]),
            ))  # fmt: skip
        yield name, batch(pairs)


def _model(task: Any, arch: str) -> Any:
    import torch
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    torch.manual_seed(1)
    args = Namespace(
        criterion="cross_entropy", dropout=0.1, encoder_embed_dim=16,
        decoder_embed_dim=16, encoder_hidden_size=16, decoder_hidden_size=16,
        decoder_out_embed_dim=16, encoder_ffn_embed_dim=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).train()


def _criterion(task: Any, loss: str, mixing: str, *, beam: int) -> Any:
    from omegaconf import OmegaConf

    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    cfg = OmegaConf.structured(SoftBeamSearchConfig(
        beam_loss=loss, mixing=mixing, beam=beam, beam_max_len_a=1.0, rho=0.2,
        beam_max_len_b=5, label_smoothing=0.1, pool_size=41 if beam > 10 else 0,
    ))  # fmt: skip
    cfg.sentence_avg = False
    return SoftBeamSearchCriterion.build_criterion(cfg, task).train()


def _setting(number: int, updates: int) -> tuple[str, str, float]:
    """Return loss, mixing and an epsilon that goes from 1e-4 to 10."""
    share = number / max(1, updates - 1)
    return (
        _LOSSES[number % len(_LOSSES)],
        _MIXINGS[number // len(_LOSSES) % len(_MIXINGS)],
        10 ** (-4 + 5 * share),
    )


def train_at_the_edges(dtype: str, updates: int, seed: int) -> Any:
    """Train both architectures in turn; report whatever was not finite."""
    import torch

    kind = getattr(torch, dtype)
    broken: list[str] = []
    seen, overflows = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        task = build_task(Path(folder))
    models = [_model(task, arch).to(kind) for arch in ("lstm", "transformer")]
    stream = batches(task, random.Random(seed))
    criteria: dict[tuple[str, str, int], Any] = {}
    for number in range(updates):
        loss_name, mixing, epsilon = _setting(number, updates)
        name, sample = next(stream)
        # The narrowest beam that a loss learns from, and a wide one.
        beam = _NARROW.get(number % 10, 35 if number % 50 == 7 else 4)
        key = (loss_name, mixing, beam)
        if key not in criteria:
            criteria[key] = _criterion(task, loss_name, mixing, beam=beam)
        criterion = criteria[key]
        criterion.cfg.epsilon = epsilon
        scale = _SCALE if dtype == "float16" else 1.0
        found = _update(models[number % 2], criterion, sample, scale)
        seen[name] += 1
        overflows += found == "overflow"
        if found not in ("", "overflow"):
            arch = ("lstm", "transformer")[number % 2]
            broken.append(f"{name}, {arch}, {key}, epsilon {epsilon:.2g}: {found}")
        if not (number + 1) % 100:
            logger.info("%s: %d of %d updates", dtype, number + 1, updates)
    return {
        "updates": updates, "batches": dict(sorted(seen.items())),
        "epsilon": [1e-4, 10], "overflows_skipped": overflows,
        "not_finite": len(broken), "first": broken[:10], "passed": not broken,
    }  # fmt: skip


def _update(model: Any, criterion: Any, sample: Any, scale: float) -> str:
    """Make one update; return what was not finite; ``overflow``: it was skipped."""
    import torch

    model.zero_grad()
    loss, size, logged = criterion(model, sample)
    if not math.isfinite(loss.item()):
        return f"loss {loss.item()}"
    values = {k: float(v) for k, v in logged.items() if _is_number(v)}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        return f"logged {', '.join(wrong)}"
    (loss * (scale / max(size, 1))).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return "overflow" if scale != 1 else "gradient"
    with torch.no_grad():
        norm = math.sqrt(sum(float(g.float().norm()) ** 2 for g in gradients)) / scale
        step = 0.05 * min(1.0, 1.0 / (norm + 1e-6)) / scale
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_((step * parameter.grad.float()).to(parameter.dtype))
    return ""


def _is_number(value: Any) -> bool:
    import torch

    return isinstance(value, (int, float)) or torch.is_tensor(value)


def _part(dtype: str) -> Any:
    def run(updates: int, seed: int) -> Any:
        return train_at_the_edges(dtype, updates or _UPDATES, seed)

    run.__doc__ = f"Updates in {dtype}, epsilon from 1e-4 to 10, extreme sentences."
    return run


PARTS = {dtype: _part(dtype) for dtype in ("float32", "bfloat16", "float16")}
