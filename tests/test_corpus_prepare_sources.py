"""scripts/prepare.py with archives, single stages, slices and several processes."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import psutil
import pytest
import yaml
from conftest import SHARED_DATA
from test_corpus_prepare import PAIRS, SCRIPT, call, outputs, write_corpus

from fairseq_plugins.corpus.manifest import PreparedCorpus

STAGES = ("extract", "clean", "subwords", "encode", "binarise")
LANGUAGES = {"source": "de", "target": "en"}


def sgm(text: str) -> bytes:
    lines = "".join(f'<seg id="1">{line}</seg>\n' for line in text.splitlines())
    return f"<refset>\n{lines}</refset>\n".encode()


def write_archives(folder: Path) -> tuple[Path, Path]:
    """Put the corpus of ``test_corpus_prepare`` into a tgz and a tar, with a recipe."""
    recipe_path = write_corpus(folder)
    content: dict[str, Any] = yaml.safe_load(recipe_path.read_text())
    del content["folder"]
    packed = folder / "packed"
    packed.mkdir()
    members: dict[str, dict[str, bytes]] = {"train.tgz": {}, "dev.tar": {}}
    for place in ("train", "valid", "test"):
        for part in content[place]:
            archive = "train.tgz" if place == "train" else "dev.tar"
            part["archive"], part["lines"] = archive, PAIRS[part["name"]]
            for side in LANGUAGES:
                plain = (folder / "text" / part[side]["file"]).read_bytes()
                name = f"d/{part[side]['file']}"
                if place == "valid":
                    name, plain = f"{name}.gz", gzip.compress(plain)
                elif place == "test":
                    name, plain = f"{name}.sgm", sgm(plain.decode())
                part[side]["members"] = [name]
                members[archive][name] = plain
    archives = []
    for name, files in members.items():
        mode = "w:gz" if name.endswith("tgz") else "w"
        with tarfile.open(packed / name, mode) as tar:  # type: ignore[call-overload]
            for member, data in files.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        data = (packed / name).read_bytes()
        archives.append({"file": name, "url": f"http://127.0.0.1:9/{name}",
                         "bytes": len(data),
                         "sha256": hashlib.sha256(data).hexdigest()})  # fmt: skip
    content["archives"] = archives
    path = folder / "packed.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path, packed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_archives(folder)
    result = call(folder / "mine.yaml", "--out", folder / "whole", "--workers", 1)
    assert result.returncode == 0, result.stderr
    return folder


def test_local_archives_give_the_same_as_plain_text_by_any_number_of_processes(
    corpus, tmp_path
):
    out = tmp_path / "out"
    result = call(corpus / "packed.yaml", "--source", corpus / "packed", "--out", out,
                  "--workers", 3)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert outputs(out) == outputs(corpus / "whole")


@pytest.fixture
def server(corpus: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(corpus / "packed"))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_archives_are_downloaded_once_and_prepared(corpus, server, tmp_path):
    recipe = tmp_path / "packed.yaml"
    text = (corpus / "packed.yaml").read_text()
    recipe.write_text(text.replace("http://127.0.0.1:9", server))
    options = ("--out", tmp_path / "out", "--downloads", tmp_path / "got")
    assert call(recipe, *options, "--stage", "fetch").returncode == 0
    assert not (tmp_path / "out").exists()
    got = {path.name for path in (tmp_path / "got").iterdir()}
    assert got == {"train.tgz", "train.tgz.json", "dev.tar", "dev.tar.json"}
    shutil.copy(corpus / "packed.yaml", recipe)  # the server is not there any more
    result = call(recipe, *options)
    assert result.returncode == 0, result.stderr
    assert outputs(tmp_path / "out") == outputs(corpus / "whole")


def test_a_local_archive_with_other_bytes_is_refused(corpus, tmp_path):
    packed = Path(shutil.copytree(corpus / "packed", tmp_path / "packed"))
    with open(packed / "train.tgz", "r+b") as stream:
        stream.seek(200)
        stream.write(b"????")
    result = call(corpus / "packed.yaml", "--source", packed, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"`{packed / 'train.tgz'}` must have sha256" in result.stderr
    assert not (tmp_path / "out").exists()
    (packed / "train.tgz").unlink()
    result = call(corpus / "packed.yaml", "--source", packed, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"`{packed}` lacks train.\n" in result.stderr
    assert "train.de, train.en (400 lines each), or train.tgz" in result.stderr


def test_single_stages_make_the_same_as_all_at_once(corpus, tmp_path):
    out = tmp_path / "out"
    arguments = (corpus / "mine.yaml", "--out", out, "--workers", 1, "--stage")
    result = call(*arguments, "encode")
    assert result.returncode == 2
    assert "`--stage encode` needs `text-train-train`" in result.stderr
    assert "Run `--stage extract` first, or all stages" in result.stderr
    for stage in STAGES:
        assert not (out / "manifest.json").exists()
        result = call(*arguments, stage)
        assert result.returncode == 0, result.stderr
    assert outputs(out) == outputs(corpus / "whole")
    PreparedCorpus.load(out)
    result = call(corpus / "mine.yaml", "--out", out)
    assert "is up to date; nothing to do" in result.stderr


def test_a_stage_of_other_settings_leaves_nothing_that_looks_finished(corpus, tmp_path):
    out = Path(shutil.copytree(corpus / "whole", tmp_path / "out"))
    options = ("--out", out, "--vocab-size", 100, "--stage", "subwords")
    assert call(corpus / "mine.yaml", *options).returncode == 0
    assert not (out / "manifest.json").exists()
    assert not (out / "bin").exists() and not (out / "ids").exists()


def test_smoke_takes_existing_files_and_names_the_others(corpus, tmp_path):
    content = yaml.safe_load((corpus / "packed.yaml").read_text())
    part = json.loads(json.dumps(content["train"][0]))
    part["name"] = "absent"
    for side, language in LANGUAGES.items():
        part[side] = {"file": f"absent.{language}", "members": ["x"]}
    content["train"].append(part)
    content["train"][0]["source"]["sample"] = ["text/*rain.de"]
    content["train"][0]["target"]["sample"] = ["text/*rain.en"]
    content["subwords"]["vocab_size"] = 110
    (tmp_path / "slice.yaml").write_text(yaml.safe_dump(content))
    (corpus / "text" / "text").mkdir(exist_ok=True)
    for language in LANGUAGES.values():
        source = corpus / "text" / f"train.{language}"
        shutil.copy(source, corpus / "text" / "text" / f"mytrain.{language}")
    folder = Path(shutil.copytree(corpus / "text", tmp_path / "source"))
    for path in folder.glob("train.*"):
        path.unlink()
    arguments = (tmp_path / "slice.yaml", "--source", folder, "--out", tmp_path / "out")
    result = call(*arguments)
    assert result.returncode == 2 and "lacks train, absent." in result.stderr
    result = call(*arguments, "--smoke")
    assert result.returncode == 0, result.stderr
    assert "Left out, because the source lacks it: absent\n" in result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["smoke"] == {"left_out": ["absent"]}
    assert manifest["recipe"] == "slice-smoke"
    assert len((tmp_path / "out/raw/valid.de").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("option", "pieces"), [((), 1000), (("--vocab-size", 1200), 1200)]
)
def test_smoke_does_not_limit_an_explicit_vocabulary_size(tmp_path, option, pieces):
    out = tmp_path / "out"
    result = call("builtin-en-fr", "--smoke", *option, "--out", out)
    assert result.returncode == 0, result.stderr
    assert len((out / "spm/joint.vocab").read_text().splitlines()) == pieces


def test_subword_nmt_after_moses_gives_the_output_of_these_tools(corpus, tmp_path):
    sacremoses = pytest.importorskip("sacremoses")
    apply_bpe = pytest.importorskip("subword_nmt.apply_bpe")
    out = tmp_path / "out"
    result = call(corpus / "mine.yaml", "--out", out, "--model-type", "subword-nmt",
                  "--workers", 2)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len((out / "bpe/codes").read_text().splitlines()) == 121
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["bpe_codes"] == "bpe/codes" and "spm_model" not in manifest
    tokenise = sacremoses.MosesTokenizer("en").tokenize
    with open(out / "bpe/codes") as stream:
        bpe = apply_bpe.BPE(stream)
    raw = (out / "raw/test.en").read_text().splitlines()
    expected = [bpe.process_line(tokenise(line, return_str=True)) for line in raw]
    encoded = json.loads((out / "ids/test.en.pieces").read_text())["pieces"]
    ids = np.fromfile(out / "ids/test.en.ids", np.int32)
    assert [encoded[number] for number in ids] == " ".join(expected).split()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills them")
def test_a_killed_run_leaves_no_worker_process(corpus, tmp_path):
    out = tmp_path / "out"
    for language in LANGUAGES.values():
        lines = (corpus / "text" / f"train.{language}").read_text()
        (tmp_path / f"train.{language}").write_text(lines * 200)
        for name in ("dev", "old", "new"):
            shutil.copy(corpus / "text" / f"{name}.{language}", tmp_path)
    command = [sys.executable, str(SCRIPT), str(corpus / "mine.yaml"), "--source",
               str(tmp_path), "--out", str(out), "--workers", "2"]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(workers := psutil.Process(running.pid).children()) < 2:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    assert not (out / "manifest.json").exists()


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    "name, tests, left_out",
    [
        ("wmt14-en-fr", ["newstest2014"], 4),
        ("wmt14-en-fr-12m", ["newstest2014"], 4),
        ("wmt14-en-de", ["newstest2014", "newstest2014-2737"], 2),
        ("wmt16-en-de", ["newstest2016", "newstest2014"], 2),
        ("iwslt14-de-en", ["iwslt14"], 0),
    ],
)
def test_a_slice_of_each_large_recipe_is_prepared(name, tests, left_out, tmp_path):
    result = call(name, "--smoke", "--source", SHARED_DATA, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Left out") == left_out
    prepared = PreparedCorpus.load(tmp_path / "out")
    sizes = {key: subset.pairs for key, subset in prepared.subsets.items()}
    assert 1900 <= sizes["train"] <= 2000
    titles = [f"{name}-smoke" for name in tests]
    assert [prepared.subset(title)[1].pairs for title in titles] == [50] * len(tests)
    assert sizes["valid"] == 100
    assert os.path.getsize(prepared.bin_dir / "dict.en.txt") > 5000


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
def test_without_smoke_missing_files_are_named(tmp_path):
    result = call("wmt14-en-fr", "--source", SHARED_DATA, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "lacks europarl-v7, commoncrawl, un, news-commentary-v9, giga." in (
        result.stderr
    )
    assert not (tmp_path / "out").exists()
