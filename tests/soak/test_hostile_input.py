"""Hostile and damaged input to every reader: a clear error and nothing else."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import payloads
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak_tools import load_checkpoint, scaled, write_corpus

from fairseq_plugins.corpus.manifest import FORMAT, PreparedCorpus
from fairseq_plugins.corpus.readers import Text, read_segments
from fairseq_plugins.corpus.recipe import Archive, Recipe, load_recipe
from fairseq_plugins.training.config import read_config
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines, write_json
from fairseq_plugins.utils.typed_yaml import read_dataclass


def read_quietly(read: Callable[[], Any]) -> None:
    """Read something; the only error allowed is one with a message for the user."""
    try:
        read()
    except UserError as error:
        assert str(error)


def minimal_config(folder: Path) -> Path:
    path = folder / "minimal.yaml"
    path.write_text("data: x\nrun: y\n")
    return path


def test_foreign_pickles_in_checkpoints_are_refused_and_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "checkpoint.pt"
    for name, content in payloads.checkpoints(marker):
        path.write_bytes(content)
        with pytest.raises(Exception):  # torch has many for a damaged file
            print("accepted:", name, load_checkpoint(path))
        assert not marker.exists(), name


def test_the_pickles_would_run_if_they_were_loaded_unsafely(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)"
    for name, content in payloads.checkpoints(marker):
        kind = name.split(" in ")[0]
        if name.endswith("a bare pickle") and kind in (
            "reduce",
            "obj",
            "exec",
            "partial",
        ):
            subprocess.run([sys.executable, "-c", code], input=content)
            assert marker.exists(), name
            marker.unlink()


def test_yaml_runs_nothing_and_crashes_no_reader(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "input.yaml"
    for name, text in payloads.yaml_texts(marker):
        path.write_text(text, encoding="utf-8")
        read_quietly(lambda: read_config(path))
        read_quietly(lambda: read_dataclass(path, Recipe))
        read_quietly(lambda: read_config(minimal_config(tmp_path), [f"lr={text}"]))
        assert not marker.exists(), name


def test_archives_that_lead_out_of_their_folder_write_nothing(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name, content in payloads.climbing_archives(tmp_path):
        path = inner / "archive.tar"
        path.write_bytes(content)
        for member in ("text.xx", "../climbed", str(tmp_path / "climbed")):
            text = Text(path, (member,), "plain")
            read_quietly(lambda: list(read_segments(text, "xx")))
        assert not list(tmp_path.rglob("*climbed*")), name


URLS = (
    "file:///etc/passwd", "ftp://host/x", "FILE:///etc/passwd", "data:,x",
    "gopher://host/", "javascript:alert(1)", "jar:http://host!/x", "//host/x",
    "http:/host", "https://", "-o/tmp/x", "/etc/passwd", "http:///x", "ldap://host/x",
    "", " http://host/x", "http\n://host/x",
)  # fmt: skip
NAMES = ("../a", "/a", "a/b", "..", ".", "")
SHELL = ("$(touch x)", "`touch x`", "; touch x", "| touch x", "&& touch x", "\n")


@pytest.mark.parametrize("url", URLS)
def test_urls_that_are_not_of_the_web_are_refused(url: str) -> None:
    with pytest.raises(UserError):
        Archive(file="a.tgz", url=url)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_archives_with_folders_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        Archive(file=name, url="https://host/a")


@pytest.mark.parametrize("name", SHELL)
def test_names_of_recipes_are_no_shell_commands(name: str) -> None:
    with pytest.raises(UserError):
        load_recipe(name)


def text_reader(form: str, members: tuple[str, ...] = ()) -> Callable[[Path], Any]:
    return lambda path: list(read_segments(Text(path, members, form), "xx"))


def read_override(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    read_config(minimal_config(path.parent), [f"lr={text}", text])


def read_changed_manifest(path: Path) -> None:
    """Remove or replace the keys of a manifest that the bytes of the file choose."""
    content = json.loads(MANIFEST)
    for byte in path.read_bytes()[:3]:
        keys = [key for key in content if key != "format"]
        key = keys[byte % len(keys)] if keys else ""
        if byte < 128:
            content.pop(key, None)
        else:
            content[key] = [None, 3, [], {}, "x", {"test": 1}, {"test": {}}][byte % 7]
    write_json(path, content)
    PreparedCorpus.load(path.parent)


def recipe_text(folder: Path) -> bytes:
    pairs = {"train": 1, "dev": 1, "new": 1}
    return write_corpus(folder / "corpus", pairs=pairs).read_bytes()


CONFIG = b"data: x\nrun: y\nlr: [0.1, 2]\nb: &a 1\nc: *a\n"
SGM = b'<doc><seg id="1">a &amp; b</seg>\n<seg id="2">c\nd</seg></doc>\n'
TMX = (
    b'<?xml version="1.0"?><tmx version="1.4"><body><tu><tuv xml:lang="xx"><seg>a'
    b'</seg></tuv><tuv xml:lang="yy"><seg>b</seg></tuv></tu></body></tmx>'
)
MANIFEST = json.dumps({
    "format": FORMAT, "recipe": "r", "source_lang": "xx", "target_lang": "yy",
    "spm_model": "spm/m", "bin_dir": "bin", "stages": {}, "subsets": {
        "test": {"title": "t", "source": "a", "target": "b", "pairs": 1}},
}).encode()  # fmt: skip
TAR = next(content for _, content in payloads.climbing_archives(Path("/nowhere")))
# By name: a file name, valid content, and the reader.
READERS: dict[str, tuple[str, bytes | None, Callable[[Path], Any]]] = {
    "config": ("c.yaml", CONFIG, read_config),
    "override": ("o.txt", b"adam_betas='(0.9, 0.98)'", read_override),
    "recipe": ("r.yaml", None, lambda path: read_dataclass(path, Recipe)),
    "manifest_fields": ("manifest.json", MANIFEST, read_changed_manifest),
    "json": ("s.json", b'[{"beam": 1, "bleu": 2e3}]', read_json),
    "manifest": ("manifest.json", MANIFEST, lambda p: PreparedCorpus.load(p.parent)),
    "lines": ("t.txt", "aé\r\nb\n".encode(), read_lines),
    "lines_gz": ("t.gz", gzip.compress(b"a\nb\n", mtime=0), read_lines),
    "lines_xz": ("t.xz", lzma.compress(b"a\nb\n"), read_lines),
    "text_plain": ("t.xx", b"a\nb\n", text_reader("plain")),
    "text_gz": ("t.xx.gz", gzip.compress(SGM, mtime=0), text_reader("sgm")),
    "text_sgm": ("t.sgm", SGM, text_reader("sgm")),
    "text_tmx": ("t.tmx", TMX, text_reader("tmx")),
    "text_ted": ("t.xx", b"<url>u</url>\n<title>t</title>\nx\n", text_reader("ted")),
    "text_tar": ("t.tar", TAR, text_reader("plain", ("text.xx",))),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "examples", [60, pytest.param(scaled(10_000), marks=pytest.mark.soak)]
)
def test_random_and_damaged_files_are_read_or_refused(
    reader: str, examples: int, tmp_path: Path
) -> None:
    name, valid, read = READERS[reader]
    path = tmp_path / name
    seed = recipe_text(tmp_path) if valid is None else valid
    place = st.integers(0, len(seed))
    splices = st.lists(st.tuples(place, place, st.binary(max_size=12)), min_size=1,
                       max_size=4)  # fmt: skip

    def damage(splices: list[tuple[int, int, bytes]]) -> bytes:
        content = seed
        for begin, end, new in splices:
            content = content[:begin] + new + content[max(begin, end) :]
        return content

    @settings(max_examples=examples, database=None, deadline=None,
              derandomize=examples == 60,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        st.one_of(
            splices.map(damage),
            st.binary(max_size=200),
            st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        )
    )
    def give(content: bytes) -> None:
        path.write_bytes(content)
        read_quietly(lambda: read(path))

    give()


def test_a_tmx_with_content_after_its_root_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tmx"
    read = text_reader("tmx")
    unit = '<tu><tuv xml:lang="xx"><seg>a</seg></tuv></tu>'
    path.write_text(unit)
    read(path)
    path.write_text(f"{unit}</body>")
    with pytest.raises(UserError, match="not well-formed"):
        read(path)
