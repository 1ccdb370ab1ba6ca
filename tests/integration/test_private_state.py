"""Staged bytes are their owner's alone, and what is a cache says so to programs that make backups."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until


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


def test_cache_is_left_out_of_a_backup_and_what_is_staged_goes_on_where_it_is_restored(
    master: MasterProcess, make_mount: MakeMount
) -> None:
    """D15. A backup of the state directory has what is staged, and a mount on what was restored from it goes on
    uploading; the cache says to programs that make backups that it is to be passed by (`CACHEDIR.TAG`).
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "file").write_bytes(b"x" * 100_000)
    mount.wait_durable()
    tag = mount.cache_dir / "CACHEDIR.TAG"
    wait_until(lambda: files_below(mount.cache_dir) > {tag}, "the tag and what was cached")
    assert tag.read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    master.kill()
    staged = os.urandom(100_000)
    (run / "staged").write_bytes(staged)
    with tempfile.TemporaryFile() as backup:
        directories = [str(path.relative_to("/")) for path in (mount.cache_dir, mount.state_dir)]
        make = ["tar", "--exclude-caches-under", "-C", "/", "-c", *directories]
        subprocess.run(make, stdout=backup, check=True)
        mount.kill()
        shutil.rmtree(mount.state_dir)
        shutil.rmtree(mount.cache_dir)
        backup.seek(0)
        subprocess.run(["tar", "-C", "/", "-x"], stdin=backup, check=True)

    assert files_below(mount.cache_dir) == set()
    master.start()
    mount.start()
    mount.wait_durable()
    assert (run_in(make_mount("other")) / "staged").read_bytes() == staged


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}
