"""Time and memory of an update for the beam, as ratios to a cross-entropy update.

    python scripts/bench_training.py --output results/beam_training/cost_cpu.json

Models have random weights and the batches random tokens, whose hypotheses would not
end by themselves: they are ended two tokens beyond the length of the source, which is
that of the target. Times are medians of neighbouring turns; memory is the peak of one
update in a process of its own, beyond model and batch.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable

import _environment

_environment.ensure()

import torch  # noqa: E402

from _measuring import compare_in_turns, peak_beyond  # noqa: E402
from fairseq_plugins.pipeline.errors import run_command_line  # noqa: E402
from fairseq_plugins.pipeline.files import write_between, write_json  # noqa: E402

SYSTEMS: dict[str, dict[str, Any]] = {
    "risk, two-pass": dict(beam_loss="risk"),
    "risk, rollout": dict(beam_loss="risk", engine="rollout"),
    "survival, two-pass": dict(beam_loss="survival"),
    "risk + survival, two-pass": dict(beam_loss="risk=1,survival=0.1"),
    "mrt, two-pass": dict(beam_loss="mrt"),
    "bso, two-pass": dict(beam_loss="bso"),
    "paper: slot-ce, soft, rollout": dict(
        beam_loss="slot-ce", mixing="soft", epsilon=0.1, selection_clip=0.0, rho=0.8
    ),
}
PREDICTED = "risk, two-pass"  # the system that the formula for memory is about
MODELS: dict[str, dict[str, Any]] = {
    "lstm": dict(
        encoder_embed_dim=256, encoder_hidden_size=256, encoder_bidirectional=True,
        decoder_embed_dim=256, decoder_hidden_size=256, decoder_out_embed_dim=256,
        share_decoder_input_output_embed=True,
    ),
    "transformer": dict(
        encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_layers=3,
        encoder_attention_heads=4, decoder_layers=3, decoder_attention_heads=4,
        decoder_embed_dim=256,
        share_decoder_input_output_embed=True,
    ),
}  # fmt: skip
# Vocabulary and target length: the first is the size of Multi30k, the others grow.
SIZES = [(6_000, 16), (24_000, 16), (6_000, 64)]


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(_peak(json.loads(options.memory)))
        return
    rows = []
    for arch in options.models:
        for vocabulary, length in SIZES[: options.sizes]:
            case = dict(
                arch=arch, vocabulary=vocabulary, length=length, beam=options.beam,
                tokens=options.tokens, device=options.device, precision="fp32",
            )  # fmt: skip
            rows += _measure(case, options.seconds)
    report = {"environment": _describe(options), "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    if options.page:
        write_between(options.page, "cost", _table(rows))
    print(f"written to {options.output}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/bench_training.json"))
    add("--page", type=Path, help="document whose table of costs to replace")
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--sizes", type=int, default=len(SIZES), help="first N only")
    add("--tokens", type=int, default=1024, help="target tokens in the batch")
    add("--beam", type=int, default=5)
    add("--seconds", type=float, default=20.0, help="per comparison")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def _describe(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": " ".join(["python", *sys.argv]),
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "device": options.device,
        "torch": torch.__version__,
        "load_before": os.getloadavg(),
    }


def _measure(case: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    ground_memory = _peak_in_child({**case, "system": None})
    ground = _update(case, None)
    rows = []
    for system in SYSTEMS:
        row = {**case, "system": system}
        row |= compare_in_turns(_update(case, system), ground, seconds)
        row["megabytes"] = _peak_in_child({**case, "system": system}) / 1e6
        row["memory_ratio"] = 1e6 * row["megabytes"] / ground_memory
        if system == PREDICTED:
            row["predicted_megabytes"] = predicted_bytes(case) / 1e6
        rows.append(row)
        print(
            f"{case['arch']:12} V {case['vocabulary']:6} T {case['length']:3}"
            f" {system:30}"
            f" {row['milliseconds']:8.0f} ms = {row['ratio']:5.2f} x cross entropy,"
            f" memory {row['megabytes']:7.0f} MB = {row['memory_ratio']:5.2f} x"
            f" (formula {row.get('predicted_megabytes', float('nan')):.0f} MB)",
            flush=True,
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each case and system, in Markdown."""
    lines = ["| model | V | length | system | time | memory | memory, MB (formula) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        predicted = row.get("predicted_megabytes")
        formula = "" if predicted is None else f" ({predicted:.0f})"
        lines.append(
            f"| {row['arch']} | {row['vocabulary']:,} | {row['length']} "
            f"| {row['system']} | {row['ratio']:.1f} x | {row['memory_ratio']:.1f} x "
            f"| {row['megabytes']:.0f}{formula} |"
        )
    return "\n".join(lines)


def predicted_bytes(case: dict[str, Any]) -> float:
    """Return the peak memory by the formula of docs/beam_training.md."""
    config = MODELS[case["arch"]]
    width, layers = config["decoder_embed_dim"], config.get("decoder_layers", 1)
    tokens, vocabulary = case["tokens"], case["vocabulary"]
    nodes = case["beam"] * tokens * width * layers
    if case["arch"] == "lstm":
        return 4 * (1.5 * tokens * vocabulary + 24 * nodes + 3 * vocabulary * width)
    return 4 * (1.9 * tokens * vocabulary + 25 * nodes)


def _peak_in_child(case: dict[str, Any]) -> int:
    command = [sys.executable, __file__, "--memory", json.dumps(case)]
    # Freed memory goes back at once, so that the peak is what is in use.
    returning = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | returning
    )
    return int(answer.stdout.split()[-1])


