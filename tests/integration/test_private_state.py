"""Staged bytes are their owner's alone, and what is a cache says so to programs that make backups."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes_below(directory: Path) -> dict[str, str]:
    """What somebody else could open, or could see the names in, by path."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        mode = path.lstat().st_mode
        expected = 0o700 if stat.S_ISDIR(mode) else 0o600
        if stat.S_IMODE(mode) != expected:
            found[str(path)] = f"{stat.S_IMODE(mode):o}"
    return found


def test_every_file_of_the_state_directory_is_its_owners_alone_whatever_the_umask(
    open_umask: None, master: MasterProcess, make_mount: MakeMount, tmp_path: Path
) -> None:
    (tmp_path / "mount" / "state").mkdir(parents=True)
    (tmp_path / "mount" / "state").rmdir()
    mount: MountProcess = make_mount()
    run = mount.make_run(RUN)
    (run / "log").write_bytes(b"published")
    mount.wait_durable()
    master.kill()
    with (run / "log").open("ab") as log:
        log.write(b" and over a base")
    (run / "readable by all").write_bytes(b"secret all the same")
    (run / "readable by all").chmod(0o666)

    kinds = {path.suffix or path.name for path in mount.state_dir.rglob("*") if path.is_file()}
    assert {".sqlite", ".sqlite-wal", ".sqlite-shm", ".extents", ".log", "lock"} <= kinds
    assert modes_below(mount.state_dir) == {}
    mount.kill()
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite.open"):
        (mount.state_dir / name).write_bytes(b"\xffgarbage" * 1000)
    master.start()
    mount.start()
    assert list(mount.state_dir.glob("set-aside-*/staged/*/*"))
    assert modes_below(mount.state_dir) == {}


def test_cache_is_left_out_of_a_backup_and_staged_files_are_not(
    master: MasterProcess, make_mount: MakeMount
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "file").write_bytes(b"x" * 100_000)
    mount.wait_durable()
    tag = mount.cache_dir / "CACHEDIR.TAG"
    wait_until(tag.exists, "the tag")

    assert tag.read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    master.kill()
    (run / "staged").write_bytes(b"only here")
    directories = [str(mount.cache_dir), str(mount.state_dir)]
    command = ["tar", "--exclude-caches-under", "-cf", "/dev/null", "-v", *directories]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    below_cache = [line for line in listed if str(mount.cache_dir).lstrip("/") in line]
    assert {Path(line).name for line in below_cache} <= {"cache", "CACHEDIR.TAG"}
    assert any("/staged/" in line and line[-1].isdigit() for line in listed)
