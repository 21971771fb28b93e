"""A command is watched, kept in a log, and ends together with its parent."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fairseq_plugins.utils.process import run_logged

# Prints its process id and then waits for a signal.
CHILD = "import os, time; print('child', os.getpid(), flush=True); time.sleep(60)"
PARENT = f"""
import sys
from pathlib import Path
from fairseq_plugins.utils.process import run_logged
run_logged(
    [sys.executable, "-c", {CHILD!r}],
    log=Path(sys.argv[1]),
    on_line=lambda line: print(line, end="", flush=True),
)
print("continued")
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ignore(line: str) -> None:
    pass


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_output_and_errors_go_to_the_log_and_to_the_watcher(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('ä\\u2028b'); print('bad', file=sys.stderr); sys.exit(3)"
    log = tmp_path / "new" / "log"
    outcome = run_logged(python(code), log=log, on_line=lines.append)
    assert lines == ["ä\u2028b\n", "bad\n"]
    assert log.read_text(encoding="utf-8") == "".join(lines)
    assert outcome.status == 3
    assert outcome.last_lines == ["ä\u2028b", "bad"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize("users", [None, "131072"])
def test_memory_is_kept_for_the_next_tensor_unless_the_user_decides(
    users: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if users is not None:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", users)
    code = """
import resource
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(1), faults(10))
"""
    lines: list[str] = []
    run_logged(python(code), log=tmp_path / "log", on_line=lines.append)
    once, ten_times = map(int, lines[-1].split())
    assert once > 0
    assert ten_times < once if users is None else ten_times > 5 * once


def test_a_log_is_extended_only_with_the_option(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for append, expected in ((True, "x\n"), (True, "x\nx\n"), (False, "x\n")):
        run_logged(python("print('x')"), log=log, append=append, on_line=ignore)
        assert log.read_text() == expected


def test_a_command_ended_by_a_signal_has_the_shells_status(tmp_path: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    assert run_logged(python(code), log=tmp_path / "log", on_line=ignore).status == 137


def test_a_watcher_that_fails_leaves_no_process_behind(tmp_path: Path) -> None:
    started: list[int] = []

    def fail(line: str) -> None:
        started.append(int(line.split()[1]))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_logged(python(CHILD), log=tmp_path / "log", on_line=fail)
    assert not is_running(started[0])


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGINT, -signal.SIGINT),
        pytest.param(
            signal.SIGKILL,
            -signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
        ),
    ],
)
def test_whatever_ends_the_parent_ends_the_command(
    tmp_path: Path, signum: int, status: int
) -> None:
    with subprocess.Popen(
        [*python(PARENT), str(tmp_path / "log")],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline().split()[1])
        parent.send_signal(signum)
        assert "continued" not in parent.stdout.read()
        assert parent.wait(timeout=20) == status
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)
