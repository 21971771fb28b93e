"""scripts/prepare.py as users run it, through interruptions and damage."""

from __future__ import annotations

import copy
import fcntl
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from conftest import ROOT, SHARED_DATA
from test_corpus_recipe import GOOD, write_recipe

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.corpus.prepare import prepare
from fairseq_plugins.corpus.recipe import load_recipe

SCRIPT = ROOT / "scripts" / "prepare.py"
PAIRS = {"train": 400, "dev": 20, "old": 15, "new": 10}
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "rn", "schß")]


def call(*args: object, **options: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, **options
    )


def write_corpus(folder: Path) -> Path:
    """Write a recipe with its text: German, and English as German reversed."""
    rng = random.Random(5)
    (folder / "text").mkdir(parents=True)
    for name, count in PAIRS.items():
        lines = [rng.choices(WORDS, k=rng.randint(2, 12)) for _ in range(count)]
        for language, step in (("de", 1), ("en", -1)):
            text = "".join(" ".join(line[::step]).capitalize() + "\n" for line in lines)
            (folder / "text" / f"{name}.{language}").write_text(text, encoding="utf-8")
    parts = {
        name: {"name": name, **{side: {"file": f"{name}.{language}"} for side, language
               in (("source", "de"), ("target", "en"))}}
        for name in PAIRS
    }  # fmt: skip
    recipe = {
        "description": "made up", "licence": "none", "published": "no place",
        "source_lang": "de", "target_lang": "en", "folder": "text",
        "train": [parts["train"]], "valid": [parts["dev"]],
        "test": [parts["old"], parts["new"]],
        "subwords": {"vocab_size": 120, "model_type": "bpe", "max_lines": 10000,
                     "character_coverage": 1.0, "seed": 1},
        "cleaning": {"max_words": 50},
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    """Return all files with final names, except the manifest, which holds times."""
    names = ("text", "raw", "spm", "ids", "bin")
    paths = [path for name in names for path in (folder / name).glob("[!.]*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A folder that was prepared without interruption; not to be changed."""
    result = call(recipe, "--out", recipe.parent / "whole")
    assert result.returncode == 0, result.stderr
    return recipe.parent / "whole"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of the prepared folder, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_fairseq_reads_the_folder_and_knows_every_piece(whole):
    from fairseq.tasks.translation import TranslationConfig, TranslationTask
    from sentencepiece import SentencePieceProcessor

    corpus = PreparedCorpus.load(whole)
    data = str(corpus.bin_dir)
    cfg = TranslationConfig(data=data, source_lang="de", target_lang="en")
    cfg.dataset_impl, cfg.train_subset, cfg.required_seq_len_multiple = None, "train", 1
    task = TranslationTask.setup_task(cfg)
    processor = SentencePieceProcessor(model_file=str(corpus.spm_model))
    assert task.source_dictionary.symbols == task.target_dictionary.symbols
    for subset, name in zip(corpus.subsets, PAIRS):
        task.load_dataset(subset)
        dataset = task.dataset(subset)
        assert len(dataset) == corpus.subsets[subset].pairs == PAIRS[name]
        lines = (whole / "raw" / f"{subset}.en").read_text().splitlines()
        for index, pieces in enumerate(processor.encode(lines, out_type=str)):
            text = task.target_dictionary.string(dataset[index]["target"])
            assert text.split() == pieces
    assert [entry.title for entry in corpus.subsets.values()] == [
        "train", "valid", "old", "new"
    ]  # fmt: skip


def test_the_raw_text_equals_the_source(whole, recipe):
    corpus = PreparedCorpus.load(whole)
    for entry, name in zip(corpus.subsets.values(), PAIRS):
        text = recipe.parent / "text"
        assert entry.source.read_bytes() == (text / f"{name}.de").read_bytes()
        assert entry.target.read_bytes() == (text / f"{name}.en").read_bytes()


def test_the_manifest_counts_and_digests_everything(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    stages = manifest["stages"].values()
    recorded = [name for stage in stages for name in stage["outputs"]]
    assert sorted(recorded) == sorted(outputs(whole))
    counts = manifest["stages"]["binarise"]["counts"]
    assert counts["test1.en"]["sentences"] == PAIRS["new"]
    assert counts["train.de"]["unknown"] == 0
    assert "sentencepiece" in manifest["stages"]["subwords"]["versions"]
    assert manifest["stages"]["subwords"]["settings"]["vocab_size"] == 120


def test_a_second_run_does_nothing_and_reports_it(out, recipe):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    result = call(recipe, "--out", out)
    assert result.returncode == 0
    assert result.stderr == f"`{out}` is up to date; nothing to do.\n"
    lock = out / ".prepare.lock"
    for path in before.keys() - {lock, out / ".digests.json"}:
        assert path.stat().st_mtime_ns == before[path]


def test_another_vocabulary_size_redoes_the_pieces_but_not_the_text(out, recipe):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("raw/*")}
    result = call(recipe, "--out", out, "--vocab-size", 100)
    assert result.returncode == 0, result.stderr
    assert "vocab_size was 120 and is 100" in result.stderr
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("raw/*")}
    assert len((out / "spm/joint.vocab").read_text().splitlines()) == 100
    counts = json.loads((out / "manifest.json").read_text())["stages"]
    assert counts["binarise"]["counts"]["train.de"]["tokens"] == (
        PAIRS["train"] + counts["encode-train"]["counts"]["de_pieces"]
    )


@pytest.mark.parametrize("damaged", ["raw/test.de", "bin/train.de-en.en.idx"])
def test_a_damaged_output_is_made_again(out, recipe, whole, damaged):
    with open(out / damaged, "r+b") as stream:
        stream.seek(20)
        stream.write(b"\xff")
    result = call(recipe, "--out", out)
    assert f"({damaged} is damaged)" in result.stderr
    assert outputs(out) == outputs(whole)


@pytest.mark.parametrize("compress", ["xz", "gzip"])
def test_compressed_sources_give_the_same_as_plain_ones(
    recipe, whole, tmp_path, compress
):
    text, out = tmp_path / "text", tmp_path / "out"
    shutil.copytree(recipe.parent / "text", text)
    subprocess.run([compress, *text.iterdir()], check=True)
    run_until("spm/joint.model", out, recipe, "--source", text)
    for name, content in outputs(out).items():
        assert outputs(whole)[name] == content
    assert len(list((out / "raw").iterdir())) == 8


def run_until(made: str, out: Path, *args: object) -> None:
    """Kill the script, which gets no chance to tidy up, as soon as a file is there."""
    command = [sys.executable, str(SCRIPT), *map(str, args), "--out", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / made).exists():
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    running.kill()
    running.wait()


_MOMENTS = ["text/valid.dev.en", "raw/train.en", "spm/joint.model", "ids/train.de.ids",
            ".bin.partial"]  # fmt: skip


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_run_killed_at_any_moment_continues_to_the_same_output(
    recipe, whole, tmp_path, moment
):
    out = tmp_path / "out"
    run_until(moment, out, recipe)
    assert not (out / "manifest.json").exists()
    assert not (out / "bin").exists()
    finished = outputs(out)
    assert all(outputs(whole)[name] == content for name, content in finished.items())
    result = call(recipe, "--out", out)
    assert result.returncode == 0, result.stderr
    assert outputs(out) == outputs(whole)
    assert not list(out.rglob("*.partial"))


def limited(num_bytes: int) -> Callable[[], None]:
    """A full disk for a child process: no file may grow beyond this size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def test_a_full_disk_leaves_no_half_file_and_the_next_run_continues(
    recipe, whole, tmp_path
):
    out = tmp_path / "out"
    sizes = sorted(len(content) for content in outputs(whole).values())
    for limit in (0, 100, *sizes[::6]):
        result = call(recipe, "--out", out, preexec_fn=limited(limit))
        assert result.returncode == 1
        assert "File too large while writing" in result.stderr
        assert "Free some space and run again." in result.stderr
        for name, content in outputs(out).items():
            assert content == outputs(whole)[name]
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob("*.partial"))
    assert call(recipe, "--out", out).returncode == 0
    assert outputs(out) == outputs(whole)


def test_two_runs_at_once_in_one_folder_are_refused(out, recipe):
    with open(out / ".prepare.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = call(recipe, "--out", out)
    assert result.returncode == 2
    assert "another scripts/prepare.py uses" in result.stderr
    assert call(recipe, "--out", out).returncode == 0


def test_a_folder_of_another_recipe_is_refused(out, recipe, tmp_path):
    other = shutil.copy(recipe, tmp_path / "other.yaml")
    result = call(other, "--source", recipe.parent / "text", "--out", out)
    assert result.returncode == 2
    assert "holds `mine` and not `other`" in result.stderr


def test_a_corrected_source_file_is_read_again(out, recipe, tmp_path):
    text = Path(shutil.copytree(recipe.parent / "text", tmp_path / "text"))
    (text / "train.de").write_text("Und" + (text / "train.de").read_text())
    result = call(recipe, "--source", text, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "(train.de has changed)" in result.stderr


def test_a_change_of_either_of_two_files_with_one_name_is_noticed(tmp_path):
    recipe = copy.deepcopy(GOOD)
    parts = [recipe["train"][0], *recipe["valid"], *recipe["test"]]
    for language, side in (("de", "source"), ("en", "target")):
        (tmp_path / "from" / language).mkdir(parents=True)
        for part in parts:
            name = f"{language}/{part['name']}"
            part[side]["local"] = [name]
            (tmp_path / "from" / name).write_text("before\n")
    path = write_recipe(tmp_path, {**recipe, "train": parts[:1]})
    corpus = load_recipe(str(path))[1]
    for number, language in enumerate(("de", "en", "de")):
        (tmp_path / "from" / language / "one").write_text(f"{number}\n")
        prepare("mine", corpus, sources=tmp_path / "from", out=tmp_path / "out",
                stage="extract")  # fmt: skip
        text = tmp_path / "out" / "text" / f"train.one.{language}"
        assert text.read_text() == f"{number}\n"


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["multi30k-de-en", "multi30k-en-de", "multi30k-en-fr"])
def test_multi30k_is_read_and_verified(name, tmp_path):
    out = tmp_path / "out"
    run_until("ids/valid.en.pieces", out, name, "--source", SHARED_DATA / "multi30k")
    stages = json.loads((out / ".progress.json").read_text())["stages"]
    assert stages["clean-train"]["counts"]["pairs"] == 29_000
    assert stages["clean-test1"]["counts"]["pairs"] == 1_000
