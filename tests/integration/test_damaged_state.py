"""What a killed mount left on its state disk, damaged, or more than it could know: the next mount copes."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from support.lost_power import lose_power
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

MIB = 1024 * 1024


def leave_two_files(mount: MountProcess, master: MasterProcess) -> None:
    """A mount that died with two files staged, of which its journal knows."""
    run = mount.make_run(RUN)
    (run / "published").write_bytes(b"at the master")
    mount.wait_durable()
    master.kill()
    (run / "small").write_bytes(b"small and staged")
    (run / "large").write_bytes(b"large" * MIB)
    mount.kill()
    master.start()


def staged_contents(directory: Path) -> set[bytes]:
    return {path.read_bytes() for path in (directory / "staged").glob("*/*") if not path.suffix}


def test_mount_starts_over_a_damaged_journal_keeps_what_was_staged_and_says_where(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D9. A mount starts although its journal is damaged; what can be read of it goes on, staged files whose
    names are lost are kept, and the log and `cloudai status` say where.
    """
    mount = make_mount()
    leave_two_files(mount, master)
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        (mount.state_dir / name).write_bytes(os.urandom(20_000))

    mount.start()

    assert (run_in(mount) / "published").read_bytes() == b"at the master"
    (run_in(mount) / "after").write_bytes(b"it works")
    mount.wait_durable()
    (aside,) = mount.state_dir.glob("set-aside-*")
    assert staged_contents(aside) == {b"small and staged", b"large" * MIB}
    assert mount.log_text().count(str(aside)) == 1
    assert mount.status()["set_aside"] == [str(aside)]
    assert f"set aside: {aside}" in mount.cloudai("status", str(mount.mount_point)).stdout
    # Said until somebody has looked at it.
    mount.umount()
    mount.start()
    assert mount.status()["set_aside"] == [str(aside)]
    assert mount.log_text().count(str(aside)) == 1


def test_journal_of_a_newer_version_refuses_the_mount_and_is_taken_over_by_the_version_that_knows_it(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    leave_two_files(mount, master)
    with closing(sqlite3.connect(mount.state_dir / "journal.sqlite")) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute("PRAGMA user_version = 999")

    refusal = mount.mount_command()

    assert refusal.returncode == 32
    assert "newer version" in refusal.stderr
    with closing(sqlite3.connect(mount.state_dir / "journal.sqlite")) as database:
        database.execute(f"PRAGMA user_version = {version}")
    mount.start()
    mount.wait_durable()
    assert (run_in(mount) / "small").read_bytes() == b"small and staged"
    assert (run_in(mount) / "large").read_bytes() == b"large" * MIB


class DeafRelay:
    """Passes connections on to a master, whose answers get lost from a request with the word in it on."""

    def __init__(self, target: str, word: bytes) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._word = word
        self._is_deaf = False
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
                threading.Thread(target=self._answer, args=(far, near), daemon=True).start()

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                if self._word in data:
                    self._is_deaf = True
                far.sendall(data)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                if not self._is_deaf:
                    near.sendall(data)


@pytest.fixture
def relay(master: MasterProcess) -> Iterator[DeafRelay]:
    relay = DeafRelay(master.address, b"first-name")
    yield relay
    relay.close()


def test_name_that_only_a_dead_mount_knew_to_be_at_the_master_is_removed_by_the_next_one(
    make_mount: MakeMount, master: MasterProcess, relay: DeafRelay
) -> None:
    other = make_mount("other")
    run_elsewhere = other.make_run(RUN)
    mount = make_mount("mount")
    mount.umount()
    mount.source = relay.address
    mount.start()
    run = run_in(mount)
    wait_until(run.exists, "the run")
    (run / "first-name").write_bytes(b"the first")
    wait_until(lambda: (run_elsewhere / "first-name").exists(), "the commit whose answer is lost")
    (run / "first-name").rename(run / "name")
    (run / "new").write_bytes(b"the second")
    (run / "new").rename(run / "name")
    mount.kill()
    mount.source = master.address

    mount.start()
    mount.wait_durable()

    assert [path.name for path in run.iterdir()] == ["name"]
    assert (run / "name").read_bytes() == b"the second"
    wait_until(lambda: not (run_elsewhere / "first-name").exists(), "the removal elsewhere")
    assert (run_elsewhere / "name").read_bytes() == b"the second"


def test_file_that_a_loss_of_power_tore_is_not_uploaded_before_somebody_says_that_it_is_right(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """D8. After a loss of power, content that was not yet uploaded and not known to be on the workstation's
    disk is not uploaded by itself: `cloudai status` names the file, and a write or `touch` says that it is right.
    """
    mount = make_mount()
    leave_two_files(mount, master)
    lose_power(mount.state_dir)
    for path in (mount.state_dir / "staged").glob("*/*"):
        with path.open("r+b") as file:  # what a file system may leave of bytes that it had not written yet
            file.write(bytes(4))

    mount.start()

    run = run_in(mount)
    wait_until(lambda: mount.status()["failed_count"] == 2, "both said to be maybe lost")
    waiting = mount.cloudai("wait", str(mount.mount_point))
    assert waiting.returncode != 0
    assert "the machine went down" in waiting.stderr
    other = make_mount("other")
    assert [path.name for path in run_in(other).iterdir()] == ["published"]
    assert (run / "small").read_bytes() == b"\0\0\0\0l and staged"

    (run / "small").write_bytes(b"written again")
    (run / "large").touch()
    mount.wait_durable()
    wait_until(lambda: (run_in(other) / "large").exists(), "the files elsewhere")
    assert (run_in(other) / "small").read_bytes() == b"written again"
    assert (run_in(other) / "large").read_bytes() == bytes(4) + (b"large" * MIB)[4:]


def test_what_was_staged_when_a_mount_ended_in_order_survives_a_loss_of_power(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount(options="insecure,timeo=20,drain=1")
    run = mount.make_run(RUN)
    (run / "published").write_bytes(b"at the master")
    mount.wait_durable()
    master.kill()
    (run / "staged").write_bytes(b"just before the end")
    end_in_order(mount)
    lose_power(mount.state_dir)
    master.start()

    mount.start()
    mount.wait_durable()

    other = make_mount("other")
    assert (run_in(other) / "staged").read_bytes() == b"just before the end"


def test_loss_of_power_does_not_empty_a_file_that_was_acknowledged(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount(options="insecure,timeo=20,drain=1")
    run = mount.make_run(RUN)
    (run / "file").write_bytes(b"the first")
    mount.wait_durable()
    master.kill()
    (run / "file").write_bytes(b"the second")
    end_in_order(mount)
    shutil.copy(mount.state_dir / "journal.sqlite", mount.state_dir / "rows-on-the-disk")
    master.start()
    mount.start()
    mount.wait_durable()
    # What a file system has on the disk of what happened until a moment: all before it.
    assert not list((mount.state_dir / "spare").iterdir())
    mount.umount()
    (mount.state_dir / "rows-on-the-disk").rename(mount.state_dir / "journal.sqlite")
    lose_power(mount.state_dir)

    mount.start()
    mount.wait_durable()

    other = make_mount("other")
    assert (run_in(other) / "file").read_bytes() == b"the second"


def end_in_order(mount: MountProcess) -> None:
    """With what is staged left for the next mount."""
    subprocess.run(["umount", str(mount.mount_point)], check=True)
    wait_until(lambda: not Path(f"/proc/{mount.pid}").exists(), "the daemon's end")
    mount.pid = 0
