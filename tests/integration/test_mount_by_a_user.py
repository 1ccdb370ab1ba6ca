"""Mounts by somebody other than root, through fusermount3: what that user sees, and what others do not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import PROGRAM, MountProcess, wait_until
from support.user_session import GID, UID, UserSession

USER = "user-123"
MOUNT_FAILED = 32


@pytest.fixture
def session() -> Iterator[UserSession]:
    with UserSession() as session:
        yield session


def mount(session: UserSession, master: MasterProcess, options: str = "insecure") -> tuple[int, str]:
    """`cloudai mount` as the user: the exit status and what was said."""
    token_file = session.write_file("token", master.make_token(USER))
    done = session.cloudai(
        "mount", master.address, session.mount_point, "-o", f"{options},token_file={token_file}"
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_user_mounts_writes_reads_and_unmounts(
    session: UserSession, shared_master: MasterProcess, shared_mount: MountProcess, run: Path
) -> None:
    """T2. A mount without `uid=` and `gid=` shows the numeric owners as they are stored; with them everything is
    shown as that owner's, and `chown` to another is EPERM. A mount by somebody other than root shows everything
    as theirs.
    """
    (run / "theirs").write_text("of another owner\n")
    os.chown(run / "theirs", 1234, 2345)
    (run / "theirs").chmod(0o600)
    shared_mount.wait_durable(run)

    assert mount(session, shared_master) == (0, "")
    place = session.mount_point / run.relative_to(shared_mount.mount_point)
    script = """
        cat theirs
        umask 077; echo mine > own; mkdir directory; cat own; mv own directory
        stat -c '%u:%g %n' . ..
        stat -c '%u:%g %a %n' theirs directory directory/own
    """
    done = session.as_user("sh", "-euc", f'cd "$1"; {script}', "sh", place)

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "of another owner",
        "mine",
        f"{UID}:{GID} .",
        f"{UID}:{GID} ..",
        f"{UID}:{GID} 600 theirs",
        f"{UID}:{GID} 700 directory",
        f"{UID}:{GID} 600 directory/own",
    ]
    assert "Operation not permitted" in session.as_user("chown", "1234", place / "theirs").stderr
    done = session.cloudai("umount", session.mount_point)
    assert (done.returncode, done.stderr) == (0, "")
    assert session.as_user("mountpoint", session.mount_point).returncode != 0
    wait_until((run / "directory" / "own").exists, "the file on root's mount")
    assert (run / "directory" / "own").read_text() == "mine\n"
    assert ((run / "theirs").stat().st_uid, (run / "theirs").stat().st_gid) == (1234, 2345)


def test_mount_is_the_users_alone(session: UserSession, shared_master: MasterProcess) -> None:
    mount(session, shared_master)

    assert session.as_user("ls", session.mount_point).stdout == f"{USER}\n"
    for command in ("ls", "stat"):
        done = session.as_root(command, session.mount_point)
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


def test_state_and_cache_are_the_users_alone(session: UserSession, shared_master: MasterProcess) -> None:
    mount(session, shared_master)

    own = [session.home / ".local", session.home / ".cache"]
    for top in own:
        found = [top, *top.rglob("*")]
        assert len(found) > 1
        for path in found:
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (UID, GID), path
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(status.st_mode) == wanted, path


def test_allow_other_needs_the_line_in_fuse_conf(session: UserSession, shared_master: MasterProcess) -> None:
    assert mount(session, shared_master, "insecure,allow_other") == (
        MOUNT_FAILED,
        "cloudai: allow_other needs a line `user_allow_other` in /etc/fuse.conf\n",
    )


def test_allow_other_lets_root_in(shared_master: MasterProcess) -> None:
    with UserSession(fuse_conf="user_allow_other") as session:
        assert mount(session, shared_master, "insecure,allow_other") == (0, "")

        assert session.as_root("ls", session.mount_point).stdout == f"{USER}\n"


def test_fuse_device_that_is_roots_alone_is_said(shared_master: MasterProcess) -> None:
    with UserSession(fuse_mode=0o600) as session:
        status, line = mount(session, shared_master)

    assert status == MOUNT_FAILED
    assert line.startswith("cloudai: /dev/fuse: permission denied for this user: ")


def test_refusal_by_fusermount_is_said_in_its_words(
    session: UserSession, shared_master: MasterProcess
) -> None:
    os.chown(session.mount_point, 0, 0)
    session.mount_point.chmod(0o755)

    status, line = mount(session, shared_master)

    assert status == MOUNT_FAILED
    reason = f"user has no write access to mountpoint {session.mount_point}"
    assert line == f"cloudai: {session.mount_point}: fusermount3: {reason}\n"


def test_busy_mount_stays(session: UserSession, shared_master: MasterProcess) -> None:
    mount(session, shared_master)

    done = session.as_user("sh", "-c", 'cd "$1"; "$2" umount "$1"', "sh", session.mount_point, PROGRAM)

    assert done.returncode == MOUNT_FAILED
    assert "busy" in done.stderr
    assert session.as_user("ls", session.mount_point).stdout == f"{USER}\n"


def test_dead_mount_is_cleared_away_and_what_was_staged_is_there(
    session: UserSession, shared_master: MasterProcess, shared_mount: MountProcess, run: Path
) -> None:
    mount(session, shared_master)
    place = session.mount_point / run.relative_to(shared_mount.mount_point)
    session.as_user("sh", "-c", 'echo staged > "$1"', "sh", place / "file")
    (answer,) = session.statuses()
    session.as_user("kill", "-KILL", str(answer["pid"]))
    wait_until(lambda: session.as_user("ls", session.mount_point).returncode != 0, "the daemon's end")

    assert mount(session, shared_master) == (0, "")

    assert session.as_user("cat", place / "file").stdout == "staged\n"
    assert session.cloudai("wait", place).returncode == 0
    assert (run / "file").read_text() == "staged\n"


def test_run_without_the_right_to_mount_gives_its_command_the_variable(
    session: UserSession, shared_master: MasterProcess, shared_mount: MountProcess
) -> None:
    mount(session, shared_master)

    done = session.cloudai(
        "run", "--task", "by-a-user", "--", "sh", "-c", 'echo x > "$CLOUDAI_OUTPUT/file"; exit 3'
    )

    assert done.returncode == 3
    assert "no /output here (only root may mount)" in done.stderr
    elsewhere = shared_mount.mount_point / USER / "by-a-user" / "latest" / "file"
    wait_until(elsewhere.exists, "the run on root's mount")
    assert elsewhere.read_text() == "x\n"


def test_user_mounts_and_unmounts_a_line_of_fstab(
    session: UserSession, shared_master: MasterProcess, shared_mount: MountProcess, run: Path
) -> None:
    (run / "file").write_text("content\n")
    shared_mount.wait_durable(run)
    token_file = session.write_file("token", shared_master.make_token(USER))
    scratch = session.home / "sbin"
    scratch.mkdir()
    session.namespace.keep_to_itself(Path("/sbin"), scratch)
    session.namespace.must(PROGRAM, "install-helper")
    # The user of these tests has no home that mount(8)'s helper could look up.
    places = f"state_dir={session.home}/state,cache_dir={session.home}/cache"
    words = f"user,noauto,_netdev,insecure,token_file={token_file},{places}"
    fstab = session.write_file(
        "fstab", f"{shared_master.address} {session.mount_point} cloudai {words} 0 0\n"
    )
    session.namespace.mount("--bind", fstab, "/etc/fstab")
    runtime_dir = f"CLOUDAI_RUNTIME_DIR={session.home}/run"

    done = session.as_user("env", runtime_dir, "mount", session.mount_point)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    place = session.mount_point / run.relative_to(shared_mount.mount_point)
    assert session.as_user("cat", place / "file").stdout == "content\n"
    assert session.as_user("stat", "-c", "%u", place / "file").stdout == f"{UID}\n"
    shown = session.as_user("findmnt", "-n", "-o", "OPTIONS", session.mount_point).stdout
    assert {"noexec", "nosuid", "nodev"} <= set(shown.strip().split(","))
    done = session.as_user("umount", session.mount_point)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: not list((session.home / "run").glob("*.json")), "the daemon's end")
