"""From raw text to a comparison of BLEU through the users' commands."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, write_reversal_corpus

CONFIG = {
    "arch": "lstm",
    "encoder_embed_dim": 32,
    "encoder_hidden_size": 32,
    "decoder_embed_dim": 32,
    "decoder_hidden_size": 32,
    "decoder_out_embed_dim": 32,
    "optimizer": "adam",
    "lr": 0.01,
    "max_tokens": 400,
    "num_workers": 0,
    "log_format": "simple",
    "log_interval": 1,
}


def script(name: str, *args: object, check: bool = True) -> Any:
    command = [sys.executable, ROOT / "scripts" / name, *args]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def write_config(path: Path, **options: object) -> Path:
    path.write_text(yaml.safe_dump({**CONFIG, **options}))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that ``prepare.py`` made from a compressed file and a recipe."""
    folder = tmp_path_factory.mktemp("corpus")
    write_reversal_corpus(folder, sentences=300, seed=2)
    sides = {
        split: {
            "source": {"file": f"{split}.xx"},
            "target": {"file": f"{split}.yy"},
        }
        for split in ("train", "valid")
    }
    recipe = {
        "description": "reversed words",
        "source_lang": "xx",
        "target_lang": "yy",
        "licence": "made by this test",
        "published": "nowhere",
        "train": [{"name": "train", **sides["train"]}],
        "valid": [{"name": "valid", **sides["valid"]}],
        "test": [{"name": "reversed", **sides["valid"]}],
        "subwords": {
            "vocab_size": 34,
            "model_type": "bpe",
            "character_coverage": 1.0,
            "max_lines": 1000,
            "seed": 1,
        },
        "cleaning": {"max_words": 50},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(["xz", folder / "train.xx"], check=True)
    out = folder / "out"
    script("prepare.py", folder / "tiny.yaml", "--source", folder, "--out", out)
    return out


def test_prepare_train_resume_evaluate_and_compare(corpus, tmp_path):
    baseline = write_config(
        tmp_path / "ce.yaml", data=str(corpus), run=str(tmp_path / "ce"),
        criterion="label_smoothed_cross_entropy", max_update=30,
    )  # fmt: skip
    script("train.py", baseline)
    start = str(tmp_path / "ce" / "checkpoints" / "checkpoint_best.pt")
    beam = write_config(
        tmp_path / "beam.yaml", data=str(corpus), run=str(tmp_path / "beam"),
        criterion="soft_beam_search", beam=3, max_update=6, start_from=start,
    )  # fmt: skip
    control = write_config(
        tmp_path / "control.yaml", data=str(corpus), run=str(tmp_path / "control"),
        criterion="label_smoothed_cross_entropy", max_update=6, start_from=start,
    )  # fmt: skip
    script("train.py", control)
    script("train.py", beam, "max_update=3")
    resumed = script("train.py", beam, "--verbose").stdout
    assert "@ 3 updates" in resumed
    assert "gold_in_beam=" in resumed and "num_updates=6" in resumed
    assert "nothing to do" in script("train.py", beam).stdout

    script("evaluate.py", tmp_path / "beam", "--beam", 1, 3)
    result = tmp_path / "compared.json"
    table = script(
        "compare.py", tmp_path / "control", tmp_path / "ce", tmp_path / "beam",
        "--beam", 1, 3, "--json", result,
    )  # fmt: skip
    rows = json.loads(result.read_text())
    assert [(Path(row["run"]).name, row["beam"]) for row in rows] == [
        ("control", 1), ("control", 3), ("ce", 1), ("ce", 3), ("beam", 1), ("beam", 3)
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row["bleu"] <= 100 and row["sentences"] == 20
        assert ("bleu_p_value" in row) == (Path(row["run"]).name != "control")
        assert row["updates"] == (30 if Path(row["run"]).name == "ce" else 6)
        assert row["oracle_bleu"] >= row["bleu"] or row["beam"] == 1
        assert 0 <= row["search_errors"] <= 1
    names = ("control", "ce", "beam")
    one, other = (f"{tmp_path / a},{tmp_path / 'ce'}" for a in names[::2])
    script("compare.py", one, other, "--beam", 3, "--json", result)
    pooled = json.loads(result.read_text())
    of_run = {Path(r["run"]).name: r["bleu"] for r in rows if r["beam"] == 3}
    assert [len(row["runs"]) for row in pooled] == [2, 2]
    for row, name in zip(pooled, names[::2]):
        assert row["bleu_of_runs"] == [of_run[name], of_run["ce"]]
    low, high = pooled[1]["bleu_interval"]
    assert low <= pooled[1]["bleu_difference"] <= high
    assert "tok:13a" in rows[0]["bleu_signature"]
    assert "control" in table.stdout and f"{rows[-1]['bleu']:.2f}" in table.stdout


def test_killed_training_resumes(corpus, tmp_path):
    config = write_config(
        tmp_path / "c.yaml", data=str(corpus), run=str(tmp_path / "run"),
        criterion="soft_beam_search", beam=3, max_update=40,
        save_interval_updates=2, disable_validation=True,
    )  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(config)]
    command.append("--verbose")
    training = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert training.stdout is not None
    seen = random.Random(0).randint(6, 12)
    for line in training.stdout:
        if f"num_updates={seen}" in line:
            break
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    time.sleep(0.5)
    result = script("train.py", config, "--verbose")
    assert "loaded checkpoint" in result.stdout.lower()
    assert "num_updates=40" in result.stdout
    assert "nothing to do" in script("train.py", config).stdout


def test_compare_refuses_a_run_that_was_not_trained(tmp_path):
    result = script("compare.py", tmp_path, tmp_path, check=False)
    assert result.returncode == 2
    assert "must be a finished run of scripts/train.py" in result.stderr
    assert "Traceback" not in result.stderr
