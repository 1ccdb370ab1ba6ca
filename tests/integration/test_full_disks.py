"""A full disk at either end is the writer's ENOSPC, a quota of the staging disk that is used up EDQUOT, and what was
acknowledged is still there."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.files import write_synced
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until
from support.small_disk import fill, small_disk

KIB = 1024
MIB = 1024 * KIB

EXHAUSTED_QUOTA_SOURCE = Path(__file__).parent.parent / "support" / "exhausted_quota.c"


@pytest.fixture
def master_on_small_disk(tmp_path: Path) -> Iterator[MasterProcess]:
    """Its data directory is on a disk of 40 MiB, and its log elsewhere."""
    with small_disk(tmp_path / "disk", 40) as disk:
        master = MasterProcess(disk / "data")
        master.log_path = tmp_path / "master.log"
        master.start()
        try:
            yield master
        finally:
            master.kill()


def contents_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def all_name_the_full_disk(mount: MountProcess, count: int) -> bool:
    status = mount.status()
    return status["failed_count"] == count and all(
        entry["state"] == "failed" and "no space left" in entry["reason"] for entry in status["pending"]
    )


def test_closed_files_wait_for_room_at_the_master_through_the_death_of_the_daemon(
    master_on_small_disk: MasterProcess, mount_of: MakeMount
) -> None:
    master = master_on_small_disk
    mount = mount_of(master, "mount")
    run = mount.make_run(RUN)
    write_synced(run / "before", b"before")
    filler = fill(master.data_dir.parent)
    closed = {f"file-{number}": os.urandom(1000 * number) for number in range(1, 60)}
    closed["large"] = os.urandom(9 * MIB)

    for name, content in closed.items():
        (run / name).write_bytes(content)

    wait_until(lambda: all_name_the_full_disk(mount, len(closed)), "the reason in the status")
    mount.kill()
    mount.start()
    wait_until(lambda: all_name_the_full_disk(mount, len(closed)), "the reason after the daemon's death")
    assert contents_of(run) == closed | {"before": b"before"}
    with pytest.raises(OSError, match="No space"):
        write_synced(run / "after", b"after")

    filler.unlink()

    wait_until(lambda: mount.status()["pending_count"] == 0, "the upload when there is room again")
    expected = closed | {"before": b"before", "after": b"after"}
    assert contents_of(run_in(mount_of(master, "other"))) == expected


def test_names_wait_for_room_in_the_masters_database_through_its_death(
    master_on_small_disk: MasterProcess, mount_of: MakeMount
) -> None:
    """Empty files and directories take no chunk."""
    master = master_on_small_disk
    mount = mount_of(master, "mount", options="insecure,timeo=40")
    run = mount.make_run(RUN)
    write_synced(run / "before", b"before")
    filler = fill(master.data_dir.parent)
    names = {f"directory-{number}-{'x' * 200}" for number in range(5000)}

    for name in names:
        (run / name).mkdir()

    wait_until(lambda: mount.status()["failed_count"] > 0, "a refusal")
    assert all_name_the_full_disk(mount, int(mount.status()["pending_count"]))
    with pytest.raises(OSError, match="No space"):
        (run.parent / "2026-11-21_00-00-00").mkdir()
    master.kill()
    filler.unlink()
    master.start()

    wait_until(lambda: mount.status()["pending_count"] == 0, "the upload when there is room again")
    assert {path.name for path in run_in(mount_of(master, "other")).iterdir()} == names | {"before"}
    assert "Traceback" not in master.log_text()


def test_what_was_acknowledged_on_a_full_staging_disk_survives_the_daemon(
    tmp_path: Path, master: MasterProcess, mount_of: MakeMount
) -> None:
    """The journal is on the same disk."""
    with small_disk(tmp_path / "mount" / "state", 8) as disk:
        mount = mount_of(master, "mount")
        run = mount.make_run(RUN)
        (run / "published").write_bytes(bytes(5 * MIB))
        (run / "log").write_bytes(b"line\n")
        mount.wait_durable()
        master.kill()  # nothing leaves the staging disk meanwhile
        acknowledged = {"published": bytes(5 * MIB), "log": b"line\n"}
        refusals = [write_file(run, number, acknowledged) for number in range(50)]
        filler = fill(disk)
        refusals += [write_file(run, number, acknowledged) for number in range(50, 100)]
        refusals += [
            refusal_of(lambda: (run / "directory").mkdir()),
            refusal_of(lambda: (run / "link").symlink_to("x" * 3000)),
            refusal_of(lambda: write_at(run / "published", 5 * MIB, bytes(MIB))),
            refusal_of(lambda: write_at(run / "log", 5, bytes(MIB))),
        ]
        assert 0 in refusals
        assert set(refusals) == {0, errno.ENOSPC}
        assert refusals[-4:] == [errno.ENOSPC] * 4
        mount.kill()
        master.start()

        mount.start()
        assert contents_of(run).items() >= acknowledged.items()
        filler.unlink()
        mount.wait_durable()

        write_synced(run / "after", b"room again")
        acknowledged["after"] = b"room again"
        elsewhere = run_in(mount_of(master, "other"))
        found = contents_of(elsewhere)
        assert {name: found[name] for name in acknowledged} == acknowledged
        assert found.keys() - acknowledged.keys() <= {f"file-{number}" for number in range(100)}
        mount.kill()


def test_used_up_quota_on_the_staging_disk_is_edquot_and_keeps_what_was_acknowledged(
    tmp_path: Path, master: MasterProcess, mount_of: MakeMount
) -> None:
    used_up = tmp_path / "used-up"
    mount = mount_of(master, "mount")
    mount.umount()
    mount.environment = quota_of(mount.state_dir, used_up)
    mount.start()
    run = mount.make_run(RUN)
    (run / "published").write_bytes(b"published")
    mount.wait_durable()
    master.kill()  # nothing leaves the staging disk meanwhile
    (run / "closed").write_bytes(b"closed")
    used_up.touch()

    refusals = [
        refusal_of(lambda: (run / "new").write_bytes(b"new")),
        refusal_of(lambda: (run / "directory").mkdir()),
        refusal_of(lambda: (run / "link").symlink_to("target")),
        refusal_of(lambda: (run / "closed").chmod(0o600)),
        refusal_of(lambda: write_at(run / "published", 9, b"more")),
        refusal_of(lambda: write_at(run / "closed", 6, b"more")),
    ]

    assert [errno.errorcode[refusal] for refusal in refusals] == ["EDQUOT"] * 6
    used_up.unlink()
    (run / "after").write_bytes(b"after")
    master.start()
    mount.wait_durable()
    found = contents_of(run_in(mount_of(master, "other")))
    assert found == {"published": b"published", "closed": b"closed", "after": b"after"}


def test_used_up_quota_on_the_masters_disk_is_enospc_from_fsync_and_keeps_what_was_acknowledged(
    tmp_path: Path, mount_of: MakeMount
) -> None:
    """It is a quota of the master, not of whoever writes."""
    used_up = tmp_path / "used-up"
    master = MasterProcess(tmp_path / "master")
    master.environment = quota_of(master.data_dir, used_up)
    master.start()
    try:
        mount = mount_of(master, "mount")
        run = mount.make_run(RUN)
        write_synced(run / "before", b"before")
        used_up.touch()
        contents = {"small": b"in its commit", "large": os.urandom(5 * MIB)}
        for name, content in contents.items():
            (run / name).write_bytes(content)
        (run / "directory").mkdir()

        refusals = [
            refusal_of(lambda: sync(run / "small")),
            refusal_of(lambda: sync(run / "large")),
            refusal_of(lambda: sync(run / "directory")),
        ]

        assert [errno.errorcode[refusal] for refusal in refusals] == ["ENOSPC"] * 3
        assert all_name_the_full_disk(mount, 3)
        mount.kill()
        mount.start()
        contents["before"] = b"before"
        assert {name: (run / name).read_bytes() for name in contents} == contents
        used_up.unlink()
        wait_until(lambda: mount.status()["pending_count"] == 0, "the upload when there is room again")
        write_synced(run / "after", b"after")
        elsewhere = run_in(mount_of(master, "other"))
        assert list((elsewhere / "directory").iterdir()) == []
        contents["after"] = b"after"
        assert {name: (elsewhere / name).read_bytes() for name in contents} == contents
    finally:
        master.kill()


def quota_of(directory: Path, used_up: Path) -> dict[str, str]:
    """The environment of a program that has a quota of what is below the directory, used up while the file exists."""
    library = used_up.parent / "exhausted_quota.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, EXHAUSTED_QUOTA_SOURCE, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "QUOTA_OF": str(directory), "QUOTA_USED_UP": str(used_up)}


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(run: Path, number: int, acknowledged: dict[str, bytes]) -> int:
    """The errno of it, or 0, and then it is among the acknowledged."""
    name, content = f"file-{number}", os.urandom(100 * KIB)
    refusal = refusal_of(lambda: (run / name).write_bytes(content))
    if not refusal:
        acknowledged[name] = content
    return refusal


def write_at(path: Path, offset_bytes: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, content, offset_bytes) == len(content)
    finally:
        os.close(descriptor)


def refusal_of(act: Callable[[], object]) -> int:
    """The errno that it fails with; 0: it does not."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def test_full_disk_at_the_master_fails_fsync_and_keeps_what_was_acknowledged(
    tmp_path: Path, mount_of: MakeMount
) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        master = MasterProcess(disk / "data")
        master.log_path = tmp_path / "master.log"
        master.start()
        try:
            mount = mount_of(master, "mount")
            run = mount.make_run(RUN)
            first = os.urandom(8 * MIB)
            write_synced(run / "first", first)
            filler = disk / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(64 * MIB))

            second = os.urandom(8 * MIB)
            with pytest.raises(OSError) as refusal:
                write_synced(run / "second", second)
            assert refusal.value.errno == errno.ENOSPC
            assert mount.status(run / "second")["failed_count"] == 1

            filler.unlink()
            wait_until(lambda: mount.status()["pending_count"] == 0, "the upload when there is room again")
            other = mount_of(master, "other")
            elsewhere = other.mount_point / run.relative_to(mount.mount_point)
            assert (elsewhere / "first").read_bytes() == first
            assert (elsewhere / "second").read_bytes() == second
        finally:
            master.kill()


