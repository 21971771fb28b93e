"""What tests/soak/run.py finds out: hostile files, extreme numbers, kills, results."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT


import soak_common
import soak_hostile
import soak_numbers
import soak_payloads
import soak_resume


def test_foreign_pickles_are_refused_in_every_container_and_run_nothing(tmp_path):
    found = soak_hostile.load_foreign_checkpoints(tmp_path)
    assert found["files"] > 90
    assert found["passed"], found


def test_the_pickles_would_run_if_they_were_loaded_unsafely(tmp_path):
    marker = tmp_path / "marker"
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)"
    ran = 0
    for name, content in soak_payloads.checkpoints(marker):
        if not name.startswith(("reduce", "inst", "obj", "exec", "partial")):
            continue
        if name.endswith("in a bare pickle"):
            subprocess.run([sys.executable, "-c", code], input=content)
            ran += marker.exists()
            marker.unlink(missing_ok=True)
    assert ran == 5


def test_yaml_runs_nothing_and_no_reader_falls_over(tmp_path):
    assert soak_hostile.read_hostile_yaml(tmp_path)["passed"]


def test_archives_that_climb_write_nothing(tmp_path):
    assert soak_hostile.climb(tmp_path)["passed"]


def test_only_the_web_and_plain_names_are_taken(tmp_path):
    assert soak_hostile.open_other_schemes(tmp_path)["passed"]


@pytest.mark.parametrize("reader", soak_hostile.READERS)
def test_random_and_damaged_files_give_errors_and_no_crash(reader, tmp_path):
    found = soak_hostile.fuzz(reader, tmp_path, 60, fixed=True)
    assert found["passed"], found["crashed"]
    assert found["refused"] + found["accepted"] >= 50


def test_a_reader_that_crashes_is_found(tmp_path, monkeypatch):
    reader = ("x", lambda: b"abc", lambda path: path.read_bytes()[50])
    monkeypatch.setitem(soak_hostile.READERS, "broken", reader)
    assert not soak_hostile.fuzz("broken", tmp_path, 20, fixed=True)["passed"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_extreme_sentences_and_epsilons_stay_finite(dtype):
    found = soak_numbers.train_at_the_edges(dtype, 24, seed=1)
    assert found["passed"], found["first"]


def test_differences_are_found_bit_by_bit():
    one = {"a": [torch.zeros(2), 1]}
    other = {"a": [torch.tensor([0.0, 1e-45]), 1]}
    assert soak_resume.difference(one, {"a": [torch.zeros(2), 1]}) == []
    assert soak_resume.difference(one, other) == ["/a/0"]
    assert soak_resume.difference(one, {"a": [torch.zeros(2)]}) == ["/a (length)"]


def test_moments_to_kill_are_of_all_kinds_and_in_order():
    drawn = soak_resume.moments(random.Random(1), kills=20, updates=200)
    assert {kind for kind, _ in drawn} == {"write", "start", "update"}
    targets = [target for _, target in drawn]
    assert targets == sorted(targets)


def test_a_killed_tree_leaves_no_child():
    code = "import subprocess as s; p = s.Popen(['sleep', '9']); print(p.pid); p.wait()"
    process = subprocess.Popen(
        [sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    assert soak_resume.kill_tree(process)
    deadline = time.monotonic() + 5
    state = Path(f"/proc/{child}/stat")
    while state.exists() and time.monotonic() < deadline:
        if state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    assert time.monotonic() < deadline
    assert not soak_resume.kill_tree(process)


def test_parts_are_merged_and_not_done_twice(tmp_path):
    results = tmp_path / "r.json"
    soak_common.keep_part(results, "b", "one", {"passed": True})
    soak_common.keep_part(results, "a", "two", {"passed": False})
    soak_common.keep_part(results, "b", "three", {"passed": True})
    content = json.loads(results.read_text())
    assert list(content) == ["a", "b"]
    assert list(content["b"]) == ["one", "three"]
    assert soak_common.known_parts(results, "a") == {"two": {"passed": False}}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


COUNTS = {
    "resume": ("kills", "runs_compared"),
    "hostile": ("files", "reads", "strings", "examples"),
    "numbers": ("updates", "overflows_skipped"),
    "distribution": ("updates", "batches", "dummy_batches"),
    "memory": ("updates",),
    "places": ("commands",),
    "versions": ("tests_passed",),
}


def test_the_results_are_of_parts_that_exist_and_the_page_shows_them():
    import run as soak

    results = json.loads((ROOT / "results" / "reliability.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.*]+)` \|(.*)\|$", page, re.M))
    together = {"hostile": "hostile.fuzz_*", "numbers": "numbers.*"}
    shown = set()
    for section, parts in results.items():
        for name, figures in parts.items():
            assert name in soak.SECTIONS[section] and figures["passed"]
            row = f"{section}.{name}"
            if row not in rows:
                row = together[section]
                assert f"`{name.removeprefix('fuzz_')}`" in rows[row]
            shown.add(row)
            for key in figures.keys() & set(COUNTS[section]):
                assert f"{figures[key]:,}" in rows[row], (row, key)
    assert shown == rows.keys()
    missing = page.partition("Not run yet:")[2]
    for section, known in soak.SECTIONS.items():
        for name in known.keys() - results.get(section, {}).keys():
            assert f"`{section}.{name}`" in missing


def test_a_unit_at_the_root_of_a_tmx_is_read_and_what_follows_it_refused(tmp_path):
    path = tmp_path / "t.tmx"
    read = soak_hostile.READERS["text_tmx"][2]
    unit = '<tu><tuv xml:lang="xx"><seg>a</seg></tuv></tu>'
    path.write_text(unit)
    read(path)
    path.write_text(f"{unit}</body>")
    with pytest.raises(soak_hostile.UserError, match="not well-formed"):
        read(path)
