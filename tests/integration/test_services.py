"""A mount and a master as services of systemd: what they tell it, through a real socket, and their units."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.master_process import PROGRAM as MASTER_PROGRAM
from support.master_process import MasterProcess
from support.mount_process import PROGRAM, WAIT_SECONDS_MAX, MountProcess

USER = "user-123"
UNITS = ("cloudai-mount@.service", "cloudai-master.service", "cloudai-volume-plugin.service")


class Listener:
    """What systemd has for a service: a datagram socket, and the variables that say where it is."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self._path))
        self.socket.settimeout(WAIT_SECONDS_MAX)
        # It must be heard of four times a second, and so is.
        self.environment = os.environ | {"NOTIFY_SOCKET": str(self._path), "WATCHDOG_USEC": "250000"}

    def next_word(self, *, besides: str = "") -> str:
        """What is told next, but for what is told again and again."""
        while (word := self.socket.recv(4096).decode()) == besides:
            pass
        return word

    def is_silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(4096)
        except BlockingIOError:
            return True


@pytest.fixture
def listener() -> Iterator[Listener]:
    # A short path, as sockets need.
    directory = Path(tempfile.mkdtemp(prefix="cloudai-", dir="/tmp"))
    listener = Listener(directory)
    yield listener
    listener.socket.close()
    shutil.rmtree(directory)


@pytest.fixture
def mount(shared_master: MasterProcess, tmp_path: Path) -> Iterator[MountProcess]:
    mount = MountProcess(tmp_path / "mount", shared_master.address, shared_master.make_token(USER))
    yield mount
    mount.kill()


def mount_in_foreground(mount: MountProcess, listener: Listener) -> subprocess.Popen[bytes]:
    command: list[str | Path] = [PROGRAM, *mount.mount_arguments, "--foreground"]
    return subprocess.Popen(command, env=listener.environment, stderr=subprocess.DEVNULL)


def test_mount_in_the_foreground_tells_that_it_is_ready_that_it_lives_and_that_it_stops(
    mount: MountProcess, listener: Listener
) -> None:
    mount.options += ",drain=7"
    with mount_in_foreground(mount, listener) as process:
        mount.pid = process.pid
        assert listener.next_word(besides="WATCHDOG=1") == "READY=1"
        assert os.listdir(mount.mount_point) == [USER]
        for _ in range(3):
            assert listener.next_word() == "WATCHDOG=1"

        process.send_signal(signal.SIGTERM)

        # drain=, and half a minute for the rest.
        stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=37000000"
        assert listener.next_word(besides="WATCHDOG=1") == stopping
        assert process.wait(WAIT_SECONDS_MAX) == 0
    mount.pid = 0
    assert not os.path.ismount(mount.mount_point)


def test_mount_daemon_that_a_service_started_tells_the_manager_of_that_service_nothing(
    mount: MountProcess, listener: Listener
) -> None:
    mount.environment = dict(listener.environment)

    mount.start()

    environment = Path(f"/proc/{mount.pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment}
    assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID"}
    assert listener.is_silent()
    mount.umount()


def test_mount_goes_on_though_its_manager_is_gone(mount: MountProcess, listener: Listener) -> None:
    with mount_in_foreground(mount, listener) as process:
        mount.pid = process.pid
        assert listener.next_word(besides="WATCHDOG=1") == "READY=1"
        listener.socket.close()

        run = mount.make_run("2026-11-20_15-04-05", task="without-a-manager")
        (run / "file").write_text("content")
        mount.wait_durable(run)

        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS_MAX) == 0
    mount.pid = 0


def test_master_tells_that_it_is_ready_that_it_lives_and_that_it_stops(
    listener: Listener, tmp_path: Path
) -> None:
    command: list[str | Path] = [
        MASTER_PROGRAM,
        "serve",
        "--data-dir",
        tmp_path / "data",
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(
        command, env=listener.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert listener.next_word() == "READY=1"
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on 127.0.0.1:")
            for _ in range(3):
                assert listener.next_word() == "WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            assert listener.next_word(besides="WATCHDOG=1") == "STOPPING=1"
            assert process.wait(WAIT_SECONDS_MAX) == 0
        finally:
            process.kill()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_are_what_systemd_expects(tmp_path: Path) -> None:
    install: list[str | Path] = [
        PROGRAM,
        "install-helper",
        "--systemd",
        "--directory",
        tmp_path,
        "--unit-directory",
        tmp_path,
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2:] == [f"wrote {tmp_path / name}" for name in UNITS]

    for name in UNITS:
        verify: list[str | Path] = [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            tmp_path / name,
        ]
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
        # Of what it does not know it says so, and ends with 0.
        assert (done.returncode, done.stdout) == (0, "")
        assert str(tmp_path) not in done.stderr

    done = subprocess.run([*install, "--remove"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 5
    assert os.listdir(tmp_path) == []


def test_units_run_the_installed_programs(tmp_path: Path) -> None:
    subprocess.run(
        [PROGRAM, "install-helper", "--systemd", "--directory", tmp_path, "--unit-directory", tmp_path],
        capture_output=True,
        check=True,
    )

    lines = [line for name in UNITS for line in (tmp_path / name).read_text().splitlines()]
    assert [line for line in lines if line.startswith("ExecStart=")] == [
        f'ExecStart="{PROGRAM}" mount --foreground -- ${{CLOUDAI_SOURCE}} %f',
        f'ExecStart="{MASTER_PROGRAM}" serve --data-dir /var/lib/cloudai-master $CLOUDAI_MASTER_OPTIONS',
        f'ExecStart="{PROGRAM}" volume-plugin',
    ]
    assert "SuccessExitStatus=75" in lines  # a mount that left something to be sent has ended in order
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o644 for name in UNITS)
