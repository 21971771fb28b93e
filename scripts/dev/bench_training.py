"""Time and memory of an update, as ratios to those of the ordinary update.

    python scripts/dev/bench_training.py beam         # losses on the beam
    python scripts/dev/bench_training.py attention    # top-k attention

The baseline is cross entropy, or the plain Transformer. Models have random weights and
batches random tokens. With losses on the beam, hypotheses would not end by themselves:
they end two tokens after the length of the source, which is that of the target. With
top-k attention, the attention is sharpened to a spread of scores as in trained models,
on which the number of the solver's steps depends. Times are medians of neighboring
turns, in CPU time for one thread; memory is the peak of one update in a fresh process,
beyond model and batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from typing import Any, Callable

import torch
from measure import (
    compare_in_turns,
    create_parser,
    describe_machine,
    measure_peak,
    measure_peak_in_child,
)
from random_models import SIZES, create_batch, create_model, create_task, create_update
from results_tables import merge_rows

from fairseq_plugins.utils.errors import run_command_line

ALL = "cross,decoder,encoder"
BASELINE = "baseline"
SYSTEMS: dict[str, dict[str, dict[str, Any]]] = {
    "beam": {  # options of the criterion
        BASELINE: dict(rho=1.0),
        "risk, two-pass": dict(beam_loss="risk", engine="two-pass"),
        "risk, rollout": dict(beam_loss="risk", engine="rollout"),
        "survival, two-pass": dict(beam_loss="survival", engine="two-pass"),
        "risk + survival, two-pass": dict(
            beam_loss="risk=1,survival=0.1", engine="two-pass"
        ),
        "mrt, two-pass": dict(beam_loss="mrt", engine="two-pass"),
        "bso, two-pass": dict(beam_loss="bso", engine="two-pass"),
        "paper: slot-ce, soft, rollout": dict(
            beam_loss="slot-ce", mixing="soft", epsilon=0.1, selection_clip=0.0,
            rho=0.8, beam_dropout="none",
        ),
    },
    "attention": {  # options of the model
        BASELINE: dict(),
        "soft, cross": dict(),
        "soft, cross, decoder and encoder": dict(topk_attentions=ALL),
        "soft, all three, epsilon 0.1": dict(topk_attentions=ALL, topk_epsilon=0.1),
        "soft, all three, learnt": dict(topk_attentions=ALL, topk_learn="both"),
        "hard, all three": dict(topk_attentions=ALL, topk_operator="hard"),
        "entmax-1.5, all three": dict(topk_attentions=ALL, topk_operator="entmax15"),
    },
}  # fmt: skip
PREDICTED = "risk, two-pass"  # the system that the formula for memory describes
# Vocabulary and target length: the first is the size of Multi30k, the others grow.
CASES: dict[str, list[dict[str, Any]]] = {
    "beam": [
        dict(model=model, vocabulary=vocabulary, length=length, beam=5)
        for model in SIZES
        for vocabulary, length in ((6_000, 16), (24_000, 16), (6_000, 64))
    ],
    "attention": [
        dict(model="transformer_topk", vocabulary=6_000, length=length, beam=None)
        for length in (50, 100)
    ],
}
GAIN = 4.0  # of query and key projections: scores then spread by about 2 nats
KEY = ("study", "model", "vocabulary", "length", "beam", "tokens", "precision",
       "system", "threads", "device")  # fmt: skip


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak(json.loads(options.memory)))
        return
    # Other processes do not count in the CPU time of this one's only thread.
    is_alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if is_alone else time.perf_counter
    machine = describe_machine(threads=options.threads, device=options.device)
    for case in CASES[options.study][: options.cases]:
        case = {
            "study": options.study, **case, "tokens": options.tokens,
            "precision": options.precision, "device": options.device,
        }  # fmt: skip
        rows = _measure(case, options.seconds, clock)
        merge_rows(options.output, [row | machine for row in rows], KEY)
    print(f"written to {options.output}")


def _parse() -> argparse.Namespace:
    parser = create_parser(__doc__, "training_cost.csv")
    add = parser.add_argument
    add("study", choices=list(SYSTEMS), nargs="?", default="beam")
    add("--tokens", type=int, default=1024, help="target tokens in the batch")
    add("--seconds", type=float, default=20.0, help="per comparison")
    add("--cases", type=int, help="the first N sizes only")
    add("--precision", choices=list(_DTYPES), default="fp32")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(
    case: dict[str, Any], seconds: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    base = {**case, "system": BASELINE}
    base_update, base_peak = _update(base), measure_peak_in_child(__file__, base)
    rows = []
    for system, options in SYSTEMS[case["study"]].items():
        is_missing = (
            options.get("topk_operator") == "entmax15"
            and importlib.util.find_spec("entmax") is None
        )
        if system == BASELINE or is_missing:
            continue
        row = {**case, "system": system}
        row |= compare_in_turns(_update(row), base_update, seconds, clock=clock)
        peak = measure_peak_in_child(__file__, row)
        row |= {"megabytes": peak / 1e6, "memory_ratio": peak / base_peak}
        if system == PREDICTED:
            row["predicted_megabytes"] = predict_bytes(case) / 1e6
        rows.append(row)
        print(
            f"{case['model']:16} V {case['vocabulary']:6} T {case['length']:3}"
            f" {system:32} {row['ms']:7.0f} ms = {row['ratio']:5.2f} x,"
            f" memory {row['megabytes']:6.0f} MB = {row['memory_ratio']:5.2f} x",
            flush=True,
        )
    return rows


def predict_bytes(case: dict[str, Any]) -> float:
    """Return the peak memory by the formula of docs/results.md."""
    sizes = SIZES[case["model"]]
    width, layers = sizes["decoder_embed_dim"], sizes.get("decoder_layers", 1)
    tokens, vocabulary = case["tokens"], case["vocabulary"]
    nodes = case["beam"] * tokens * width * layers
    if case["model"] == "lstm":
        return 4 * (1.5 * tokens * vocabulary + 24 * nodes + 3 * vocabulary * width)
    return 4 * (1.9 * tokens * vocabulary + 25 * nodes)


def _peak(case: dict[str, Any]) -> int:
    _update({**case, "tokens": 2 * case["length"]})()  # libraries allocate at first
    return measure_peak(_update(case), device=case["device"])


def _update(case: dict[str, Any]) -> Callable[[], None]:
    task = create_task(case["vocabulary"])
    arch, options = case["model"], SYSTEMS[case["study"]][case["system"]]
    if case["study"] == "beam":
        model = create_model(task, arch, **SIZES[arch])
        criterion = _create_criterion(task, {"beam": case["beam"], **options})
    else:
        from fairseq.criterions.label_smoothed_cross_entropy import (
            LabelSmoothedCrossEntropyCriterion,
        )

        if case["system"] == BASELINE:
            arch = arch.removesuffix("_topk")
        model = create_model(task, arch, **SIZES["transformer"], **options)
        _sharpen(model)
        criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    model.to(case["device"], _DTYPES[case["precision"]])
    sample = create_batch(
        task, tokens=case["tokens"], length=case["length"], device=case["device"]
    )
    return create_update(model, criterion, sample)


_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _create_criterion(task: Any, options: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    limits = {"beam_max_len_a": 1.0, "beam_max_len_b": 1}  # with the end: two beyond
    config = OmegaConf.structured(
        SoftBeamSearchConfig(label_smoothing=0.1, **{**limits, **options})
    )
    config.sentence_avg = False
    return SoftBeamSearchCriterion.build_criterion(config, task).train()


@torch.no_grad()
def _sharpen(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter *= GAIN**0.5


if __name__ == "__main__":
    run_command_line(main)
