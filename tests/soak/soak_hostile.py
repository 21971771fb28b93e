"""Hostile and damaged input to every reader: a clear error, and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import lzma
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator

from soak_common import write_corpus
from soak_payloads import checkpoints, climbing_archives, yaml_texts

from fairseq_plugins.corpus.manifest import FORMAT, PreparedCorpus
from fairseq_plugins.corpus.readers import Text, read_segments
from fairseq_plugins.corpus.recipe import Archive, Recipe
from fairseq_plugins.training.config import read_config
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_json, read_lines, write_json
from fairseq_plugins.utils.typed_yaml import read_dataclass

__all__ = [
    "PARTS",
    "READERS",
    "climb",
    "fuzz",
    "load_foreign_checkpoints",
    "open_other_schemes",
    "read_hostile_yaml",
]

logger = logging.getLogger("fairseq_plugins.soak")


def load_foreign_checkpoints(folder: Path) -> Any:
    """Foreign pickles in checkpoints are refused and run nothing."""
    from fairseq_plugins.training.launch import _read_checkpoint

    marker, path = folder / "marker", folder / "checkpoint.pt"
    count, accepted, ran = 0, [], []
    for name, content in checkpoints(marker):
        path.write_bytes(content)
        count += 1
        try:
            _read_checkpoint(path)
            accepted.append(name)
        except UserError:
            pass
        if _was_made(marker):
            ran.append(name)
    return {"files": count, "accepted": accepted, "ran_code": ran,
            "passed": not accepted and not ran}  # fmt: skip


def read_hostile_yaml(folder: Path) -> Any:
    """Object tags in YAML run nothing, and no YAML makes a reader fall over."""
    marker, path = folder / "marker", folder / "input.yaml"
    count, ran, crashed = 0, list[str](), list[str]()
    for name, text in yaml_texts(marker):
        path.write_text(text, encoding="utf-8")
        for reader in (
            lambda: read_config(path),
            lambda: read_dataclass(path, Recipe),
            lambda: read_config(_minimal(folder), [f"lr={text}"]),
        ):
            count += 1
            crashed += _crash(name, reader)
            if _was_made(marker):
                ran.append(name)
    return {"files": count, "crashed": crashed, "ran_code": ran,
            "passed": not crashed and not ran}  # fmt: skip


def _was_made(marker: Path) -> bool:
    """Tell whether a payload was obeyed, and take its mark away for the next."""
    made = marker.exists()
    marker.unlink(missing_ok=True)
    return made


def _crash(name: str, read: Callable[[], Any]) -> list[str]:
    """Read what is hostile; return the name with any error that is no answer to it."""
    try:
        read()
    except UserError:
        pass
    except Exception as error:
        return [f"{name}: {type(error).__name__}"]
    return []


def _minimal(folder: Path) -> Path:
    path = folder / "minimal.yaml"
    path.write_text("data: x\nrun: y\n")
    return path


def climb(folder: Path) -> Any:
    """Members of archives that climb out of their folder write nothing anywhere."""
    inner = folder / "a" / "b"
    inner.mkdir(parents=True, exist_ok=True)
    count, written, crashed = 0, set[str](), list[str]()
    for name, content in climbing_archives(folder):
        path = inner / "archive.tar"
        path.write_bytes(content)
        for member in ("text.xx", "../climbed", str(folder / "climbed")):
            count += 1
            text = Text(path, (member,), "plain")
            crashed += _crash(name, lambda: list(read_segments(text, "xx")))
        written.update(str(p.relative_to(folder)) for p in folder.rglob("*climbed*"))
    return {"reads": count, "written": sorted(written), "crashed": crashed,
            "passed": not written and not crashed}  # fmt: skip


_URLS = (
    "file:///etc/passwd", "ftp://host/x", "FILE:///etc/passwd", "data:,x",
    "gopher://host/", "javascript:alert(1)", "jar:http://host!/x", "//host/x",
    "http:/host", "https://", "-o/tmp/x", "/etc/passwd", "http:///x", "ldap://host/x",
    "", " http://host/x", "http\n://host/x",
)  # fmt: skip
_SHELL = ("$(touch x)", "`touch x`", "; touch x", "| touch x", "&& touch x", "\n")


def open_other_schemes(folder: Path) -> Any:
    """Urls of other schemes, and names that climb or speak to a shell, are refused."""
    taken = []
    for url in _URLS:
        with contextlib.suppress(UserError):
            Archive(file="a.tgz", url=url)
            taken.append(url)
    for name in ("../a", "/a", "a/b", "..", ".", ""):
        with contextlib.suppress(UserError):
            Archive(file=name, url="https://host/a")
            taken.append(name)
    from fairseq_plugins.corpus.recipe import load_recipe

    for text in _SHELL:
        with contextlib.suppress(UserError):
            load_recipe(text)
            taken.append(text)
    strings = len(_URLS) + 6 + len(_SHELL)
    return {"strings": strings, "taken": taken, "passed": not taken}


def _text(form: str, members: tuple[str, ...] = ()) -> Callable[..., Any]:
    return lambda path: list(read_segments(Text(path, members, form), "xx"))


def _override(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    read_config(_minimal(path.parent), [f"lr={text}", text])


def _without_fields(path: Path) -> None:
    """Take what the bytes choose out of a whole manifest, or put it in elsewhere."""
    content = json.loads(_MANIFEST)
    for byte in path.read_bytes()[:3]:
        keys = [key for key in content if key != "format"]
        key = keys[byte % len(keys)] if keys else ""
        if byte < 128:
            content.pop(key, None)
        else:
            content[key] = [None, 3, [], {}, "x", {"test": 1}, {"test": {}}][byte % 7]
    write_json(path, content)
    PreparedCorpus.load(path.parent)


def _tarball() -> bytes:
    return next(content for name, content in climbing_archives(Path("/nowhere")))


def _recipe_text() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_corpus(Path(folder), pairs={"train": 1, "dev": 1, "new": 1}
                            ).read_bytes()  # fmt: skip


_SGM = b'<doc><seg id="1">a &amp; b</seg>\n<seg id="2">c\nd</seg></doc>\n'
_TMX = (
    b'<?xml version="1.0"?><tmx version="1.4"><body><tu><tuv xml:lang="xx"><seg>a'
    b'</seg></tuv><tuv xml:lang="yy"><seg>b</seg></tuv></tu></body></tmx>'
)
_MANIFEST = json.dumps({
    "format": FORMAT, "recipe": "r", "source_lang": "xx", "target_lang": "yy",
    "spm_model": "spm/m", "bin_dir": "bin", "stages": {}, "subsets": {
        "test": {"title": "t", "source": "a", "target": "b", "pairs": 1}},
}).encode()  # fmt: skip
# By name: a file name, something valid to start from, and what reads it.
READERS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "config": ("c.yaml", lambda: b"data: x\nrun: y\nlr: [0.1, 2]\nb: &a 1\nc: *a\n",
               read_config),
    "override": ("o.txt", lambda: b"adam_betas='(0.9, 0.98)'", _override),
    "recipe": ("r.yaml", _recipe_text, lambda path: read_dataclass(path, Recipe)),
    "manifest_fields": ("manifest.json", lambda: _MANIFEST, _without_fields),
    "json": ("s.json", lambda: b'[{"beam": 1, "bleu": 2e3}]', read_json),
    "manifest": ("manifest.json", lambda: _MANIFEST,
                 lambda path: PreparedCorpus.load(path.parent)),
    "lines": ("t.txt", lambda: "a\u00e9\r\nb\n".encode(), read_lines),
    "lines_gz": ("t.gz", lambda: gzip.compress(b"a\nb\n", mtime=0), read_lines),
    "lines_xz": ("t.xz", lambda: lzma.compress(b"a\nb\n"), read_lines),
    "text_plain": ("t.xx", lambda: b"a\nb\n", _text("plain")),
    "text_gz": ("t.xx.gz", lambda: gzip.compress(_SGM, mtime=0), _text("sgm")),
    "text_sgm": ("t.sgm", lambda: _SGM, _text("sgm")),
    "text_tmx": ("t.tmx", lambda: _TMX, _text("tmx")),
    "text_ted": ("t.xx", lambda: b"<url>u</url>\n<title>t</title>\nx\n",
                 _text("ted")),
    "text_tar": ("t.tar", _tarball, _text("plain", ("text.xx",))),
}  # fmt: skip


def fuzz(reader: str, folder: Path, examples: int, *, fixed: bool = False) -> Any:
    """Give a reader damaged and random files; return what else than errors it gave.

    Args:
        reader: one of :data:`READERS`.
        examples: how many files.
        fixed: always the same ones.
    """
    from hypothesis import HealthCheck, given, settings, strategies as st

    name, valid, read = READERS[reader]
    seedling, path = valid(), folder / name
    counts, crashed = Counter[str](), dict[str, str]()
    place = st.integers(0, len(seedling))
    splice = st.tuples(place, place, st.binary(max_size=12))
    damage = st.lists(splice, min_size=1, max_size=4)

    def _apply(splices: list[tuple[int, int, bytes]]) -> bytes:
        content = seedling
        for begin, end, new in splices:
            content = content[:begin] + new + content[max(begin, end) :]
        return content

    @settings(max_examples=examples, database=None, deadline=None, derandomize=fixed,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        st.one_of(
            damage.map(_apply),
            st.binary(max_size=200),
            st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")),
        )
    )
    def give(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
            counts["accepted"] += 1
        except UserError as error:
            counts["refused"] += 1
            assert str(error)
        except Exception as error:
            crashed.setdefault(f"{type(error).__name__}: {error}"[:200], repr(content))

    give()
    return {"accepted": counts["accepted"], "refused": counts["refused"],
            "crashed": crashed, "passed": not crashed}  # fmt: skip


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _in_folder(job: Callable[[Path], Any]) -> Callable[..., Any]:
    def run() -> Any:
        with _folder() as folder:
            return job(folder)

    run.__doc__ = job.__doc__
    return run


def _fuzzed(reader: str) -> Callable[..., Any]:
    def run(examples: int) -> Any:
        with _folder() as folder:
            return {"examples": examples, **fuzz(reader, folder, examples)}

    run.__doc__ = f"Random and damaged files to the reader `{reader}`."
    return run


PARTS: dict[str, Callable[..., Any]] = {
    "checkpoints": _in_folder(load_foreign_checkpoints),
    "yaml": _in_folder(read_hostile_yaml),
    "archives": _in_folder(climb),
    "urls": _in_folder(open_other_schemes),
    **{f"fuzz_{name}": _fuzzed(name) for name in READERS},
}
