"""Training curves from fairseq's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairseq_plugins.evaluation.report.curves import read_curves

STAMP = "2026-01-01 00:00:00 | INFO |"
INNER = [(20, 5.5, 0.25), (40, 5.0, 0.30), (60, 4.5, 0.35)]


def simple_log() -> list[str]:
    lines = [
        f"{STAMP} train_inner | epoch 001:  {n} / 99 loss={loss}, gold_in_beam={gold}, "
        f"epsilon=2, num_updates={n}, lr=0.001, wall=9"
        for n, loss, gold in INNER
    ]
    lines.append(
        f"{STAMP} valid | epoch 001 | valid on 'valid' subset | loss 4.2 | "
        "bleu 11.54 | num_updates 60 | best_bleu 11.54"
    )
    return lines + [f"{STAMP} train | epoch 001 | loss 5 | num_updates 60 | lr 0.001"]


def json_log() -> list[str]:
    lines = []
    for n, loss, gold in INNER:
        values = {"epoch": 1, "update": 0.2, "loss": str(loss), "epsilon": "2",
                  "gold_in_beam": str(gold), "num_updates": str(n)}  # fmt: skip
        lines.append(f"{STAMP} train_inner | {json.dumps(values)}")
    valid = {"valid_loss": "4.2", "valid_bleu": "11.54", "valid_num_updates": "60"}
    return lines + [f"{STAMP} valid | {json.dumps({'epoch': 1, **valid})}"]


@pytest.mark.parametrize("lines", [simple_log(), json_log()], ids=["simple", "json"])
def test_every_log_format_gives_the_same_curves(lines: list[str], tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_text("\n".join(["noise", *lines, f"{STAMP} train_inner | {{cut o"]))
    curves = read_curves(log)
    assert curves["train_loss"] == {n: loss for n, loss, _ in INNER}
    assert curves["train_gold_in_beam"] == {n: gold for n, _, gold in INNER}
    assert curves["train_epsilon"] == {20: 2.0, 40: 2.0, 60: 2.0}
    assert curves["valid_loss"] == {60: 4.2} and curves["valid_bleu"] == {60: 11.54}


def test_after_an_interruption_the_later_line_counts_and_order_is_kept(tmp_path: Path):
    log = tmp_path / "train.log"
    again = simple_log()[0].replace("loss=5.5", "loss=9.5")
    log.write_text("\n".join([*simple_log(), again]))
    losses = read_curves(log)["train_loss"]
    assert list(losses) == [20, 40, 60] and losses[20] == 9.5
    assert read_curves(tmp_path / "none.log") == {}


def test_many_points_are_averaged_and_keep_their_mean(tmp_path: Path):
    log = tmp_path / "train.log"
    line = "{} train_inner | epoch 001: 1 / 9 loss={}, num_updates={}"
    log.write_text("\n".join(line.format(STAMP, n % 7, n) for n in range(1, 4001)))
    losses = read_curves(log)["train_loss"]
    assert len(losses) <= 400 and max(losses) == 4000
    mean = sum(n % 7 for n in range(1, 4001)) / 4000
    assert sum(losses.values()) / len(losses) == pytest.approx(mean)
