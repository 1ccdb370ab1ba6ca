"""`cloudai mount` refuses what cannot work: with one line that says why, status 32, and nothing left mounted."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudai_daemon.mount_table import is_dead
from cloudai_daemon.process_identity import ProcessIdentity
from support.master_process import MasterProcess
from support.mount_process import WAIT_SECONDS_MAX, MountProcess, wait_until

USER = "user-123"
MOUNT_FAILED = 32

NewMount = Callable[..., MountProcess]


@pytest.fixture
def new_mount(shared_master: MasterProcess, tmp_path: Path) -> NewMount:
    """A mount of the shared master that has not been started."""

    def make(name: str = "refused", *, token: str = "", source: str = "") -> MountProcess:
        token = token or shared_master.make_token(USER)
        return MountProcess(tmp_path / name, source or shared_master.address, token)

    return make


def refusal(mount: MountProcess) -> str:
    """The line that the refused command printed."""
    done = mount.mount_command()
    assert done.returncode == MOUNT_FAILED, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    token = mount.token_file.read_text()
    assert token not in done.stderr
    assert token not in mount.log_text()
    if mount.mount_point.is_dir():
        assert not os.path.ismount(mount.mount_point)
    return done.stderr


def test_missing_mount_point_is_refused(new_mount: NewMount) -> None:
    mount = new_mount()
    mount.mount_point.rmdir()

    assert refusal(mount) == f"cloudai: {mount.mount_point}: No such file or directory\n"


def test_mount_point_that_is_not_empty_is_refused(new_mount: NewMount) -> None:
    mount = new_mount()
    (mount.mount_point / "file").write_text("stays")

    assert refusal(mount) == f"cloudai: {mount.mount_point}: the directory is not empty\n"
    assert (mount.mount_point / "file").read_text() == "stays"


def test_second_mount_at_a_place_is_refused_and_the_first_stays(
    shared_mount: MountProcess, run: Path
) -> None:
    (run / "file").write_text("content")

    done = shared_mount.mount_command()

    assert done.returncode == MOUNT_FAILED
    assert "already mounted" in done.stderr
    assert (run / "file").read_text() == "content"


def test_state_directory_of_another_mount_is_refused(shared_mount: MountProcess, new_mount: NewMount) -> None:
    mount = new_mount()
    mount.state_dir = shared_mount.state_dir

    done = mount.mount_command()

    assert done.returncode == MOUNT_FAILED
    assert (
        done.stderr == f"cloudai: {shared_mount.state_dir}: the state directory is in use by another mount\n"
    )
    assert not os.path.ismount(mount.mount_point)
    assert os.listdir(shared_mount.mount_point) == [USER]


def test_master_that_is_not_there_is_said_within_seconds(new_mount: NewMount) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mount = new_mount(source=f"127.0.0.1:{unused.getsockname()[1]}")
        began = time.monotonic()

        line = refusal(mount)

    assert time.monotonic() - began < 10
    assert line.startswith(f"cloudai: {mount.source}: the master did not answer")


def test_master_that_takes_the_connection_and_says_nothing_is_refused(new_mount: NewMount) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mount = new_mount(source=f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()

        line = refusal(mount)

    assert time.monotonic() - began < 15
    assert line.startswith(f"cloudai: {mount.source}: the master did not answer")


def expires_at(token: str) -> float:
    """The moment in the token's payload, which is no secret."""
    payload = token.split(".")[1]
    return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])


def test_expired_token_is_refused(shared_master: MasterProcess, new_mount: NewMount) -> None:
    token = shared_master.make_token(USER, days=1 / 86_400)
    mount = new_mount(token=token)
    wait_until(lambda: time.time() > expires_at(token) + 0.1, "the token's end")

    assert "expired" in refusal(mount)


def test_revoked_token_is_refused(shared_master: MasterProcess, new_mount: NewMount) -> None:
    made = json.loads(shared_master.run("token", "create", "--user", USER, "--days", "1", "--json").stdout)
    shared_master.run("token", "revoke", made["id"])
    mount = new_mount(token=made["token"])

    assert "revoked" in refusal(mount)


def forge(token: str, **claims: object) -> str:
    """The token with other claims and its old signature."""
    header, payload, signature = token.split(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    changed = base64.urlsafe_b64encode(json.dumps(fields | claims).encode()).decode().rstrip("=")
    return f"{header}.{changed}.{signature}"


def unsign(token: str) -> str:
    """The token as one that claims to need no signature."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return f"{header}.{token.split('.')[1]}."


FORGERIES: dict[str, Callable[[str], str]] = {
    "another user": lambda token: forge(token, sub="user-456"),
    "a later end": lambda token: forge(token, exp=4_000_000_000),
    "no signature": unsign,
    "no token at all": lambda token: "not-a-token",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_token_is_refused(shared_master: MasterProcess, new_mount: NewMount, forgery: str) -> None:
    mount = new_mount(token=FORGERIES[forgery](shared_master.make_token(USER)))

    assert refusal(mount).startswith(f"cloudai: {mount.source}: not authenticated")


def test_revoked_token_ends_the_reach_of_a_running_mount(
    shared_master: MasterProcess, new_mount: NewMount
) -> None:
    made = json.loads(shared_master.run("token", "create", "--user", USER, "--days", "1", "--json").stdout)
    mount = new_mount(token=made["token"])
    mount.start()
    try:
        run = mount.make_run("2026-11-20_15-04-05", task="revoked")
        shared_master.run("token", "revoke", made["id"])

        def is_refused() -> bool:
            try:
                run.with_name("2026-11-20_15-04-06").mkdir()
                run.with_name("2026-11-20_15-04-06").rmdir()
            except PermissionError:
                return True
            return False

        wait_until(is_refused, "the refusal")
    finally:
        mount.kill()


def test_dead_mount_is_known_as_one_while_the_kernel_still_remembers_its_attributes(
    make_mount: NewMount,
) -> None:
    mount = make_mount()
    mount.mount_point.stat()
    daemon = ProcessIdentity.of(mount.pid)
    assert not is_dead(mount.mount_point)

    daemon.send_signal(signal.SIGKILL)
    assert daemon.wait_gone(WAIT_SECONDS_MAX)

    assert is_dead(mount.mount_point)


def test_dead_mount_is_cleared_away_by_the_next(make_mount: NewMount) -> None:
    mount = make_mount()
    run = mount.make_run("2026-11-20_15-04-05")
    (run / "file").write_text("content")
    os.kill(mount.pid, 9)
    wait_until(lambda: not is_alive(mount), "the daemon's end")
    with pytest.raises(OSError):
        os.listdir(mount.mount_point)

    mount.start()

    assert (run / "file").read_text() == "content"


def is_alive(mount: MountProcess) -> bool:
    try:
        os.listdir(mount.mount_point)
    except OSError:
        return False
    return True
