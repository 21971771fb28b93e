"""Files that try to run code, or to write where they must not, when they are read.

Every payload would make the file ``marker`` if it were obeyed.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Iterator

__all__ = ["checkpoints", "climbing_archives", "yaml_texts"]


def checkpoints(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Yield checkpoints by name: every pickle in every kind of file."""
    for name, code in _pickles(str(marker)):
        for kind, pack in _CONTAINERS.items():
            yield f"{name} in {kind}", pack(code)
    whole = _zip(b"}.")
    yield "empty file", b""
    yield "text", b"not a checkpoint\n"
    yield "cut zip", whole[: len(whole) // 2]
    yield "zip without pickle", _zip_of({"archive/version": b"3\n"})
    yield "climbing member", _zip_of({"../data.pkl": b"}.", "../version": b"3\n"})
    yield "model that is a list", _zip(b"}X\x05\x00\x00\x00model]s.")


def _pickles(marker: str) -> Iterator[tuple[str, bytes]]:
    """Yield pickles that call what they name, by every opcode that calls."""
    touch = f"touch {marker}".encode()
    python = f"open({marker!r}, 'w').close()".encode()
    yield "reduce", b"cposix\nsystem\n(V" + touch + b"\ntR."
    yield "inst", b"(V" + touch + b"\niposix\nsystem\n."
    yield "obj", b"(cposix\nsystem\nV" + touch + b"\no."
    yield "newobj", b"\x80\x02csubprocess\nPopen\n((Vtouch\nV" + _line(marker) + (
        b"\nlt\x81."
    )
    yield "stack_global", pickle.dumps(_Calls("system", touch.decode()), protocol=4)
    yield "protocol 0", pickle.dumps(_Calls("system", touch.decode()), protocol=0)
    yield "exec", b"cbuiltins\nexec\n(V" + python + b"\ntR."
    yield "eval", b"cbuiltins\neval\n(V" + python + b"\ntR."
    yield "getattr", (
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(V"
        + touch + b"\ntR."
    )  # fmt: skip
    yield "partial", b"cfunctools\npartial\n(cposix\nsystem\nV" + touch + b"\ntR(tR."
    yield "nested storage", (
        b"\x80\x02ctorch.storage\n_load_from_bytes\nB"
        + _sized(b"cposix\nsystem\n(V" + touch + b"\ntR.") + b"\x85R."
    )  # fmt: skip
    yield "type_v2", (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\ncbuiltins\nint\n(V"
        + touch + b"\nt}tR."
    )  # fmt: skip
    yield "setstate", (
        b"cargparse\nNamespace\n)\x81}V__setstate__\ncposix\nsystem\nsbV"
        + touch + b"\nb."
    )  # fmt: skip
    yield "in model", b"}Vmodel\ncposix\nsystem\n(V" + touch + b"\ntRs."


def _line(text: str) -> bytes:
    return text.encode("raw_unicode_escape")


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


class _Calls:
    def __init__(self, name: str, argument: str) -> None:
        self._call = (name, argument)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return getattr(os, self._call[0]), (self._call[1],)


def _zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _zip(code: bytes) -> bytes:
    return _zip_of({"archive/data.pkl": code, "archive/version": b"3\n"})


def _deflated(code: bytes) -> bytes:
    members = {"archive/data.pkl": code, "archive/version": b"3\n"}
    return _zip_of(members, zipfile.ZIP_DEFLATED)


def _twice(code: bytes) -> bytes:
    """A harmless pickle first, then another under the same name in other letters."""
    return _zip_of({"archive/data.pkl": code, "archive/DATA.PKL": b"}.",
                    "archive/version": b"3\n"})  # fmt: skip


def _script_module(code: bytes) -> bytes:
    """What torch.jit.save makes, by its members."""
    return _zip_of(
        {
            "archive/constants.pkl": code,
            "archive/data.pkl": code,
            "archive/code/__torch__.py": b"",
            "archive/version": b"3\n",
        }
    )


def _legacy(code: bytes) -> bytes:
    """The format before torch 1.6: four pickles one after the other."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    protocol = pickle.dumps(1001, protocol=2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, protocol=2)
    return magic + protocol + system + code + pickle.dumps([], protocol=2)


def _tar(code: bytes) -> bytes:
    """The format of torch 0.1."""
    return _tar_of({"storages": code, "tensors": code, "pickle": code})


def _tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


_CONTAINERS = {
    "a bare pickle": lambda code: code,
    "a zip": _zip,
    "a compressed zip": _deflated,
    "a zip with two pickles": _twice,
    "a script module": _script_module,
    "the legacy format": _legacy,
    "a tar": _tar,
}


def yaml_texts(marker: Path) -> Iterator[tuple[str, str]]:
    """Yield YAML by name: object tags, and what makes careless readers fall over."""
    touch = f"touch {marker}"
    calls = {
        "apply": f'!!python/object/apply:os.system ["{touch}"]',
        "new": f'!!python/object/new:os.system ["{touch}"]',
        "exec": f"!!python/object/apply:exec [\"open('{marker}', 'w')\"]",
        "popen": f'!!python/object/apply:subprocess.Popen [[touch, "{marker}"]]',
        "long tag": f'!<tag:yaml.org,2002:python/object/apply:os.system> ["{touch}"]',
        "name": "!!python/name:os.system",
        "module": "!!python/module:os",
        "tuple": "!!python/tuple [1, 2]",
        "own tag": "!mine 1",
    }
    for name, call in calls.items():
        yield name, f"data: {call}\nrun: x\n"
        yield f"{name} as key", f"? {call}\n: 1\n"
        yield f"{name} as root", f"{call}\n"
    yield "deep", "data: " + "[" * 1500
    yield "deep mapping", "data: " + "{a: " * 1000
    yield "bomb", "a: &a [x,x]\n" + "".join(
        f"{chr(97 + i)}: &{chr(97 + i)} [{','.join([f'*{chr(96 + i)}'] * 9)}]\n"
        for i in range(1, 12)
    )  # fmt: skip
    yield "own alias", "data: &a [*a]\nrun: x\n"
    yield "no such day", "data: 2001-99-99\nrun: x\n"
    yield "long number", f"data: {'9' * 5000}\nrun: x\n"
    yield "set", "!!set {data, run}\n"
    yield "list as key", "? [a, b]\n: 1\n"
    yield "null byte", "data: a\0b\n"
    yield "merged", "<<: 3\ndata: x\nrun: x\n"


def climbing_archives(outside: Path) -> Iterator[tuple[str, bytes]]:
    """Yield tar archives whose members lead out of the folder they are in."""
    for name in ("../climbed", str(outside / "climbed"), "a/../../climbed"):
        yield name, _tar_of({name: b"climbed\n", "text.xx": b"one\n"})
        yield f"{name}, gz", gzip.compress(_tar_of({name: b"climbed\n"}))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("text.xx")
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
        yield f"member of type {kind.decode()}", buffer.getvalue()
