"""Where a mount says what it does: a file that is rotated, or the journal; and what becomes of the mount where neither
takes a line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudai_daemon.mount_log import LOG_BYTES_MAX, LOG_FILES_OLD
from cloudai_fusefs.tree_sync import RECONNECT_SECONDS_MAX
from support.master_process import PROGRAM as MASTER_PROGRAM
from support.master_process import MasterProcess
from support.mount_daemons import kill_daemon, wait_for_another_daemon
from support.mount_process import PROGRAM, RUN, WAIT_SECONDS_MAX, MountProcess, wait_until
from support.small_disk import fill, small_disk

USER = "user-123"
PAGE_BYTES = 4096
"""What a tmpfs gives a file at a time."""


@pytest.fixture
def mount(master: MasterProcess, mounts: list[MountProcess], tmp_path: Path) -> MountProcess:
    """Not started."""
    mount = MountProcess(tmp_path / "mount", master.address, master.make_token(USER))
    mounts.append(mount)
    return mount


def log_of(mount: MountProcess, number: int = 0) -> Path:
    return mount.state_dir / (f"daemon.log.{number}" if number else "daemon.log")


def fill_log(mount: MountProcess, number: int = 0) -> str:
    """A log as long as one may be; its first line."""
    first_line = f"the beginning of log {number}\n"
    log = log_of(mount, number)
    log.touch(mode=0o600)
    log.write_text(first_line + ("x" * 79 + "\n") * (LOG_BYTES_MAX // 80))
    return first_line


def make_known_run(mount: MountProcess) -> Path:
    run = mount.make_run(RUN)
    (run / "file").write_bytes(b"content")
    mount.wait_durable()
    return run


def pad_log(mount: MountProcess, size_bytes: int) -> None:
    """What is logged next goes behind so many bytes."""
    with log_of(mount).open("a") as log:
        log.write("x" * (size_bytes - log_of(mount).stat().st_size - 1) + "\n")


def make_it_say_something(master: MasterProcess) -> None:
    """A master that goes is worth a line for each watch that was whole: they are given the time to be so again."""
    master.restart()
    time.sleep(RECONNECT_SECONDS_MAX)


def first_line_of(path: Path) -> str:
    with path.open() as file:
        return file.readline()


def replace_daemon(mount: MountProcess) -> None:
    """kill -9 of a supervised mount's; returns once another daemon serves it."""
    killed = kill_daemon(mount.mount_point)
    mount.pid = wait_for_another_daemon(mount.mount_point, killed).pid


def test_long_log_is_rotated_and_the_oldest_goes(mount: MountProcess) -> None:
    first_lines = [fill_log(mount, number) for number in range(LOG_FILES_OLD + 1)]

    mount.start()

    logs = sorted(mount.state_dir.glob("daemon.log*"))
    assert logs == [log_of(mount, number) for number in range(LOG_FILES_OLD + 1)]
    assert [first_line_of(log) for log in logs[1:]] == first_lines[:-1]
    assert log_of(mount).stat().st_size < 10_000
    assert f"serving {mount.source} at {mount.mount_point}" in mount.log_text()
    assert [log.stat().st_mode & 0o777 for log in logs] == [0o600] * len(logs)


def test_what_libraries_say_goes_to_the_new_log_after_a_rotation(mount: MountProcess) -> None:
    fill_log(mount)

    mount.start()

    assert os.readlink(f"/proc/{mount.pid}/fd/2") == str(log_of(mount))


def test_supervisor_writes_to_the_log_that_its_daemon_has_rotated(mount: MountProcess) -> None:
    mount.options += ",supervise"
    fill_log(mount)
    mount.start()
    run = make_known_run(mount)

    replace_daemon(mount)

    assert "the mount daemon ended with -9: it is started again" in mount.log_text()
    assert (run / "file").read_bytes() == b"content"
    mount.umount()


def test_mount_goes_on_while_the_disk_of_its_log_is_full_and_says_so_afterwards(
    mount: MountProcess, master: MasterProcess
) -> None:
    with small_disk(mount.state_dir, 16) as disk:
        mount.start()
        run = make_known_run(mount)
        assert (run / "file").read_bytes() == b"content"
        pad_log(mount, 2 * PAGE_BYTES - 10)
        filler = fill(disk)

        master.kill()

        wait_until(lambda: log_of(mount).stat().st_size % PAGE_BYTES == 0, "the end of the log's last page")
        assert (run / "file").read_bytes() == b"content"
        filler.unlink()
        master.start()

        def tells_of_missing_lines() -> bool:
            make_it_say_something(master)
            return "the log could not be written for a while: " in mount.log_text()

        wait_until(tells_of_missing_lines, "the line on missing lines", seconds_max=60)
        (run / "after").write_bytes(b"room again")
        mount.wait_durable()
        assert "Logging error" not in mount.log_text()
        mount.kill()


