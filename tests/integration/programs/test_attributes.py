"""touch, chmod, chown: what is set is what everybody sees."""

from __future__ import annotations

from pathlib import Path

from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster, snapshot_tree


def test_touch_sets_times_to_the_nanosecond(run: Path, at_master: AtMaster) -> None:
    run_shell("touch -d '2024-02-29 12:34:56.123456789' file; mkdir dir", cwd=run)
    run_shell("touch -d '1999-12-31 23:59:59.999999999' dir; ln -s x link; touch -hd @1.5 link", cwd=run)

    elsewhere = at_master()
    assert (elsewhere / "file").stat().st_mtime_ns == 1_709_210_096_123_456_789
    assert (elsewhere / "dir").stat().st_mtime_ns == 946_684_799_999_999_999
    assert (elsewhere / "link").lstat().st_mtime_ns == 1_500_000_000


def test_chmod_and_chown_change_what_stat_shows(run: Path, at_master: AtMaster) -> None:
    run_shell("touch file; mkdir dir; ln -s file link", cwd=run)

    run_shell(
        "chmod 4751 file; chmod g+s,o+t dir; chown 12:34 file; chown -h 56:78 link; chgrp 90 dir", cwd=run
    )

    shown = run_tool("stat", "-c", "%a %u %g", "file", "dir", "link", cwd=at_master()).splitlines()
    # chown takes the set-user-id bit of a file away.
    assert shown == ["751 12 34", "3755 0 90", "777 56 78"]


def test_chmod_r_and_chown_r_reach_a_whole_tree(
    run: Path, shared_mount: MountProcess, source: Path, at_master: AtMaster
) -> None:
    run_tool("cp", "-r", source, run / "tree")
    shared_mount.wait_durable(run)

    run_shell("chmod -R u=rwX,go= tree; chown -R 77:88 tree", cwd=run)

    found = snapshot_tree(at_master() / "tree")
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(77, 88)}
    assert {entry.mode & 0o777 for entry in found.values()} == {0o700, 0o600, 0o777}
