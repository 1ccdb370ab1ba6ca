"""`cloudai warmup` on a real mount: what it brought is read without the master, what it cannot bring is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import PROGRAM, RUN, MakeMount, MountProcess, run_in
from support.terminal import TerminalProgram

MIB = 1024 * 1024
FAILED = 2


@pytest.fixture
def contents(make_mount: MakeMount) -> dict[str, bytes]:
    """A sealed run at the master, written through a mount that is gone: path to bytes."""
    writer = make_mount("writer")
    run = writer.make_run(RUN)
    (run / "checkpoints").mkdir()
    files = {f"checkpoints/{number:03}": b"content %d\n" % number for number in range(300)}
    files |= {"model.bin": os.urandom(9 * MIB), "empty": b""}
    for name, content in files.items():
        (run / name).write_bytes(content)
    writer.seal(run)
    writer.umount()
    return files


def contents_of(directory: Path) -> dict[str, bytes]:
    """What is read through the mount, by path."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def fetched_bytes(mount: MountProcess) -> int:
    return int(mount.status()["fetched_bytes"])


def test_sealed_run_that_was_warmed_up_is_read_without_the_master(
    make_mount: MakeMount, master: MasterProcess, contents: dict[str, bytes]
) -> None:
    """R10. After `cloudai warmup` of a sealed run it is read while the master is away."""
    mount = make_mount("reader")
    size_bytes = sum(map(len, contents.values()))

    done = mount.cloudai("warmup", "--json", str(run_in(mount)))

    assert (done.returncode, done.stderr) == (0, "")
    (report,) = json.loads(done.stdout)
    assert (report["files"], report["size_bytes"], report["fetched_bytes"]) == (302, size_bytes, size_bytes)
    master.kill()
    assert contents_of(run_in(mount)) == contents
    counters = mount.status()["counters"]
    assert (counters["fetched_bytes"], counters["disk_misses"]) == (size_bytes, 0)


def test_second_warmup_and_one_after_a_remount_fetch_nothing(
    make_mount: MakeMount, contents: dict[str, bytes]
) -> None:
    mount = make_mount("reader")
    mount.cloudai("warmup", str(run_in(mount)))
    before = fetched_bytes(mount)

    again = mount.cloudai("warmup", str(run_in(mount)))

    assert again.stdout == "302 files, 9.0 MiB: nothing to fetch\n"
    assert fetched_bytes(mount) == before
    mount.umount()
    mount.start()
    assert mount.cloudai("warmup", str(run_in(mount))).stdout == again.stdout
    assert fetched_bytes(mount) == 0


def test_damage_in_the_cache_is_mended_by_a_warmup_that_verifies(
    make_mount: MakeMount, master: MasterProcess, contents: dict[str, bytes]
) -> None:
    mount = make_mount("reader")
    mount.cloudai("warmup", str(run_in(mount)))
    damaged = max((path for path in (mount.cache_dir / "chunks").rglob("*") if path.is_file()), key=_size_of)
    with damaged.open("r+b") as file:
        file.write(b"damaged")
    assert "nothing to fetch" in mount.cloudai("warmup", str(run_in(mount))).stdout

    done = mount.cloudai("warmup", "--verify", str(run_in(mount)))

    assert (done.stdout, done.stderr) == ("302 files, 9.0 MiB: 4.0 MiB fetched\n", "")
    master.kill()
    assert contents_of(run_in(mount)) == contents


def test_bar_shows_files_and_bytes(make_mount: MakeMount, contents: dict[str, bytes]) -> None:
    mount = make_mount("reader")

    with TerminalProgram(PROGRAM, "warmup", run_in(mount)) as terminal:
        assert terminal.wait_end() == 0
        text = terminal.text

    assert "302 files, 9.0 MiB: 9.0 MiB fetched" in text
    assert "looking" in text


def test_more_than_the_cache_keeps_is_refused(make_mount: MakeMount, contents: dict[str, bytes]) -> None:
    mount = make_mount("reader", options="insecure,timeo=20,cache_size=8M")

    done = mount.cloudai("warmup", str(run_in(mount)))

    assert done.returncode == FAILED
    assert done.stderr == (
        "cloudai: no space left: these are 302 files of 9 MiB, "
        "and the cache keeps at most 7 MiB of its cache_size of 8 MiB\n"
    )
    assert fetched_bytes(mount) == 0
    assert mount.cloudai("warmup", str(run_in(mount) / "checkpoints")).returncode == 0


def test_what_is_damaged_at_the_master_is_named_and_the_rest_is_brought(
    make_mount: MakeMount, master: MasterProcess, contents: dict[str, bytes]
) -> None:
    largest = max((path for path in master.data_dir.rglob("*") if path.is_file()), key=_size_of)
    assert largest.stat().st_size == 4 * MIB
    with largest.open("r+b") as file:
        file.write(b"damaged")
    mount = make_mount("reader")

    done = mount.cloudai("warmup", str(run_in(mount)))

    assert done.returncode == FAILED
    damaged, summary = done.stderr.splitlines()
    assert damaged.startswith(f"cloudai: {run_in(mount)}/model.bin: a stored chunk is damaged")
    assert summary == "cloudai: 1 file could not be brought into the cache"
    master.kill()
    assert contents_of(run_in(mount) / "checkpoints") == {
        name.removeprefix("checkpoints/"): content
        for name, content in contents.items()
        if name.startswith("checkpoints/")
    }


def _size_of(path: Path) -> int:
    return path.stat().st_size
