"""What a person sees of waiting uploads: a bar on a terminal, which ends with the wait, and nothing in a pipe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import PROGRAM, MakeMount, MountProcess, wait_until
from support.terminal import TerminalProgram

FILE_BYTES = 9 * 1024 * 1024
NOT_DURABLE = 75
INTERRUPTED = 130


@pytest.fixture
def mount(make_mount: MakeMount) -> MountProcess:
    return make_mount()


@pytest.fixture
def backlog(mount: MountProcess, master: MasterProcess) -> Path:
    """A run with a file that has not been sent, since the master stands still: nine MiB, as three chunks."""
    run = mount.make_run("2026-11-20_15-04-05")
    (run / "small").write_text("looked into, so that the master is not needed")
    mount.wait_durable(run)
    os.kill(master.pid, signal.SIGSTOP)
    (run / "model.bin").write_bytes(os.urandom(FILE_BYTES))
    return run


def test_wait_shows_what_is_pending_until_it_is_durable(
    mount: MountProcess, master: MasterProcess, backlog: Path
) -> None:
    with TerminalProgram(PROGRAM, "wait", backlog) as terminal:
        terminal.wait_for_text("uploading, 1 file ", "━━━", "0 B of 9.0 MiB")
        os.kill(master.pid, signal.SIGCONT)

        assert terminal.wait_end() == 0

        assert_terminal_is_as_before(terminal)
    assert mount.status()["pending_count"] == 0


def test_umount_shows_that_the_master_is_away(
    mount: MountProcess, master: MasterProcess, backlog: Path
) -> None:
    master.kill()
    with TerminalProgram(PROGRAM, "umount", mount.mount_point) as terminal:
        terminal.wait_for_text("waiting for the master, 1 file ", "━━━", "0 B of 9.0 MiB")
        assert os.path.ismount(mount.mount_point)
        master.start()

        assert terminal.wait_end() == 0

        assert_terminal_is_as_before(terminal)
    assert not os.path.ismount(mount.mount_point)


def test_run_shows_what_is_pending_once_its_command_has_ended(
    mount: MountProcess, master: MasterProcess
) -> None:
    script = (
        f'cd "$CLOUDAI_OUTPUT"; ls; kill -STOP {master.pid}; head -c {FILE_BYTES} /dev/urandom > model.bin'
    )
    command = ("run", "--mount", mount.mount_point, "--task", "digits", "--", "sh", "-c", script)
    with TerminalProgram(PROGRAM, *command) as terminal:
        terminal.wait_for_text("uploading, 1 file ", "━━━", "0 B of 9.0 MiB")
        os.kill(master.pid, signal.SIGCONT)

        assert terminal.wait_end() == 0

        assert "is sealed with exit status 0" in terminal.text
        assert_terminal_is_as_before(terminal)
    latest = mount.mount_point / "user-123" / "digits" / "latest"
    assert (latest / "model.bin").stat().st_size == FILE_BYTES
    assert mount.status()["pending_count"] == 0


def test_ctrl_c_ends_the_bar_and_not_the_upload(
    mount: MountProcess, master: MasterProcess, backlog: Path
) -> None:
    with TerminalProgram(PROGRAM, "wait", backlog) as terminal:
        terminal.wait_for_text("uploading, 1 file ", "0 B of 9.0 MiB")
        terminal.press(b"\x03")

        assert terminal.wait_end() == INTERRUPTED

        assert "cloudai: interrupted" in terminal.text
        assert_terminal_is_as_before(terminal)
    os.kill(master.pid, signal.SIGCONT)
    wait_until(lambda: mount.status()["pending_count"] == 0, "the upload")


@pytest.mark.parametrize("command", ["wait", "seal"])
def test_no_terminal_no_bar(mount: MountProcess, backlog: Path, command: str) -> None:
    done = mount.cloudai(command, str(backlog), "--timeout", "0.5")

    assert done.returncode == NOT_DURABLE
    assert done.stdout == ""
    assert done.stderr == f"cloudai: {backlog}: 1 file not durable yet, 9.0 MiB to send\n"


def assert_terminal_is_as_before(terminal: TerminalProgram) -> None:
    """The bar's line is empty again, and the cursor that it hid is there."""
    hidden, shown = terminal.received.rfind("\x1b[?25l"), terminal.received.rfind("\x1b[?25h")
    assert 0 <= hidden < shown
    # Nothing that belongs to a bar after the last time that its line was erased.
    assert "━" not in terminal.received[terminal.received.rfind("\x1b[2K") :]