def test_mount_whose_log_is_to_be_rotated_on_a_full_disk_goes_on_and_logs_again(
    mount: MountProcess, master: MasterProcess
) -> None:
    with small_disk(mount.state_dir, 24) as disk:
        fill_log(mount)
        with log_of(mount).open("r+b") as log:
            log.truncate(LOG_BYTES_MAX - 10 * PAGE_BYTES)
        mount.start()
        run = make_known_run(mount)
        pad_log(mount, LOG_BYTES_MAX - 10)
        filler = fill(disk)

        for _ in range(3):
            make_it_say_something(master)
            assert (run / "file").read_bytes() == b"content"
        filler.unlink()

        def logs_again() -> bool:
            make_it_say_something(master)
            return log_of(mount, 1).exists() and "broke" in mount.log_text()

        wait_until(logs_again, "a new log", seconds_max=60)
        assert (run / "file").read_bytes() == b"content"
        mount.kill()


def test_supervised_mount_comes_back_although_the_directory_of_its_log_has_vanished(
    mount: MountProcess, master: MasterProcess
) -> None:
    mount.options += ",supervise"
    mount.start()
    run = make_known_run(mount)
    shutil.rmtree(mount.state_dir)

    make_it_say_something(master)
    assert (run / "file").read_bytes() == b"content"
    replace_daemon(mount)

    assert (run / "file").read_bytes() == b"content"
    assert f"serving {mount.source} at {mount.mount_point}" in mount.log_text()
    mount.umount()


class Journal:
    """What systemd has for a service's standard error: a connection to its journal, and the variable that names it."""

    def __init__(self) -> None:
        self._directory = Path(
            tempfile.mkdtemp(prefix="cloudai-", dir="/tmp")
        )  # a short path, as sockets need
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._directory / "stdout"))
            listener.listen()
            self.service_end = socket.socket(socket.AF_UNIX)
            self.service_end.connect(str(self._directory / "stdout"))
            self.end, _ = listener.accept()
        self.end.settimeout(WAIT_SECONDS_MAX)
        self._received = ""
        status = os.fstat(self.service_end.fileno())
        self.environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

    def read_until(self, line: str) -> list[str]:
        """The lines up to this one; fails when it does not come."""
        while f"{line}\n" not in self._received:
            received = self.end.recv(65536)
            assert received, f"the end, and no {line!r}: {self._received}"
            self._received += received.decode()
        before, _, self._received = self._received.partition(f"{line}\n")
        return [*before.splitlines(), line]

    def close(self) -> None:
        self.service_end.close()
        self.end.close()
        shutil.rmtree(self._directory)


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal()
    yield journal
    journal.close()


def test_journal_is_told_how_grave_each_line_of_a_mount_is(
    mount: MountProcess, master: MasterProcess, journal: Journal
) -> None:
    mount.options += ",drain=1"
    command: list[str | Path] = [PROGRAM, *mount.mount_arguments, "--foreground"]
    with subprocess.Popen(command, env=journal.environment, stderr=journal.service_end.fileno()) as process:
        mount.pid = process.pid
        source = "cloudai_daemon.mount_process"
        lines = journal.read_until(f"<6>{source}: serving {mount.source} at {mount.mount_point}")
        run = make_known_run(mount)
        master.kill()
        (run / "staged").write_bytes(b"not durable when it ends")
        process.send_signal(signal.SIGINT)
        lines += journal.read_until(f"<6>{source}: unmounted {mount.mount_point}")
        assert process.wait(WAIT_SECONDS_MAX) == 75  # not durable
    mount.pid = 0
    assert all(line.startswith(("<3>", "<4>", "<6>")) for line in lines)
    (warning,) = [line for line in lines if "are staged in" in line]
    assert warning.startswith(
        f"<4>{source}: 1 files (24 bytes) are staged in {mount.state_dir} and not durable"
    )
    assert "serving" in mount.log_text()  # the file has it too


def test_mount_goes_on_when_the_journal_is_gone(mount: MountProcess, journal: Journal) -> None:
    command: list[str | Path] = [PROGRAM, *mount.mount_arguments, "--foreground"]
    with subprocess.Popen(command, env=journal.environment, stderr=journal.service_end.fileno()) as process:
        mount.pid = process.pid
        source = "cloudai_daemon.mount_process"
        journal.read_until(f"<6>{source}: serving {mount.source} at {mount.mount_point}")
        run = make_known_run(mount)
        journal.end.close()

        (run / "after").write_bytes(b"content")
        mount.wait_durable()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS_MAX) == 0
    mount.pid = 0


def test_journal_is_told_how_grave_each_line_of_a_master_is(journal: Journal, tmp_path: Path) -> None:
    command: list[str | Path] = [MASTER_PROGRAM, "serve", "--data-dir", tmp_path / "data"]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"],
        env=journal.environment,
        stdout=subprocess.PIPE,
        stderr=journal.service_end.fileno(),
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on ")
        process.send_signal(signal.SIGTERM)
        journal.read_until("<6>cloudai_master.server: stopping")
        assert process.wait(WAIT_SECONDS_MAX) == 0
