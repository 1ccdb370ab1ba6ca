"""Files that grow while others look: appending shells, tail -f, less +F."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import IO

import pytest

from support.mount_process import MountProcess, wait_until
from support.terminal import TerminalProgram
from support.tools import run_shell
from support.tree_snapshot import AtMaster

LINE_SECONDS_MAX = 10.0
INTERRUPT = b"\x03"


def test_append_redirection_adds_lines(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    run_shell("echo one >> log; echo two >> log", cwd=run)
    shared_mount.wait_durable(run)
    run_shell("echo three >> log; (echo four; echo five) >> log", cwd=run)

    assert (at_master() / "log").read_text() == "one\ntwo\nthree\nfour\nfive\n"


def test_processes_that_append_to_one_log_lose_no_line(run: Path, at_master: AtMaster) -> None:
    script = "for j in $(seq 100); do echo line-$1-$j >> log; done"
    run_shell(f"for i in 1 2 3 4; do bash -c '{script}' _ $i & done; wait", cwd=run)

    expected = sorted(f"line-{i}-{j}" for i in range(1, 5) for j in range(1, 101))
    assert sorted((at_master() / "log").read_text().splitlines()) == expected


def test_lines_of_a_pipe_are_read_elsewhere_before_its_task_has_ended(
    run: Path, in_second_mount: Callable[[Path], Path], at_master: AtMaster
) -> None:
    """W2. A line appended to an open file is there on another mount within two seconds."""
    with subprocess.Popen(["tee", "-a", str(run / "log")], stdin=subprocess.PIPE, text=True) as tee:
        assert tee.stdin is not None
        elsewhere = in_second_mount(run / "log")
        for number in range(3):
            tee.stdin.write(f"epoch {number}\n")
            tee.stdin.flush()
            expected = "".join(f"epoch {earlier}\n" for earlier in range(number + 1))
            wait_until(lambda: elsewhere.exists() and elsewhere.read_text() == expected, expected)  # noqa: B023

    assert (at_master() / "log").read_text() == "epoch 0\nepoch 1\nepoch 2\n"


def _put_lines(stream: IO[str], lines: Queue[str]) -> None:
    for line in stream:
        lines.put(line)


@contextmanager
def lines_of_tail(*arguments: str | Path) -> Iterator[Queue[str]]:
    """The lines that `tail` prints until the end of the context."""
    lines: Queue[str] = Queue()
    with subprocess.Popen(
        ["tail", "-s", "0.1", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_put_lines, args=(process.stdout, lines))
        reader.start()
        try:
            yield lines
        finally:
            process.kill()
            reader.join(LINE_SECONDS_MAX)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_tail_f_prints_lines_as_they_are_appended(
    run: Path, where: str, in_second_mount: Callable[[Path], Path], at_master: AtMaster
) -> None:
    (run / "log").write_text("line 0\n")
    path = run / "log" if where == "here" else in_second_mount(run / "log")
    wait_until(path.exists, "the log where tail reads it")
    with lines_of_tail("-f", path) as lines:
        assert lines.get(timeout=LINE_SECONDS_MAX) == "line 0\n"
        with (run / "log").open("a", buffering=1) as log:
            for number in range(1, 6):
                log.write(f"line {number}\n")
                assert lines.get(timeout=LINE_SECONDS_MAX) == f"line {number}\n"
        with pytest.raises(Empty):
            lines.get_nowait()

    assert (at_master() / "log").read_text().splitlines()[-1] == "line 5"


def test_tail_follows_the_name_of_a_log_that_is_rotated(
    run: Path, in_second_mount: Callable[[Path], Path], at_master: AtMaster
) -> None:
    (run / "log").write_text("first 0\n")
    elsewhere = in_second_mount(run / "log")
    wait_until(elsewhere.exists, "the log in the other mount")
    with lines_of_tail("-F", elsewhere) as lines:
        assert lines.get(timeout=LINE_SECONDS_MAX) == "first 0\n"
        run_shell("echo first 1 >> log", cwd=run)
        assert lines.get(timeout=LINE_SECONDS_MAX) == "first 1\n"
        run_shell("mv log log.1; echo second 0 > log", cwd=run)
        assert lines.get(timeout=LINE_SECONDS_MAX) == "second 0\n"
        run_shell("echo second 1 >> log", cwd=run)
        assert lines.get(timeout=LINE_SECONDS_MAX) == "second 1\n"

    assert (at_master() / "log.1").read_text() == "first 0\nfirst 1\n"


def test_less_follows_a_log_that_grows_on_another_mount(
    run: Path, in_second_mount: Callable[[Path], Path], at_master: AtMaster
) -> None:
    elsewhere = in_second_mount(run / "log")
    with (run / "log").open("w", buffering=1) as log:
        log.write("epoch 0\n")
        wait_until(elsewhere.exists, "the log in the other mount")
        with TerminalProgram("less", "+F", elsewhere) as less:
            less.wait_for_text("epoch 0")
            for number in range(1, 4):
                log.write(f"epoch {number}\n")
                less.wait_for_text(f"epoch {number}")
            less.press(INTERRUPT)
            less.press(b"q")
            assert less.wait_end() == 0

    assert len((at_master() / "log").read_text().splitlines()) == 4