def _peak(case: dict[str, Any]) -> int:
    small = _update({**case, "tokens": 2 * case["length"]}, case["system"])
    small()  # libraries allocate on their first call
    return peak_beyond(_update(case, case["system"]), device=case["device"])


def _update(case: dict[str, Any], system: str | None) -> Callable[[], None]:
    """Return a forward and backward pass of one batch."""
    task, model = _task_and_model(case)
    chosen = {"rho": 1.0} if system is None else SYSTEMS[system]
    criterion = _criterion(task, {"beam": case["beam"], **chosen})
    sample = _batch(case, task)

    def update() -> None:
        model.zero_grad(set_to_none=True)
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()

    return update


def _task_and_model(case: dict[str, Any]) -> tuple[Any, Any]:
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    import fairseq_plugins

    fairseq_plugins.register()
    dictionary = Dictionary()
    for number in range(case["vocabulary"] - dictionary.nspecial):
        dictionary.add_symbol(f"w{number}")
    task = TranslationTask(TranslationConfig(), dictionary, dictionary)
    torch.manual_seed(1)
    args = Namespace(criterion="cross_entropy", dropout=0.1, **MODELS[case["arch"]])
    ARCH_CONFIG_REGISTRY[case["arch"]](args)
    model = ARCH_MODEL_REGISTRY[case["arch"]].build_model(args, task)
    return task, model.to(case["device"]).train()


def _criterion(task: Any, options: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    from fairseq_plugins.criterions.options import SoftBeamSearchConfig
    from fairseq_plugins.criterions.soft_beam_search import SoftBeamSearchCriterion

    ends = {"beam_max_len_a": 1.0, "beam_max_len_b": 1}  # with its end: two beyond
    config = OmegaConf.structured(
        SoftBeamSearchConfig(label_smoothing=0.1, **{**ends, **options})
    )
    config.sentence_avg = False
    return SoftBeamSearchCriterion.build_criterion(config, task).train()


def _batch(case: dict[str, Any], task: Any) -> dict[str, Any]:
    dictionary = task.target_dictionary
    rows, length = max(1, case["tokens"] // case["length"]), case["length"]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(
        dictionary.nspecial, len(dictionary), (2, rows, length), generator=generator
    )
    tokens[..., -1] = dictionary.eos()
    source, target = tokens.to(case["device"])
    return {
        "id": torch.arange(rows),
        "nsentences": rows,
        "ntokens": rows * length,
        "target": target,
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((rows,), length, device=source.device),
            "prev_output_tokens": target.roll(1, dims=1),
        },
    }


if __name__ == "__main__":
    run_command_line(main)