def test_full_staging_disk_fails_write_and_keeps_what_was_acknowledged(
    tmp_path: Path, master: MasterProcess, mount_of: MakeMount
) -> None:
    with small_disk(tmp_path / "mount" / "state", 24):
        mount = mount_of(master, "mount")
        run = mount.make_run(RUN)
        kept = os.urandom(4 * MIB)
        (run / "kept").write_bytes(kept)
        master.kill()  # nothing leaves the staging disk meanwhile

        descriptor = os.open(run / "big", os.O_WRONLY | os.O_CREAT)
        acknowledged = 0
        block = os.urandom(MIB)
        with pytest.raises(OSError) as refusal:
            while acknowledged < 64 * MIB:
                acknowledged += os.write(descriptor, block)
        assert refusal.value.errno == errno.ENOSPC
        with suppress(OSError):  # close may say it once more
            os.close(descriptor)
        master.start()
        mount.wait_durable()

        (run / "after").write_bytes(b"room again")
        mount.wait_durable()
        other = mount_of(master, "other")
        elsewhere = other.mount_point / run.relative_to(mount.mount_point)
        assert (elsewhere / "kept").read_bytes() == kept
        assert (elsewhere / "big").read_bytes()[:acknowledged] == (block * 64)[:acknowledged]
        assert (elsewhere / "after").read_bytes() == b"room again"
        mount.kill()


def test_files_are_removed_on_a_full_state_disk_by_the_master(
    master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "mount" / "state", 4) as disk:
        mount = MountProcess(
            tmp_path / "mount",
            master.address,
            master.make_token("user-123"),
            options="insecure,timeo=2",
        )
        mounts.append(mount)
        mount.start()
        run = mount.make_run(RUN)
        for number in range(200):
            (run / f"file-{number}").write_bytes(b"content")
        mount.wait_durable()
        fill(disk)

        for path in sorted(run.iterdir())[:-1]:
            path.unlink()

        assert [path.name for path in run.iterdir()] == ["file-99"]
        master.kill()
        with pytest.raises(OSError, match="Input/output error"):
            (run / "file-99").unlink()
        assert (run / "file-99").read_bytes() == b"content"
        master.start()
        (disk / "filler").unlink()
        mount.wait_durable()
        mount.kill()
        mount.start()
        assert [path.name for path in run.iterdir()] == ["file-99"]
        mount.umount()
