"""A backlog of any length needs no more descriptors than a process has."""

from __future__ import annotations

from pathlib import Path

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, run_in

DESCRIPTORS_MAX = 1024
FILE_COUNT = 2500


def test_more_files_wait_for_the_master_than_the_daemon_may_open(
    master: MasterProcess, mount_of: MakeMount
) -> None:
    """A1. Creating, writing, appending, `mkdir` and `symlink` in a run that has been looked into succeed and are
    staged.
    """
    mount = mount_of(master, "mount")
    mount.umount()
    mount.descriptors_max = DESCRIPTORS_MAX
    mount.start()
    run = mount.make_run(RUN)
    (run / "published").write_bytes(b"published")
    mount.wait_durable()
    master.kill()
    written = {f"file-{number}": b"%d" % number for number in range(FILE_COUNT)}

    for name, content in written.items():
        (run / name).write_bytes(content)
    with (run / "published").open("ab") as file:
        file.write(b" and more")

    mount.kill()
    master.start()
    mount.start()
    assert descriptor_count(mount.pid) < DESCRIPTORS_MAX // 2
    mount.wait_durable()
    expected = written | {"published": b"published and more"}
    found = {path.name: path.read_bytes() for path in run_in(mount_of(master, "other")).iterdir()}
    assert found == expected


def descriptor_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
