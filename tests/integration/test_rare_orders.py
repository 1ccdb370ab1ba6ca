"""What seldom comes together: writers who never rest, answers and rows that are lost, others who seal, remove or
replace meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.files import write_synced
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

MIB = 1024 * 1024

InSecondMount = Callable[[Path], Path]


def has_content(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def test_writing_the_same_content_again_after_somebody_elses_commit_wins(
    run: Path, in_second_mount: InSecondMount
) -> None:
    elsewhere = in_second_mount(run)
    write_synced(run / "file", b"one")
    wait_until(lambda: has_content(elsewhere / "file", b"one"), "the first content elsewhere")
    write_synced(elsewhere / "file", b"two")
    wait_until(lambda: has_content(run / "file", b"two"), "the second content here")

    write_synced(run / "file", b"one")

    wait_until(lambda: has_content(elsewhere / "file", b"one"), "the first content again elsewhere")


def test_log_that_never_rests_is_seen_elsewhere(run: Path, in_second_mount: InSecondMount) -> None:
    log = in_second_mount(run / "busy.log")
    stop = threading.Event()
    written = [0]

    def write() -> None:
        with (run / "busy.log").open("wb", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 99 + b"\n")
                written[0] += 100
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: written[0] > 50_000, "the writer's first lines")
        # Past what travels inside a commit, so that chunks are made of it.
        wait_until(lambda: written[0] > 200_000, "the writer's lines")
        for _ in range(3):
            before = written[0]
            wait_until(
                lambda before=before: log.exists() and log.stat().st_size >= before,  # type: ignore[misc]
                "what was written before, elsewhere",
                seconds_max=4.0,
            )
    finally:
        stop.set()
        writer.join()


def test_fsync_returns_while_another_descriptor_goes_on_writing(run: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with (run / "log").open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"line\n" * 20)
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: (run / "log").exists() and (run / "log").stat().st_size > 70_000, "lines")
        descriptor = os.open(run / "log", os.O_WRONLY)
        began = time.monotonic()
        os.fsync(descriptor)
        os.close(descriptor)
        assert time.monotonic() - began < 5.0
    finally:
        stop.set()
        writer.join()


def test_sealing_ends_although_somebody_keeps_writing(run: Path, shared_mount: MountProcess) -> None:
    outcome: list[int | None] = []

    def write() -> None:
        with (run / "log").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"line\n")
                    time.sleep(0.001)
            except OSError as error:
                outcome.append(error.errno)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: (run / "log").exists() and (run / "log").stat().st_size > 1000, "lines")

    shared_mount.seal(run)
    writer.join(10)

    assert outcome == [30]
    assert shared_mount.status(run)["pending_count"] == 0


def test_directory_replaced_while_it_is_open_can_be_used(run: Path, shared_mount: MountProcess) -> None:
    (run / "a").mkdir()
    shared_mount.wait_durable(run)
    descriptor = os.open(run / "a", os.O_RDONLY)
    (run / "b").mkdir()
    os.rename(run / "b", run / "a")
    (run / "a" / "file").write_bytes(b"content")
    shared_mount.wait_durable(run)

    (run / "a" / "file").unlink()
    os.close(descriptor)
    (run / "a").rmdir()

    shared_mount.wait_durable(run)
    assert list(run.iterdir()) == []


def test_file_that_cannot_be_read_keeps_no_other_from_the_master(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    first = make_mount()
    run = first.make_run(RUN)
    (run / "damaged").write_bytes(b"x" * 1000)
    first.wait_durable()
    for chunk in (master.data_dir / "chunks").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    other = make_mount("other")
    with (run_in(other) / "damaged").open("r+b") as file:
        file.seek(10)
        file.write(b"needs the rest")
    (run_in(other) / "innocent").write_bytes(b"content")

    other.cloudai("wait", str(run_in(other) / "innocent"))

    wait_until(lambda: has_content(run / "innocent", b"content"), "the innocent file elsewhere")
    (failed,) = other.status()["pending"]
    assert failed["path"].endswith("/damaged")
    assert failed["state"] == "failed"


def test_durable_file_outlives_a_journal_that_lost_its_last_rows_removal(make_mount: MakeMount) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    with (run / "file").open("wb") as file:
        file.write(os.urandom(MIB))
        file.flush()
        journal = {path.name: path.read_bytes() for path in mount.state_dir.glob("journal*")}
        os.fsync(file.fileno())
    content = (run / "file").read_bytes()
    mount.wait_durable()
    mount.kill()
    for path in mount.state_dir.glob("journal*"):
        path.unlink()
    for name, saved in journal.items():
        (mount.state_dir / name).write_bytes(saved)
    shutil.rmtree(mount.state_dir / "staged")

    mount.start()
    mount.wait_durable()

    other = make_mount("other")
    assert (run_in(other) / "file").read_bytes() == content


def test_appending_to_a_large_file_written_here_needs_no_master(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    content = os.urandom(5 * MIB)
    (run / "big").write_bytes(content)
    mount.wait_durable()
    master.kill()

    with (run / "big").open("ab") as file:
        file.write(b"more")

    master.start()
    mount.wait_durable()
    other = make_mount("other")
    assert (run_in(other) / "big").read_bytes() == content + b"more"


def test_many_open_runs_cost_a_bounded_number_of_streams(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount, other = make_mount(), make_mount("other")
    runs = [mount.make_run(f"2026-11-20_15-{number // 60:02}-{number % 60:02}") for number in range(100)]
    task = other.mount_point / "user-123" / "training"
    wait_until(lambda: len(list(task.iterdir())) == 101, "the runs elsewhere")
    subprocess.run(["ls", "-lR", task], check=True, capture_output=True, timeout=60)

    (runs[0] / "first").write_bytes(b"1")
    (runs[-1] / "last").write_bytes(b"2")

    for path in (runs[0] / "first", runs[-1] / "last"):
        there = other.mount_point / path.relative_to(mount.mount_point)
        wait_until(there.exists, "a file in a run, watched or not", seconds_max=4.0)
    threads = len(list(Path(f"/proc/{other.pid}/task").iterdir()))
    assert threads < 64 + 40


def test_staged_data_of_another_mount_is_named_when_its_run_is_sealed(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """W7. What another mount had still staged when a run was sealed is refused by the master: it stays staged there,
    `cloudai status` names it with the reason, and `cloudai umount` says so.
    """
    mount, other = make_mount(), make_mount("other", options="insecure,timeo=5")
    run = mount.make_run(RUN)
    wait_until(lambda: run_in(other).is_dir(), "the run elsewhere")
    descriptor = os.open(run_in(other) / "late", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x" * 6 * MIB)

    mount.seal(run)

    def is_named() -> bool:
        return any("sealed" in entry["reason"] for entry in other.status()["pending"])

    with pytest.raises(OSError, match="Read-only file system"):
        wait_until(lambda: os.write(descriptor, b"y") == 0, "the refusal of a write", seconds_max=3.0)
    os.close(descriptor)
    wait_until(is_named, "the reason in the status")


def test_what_is_staged_in_a_run_that_was_removed_elsewhere_is_kept_and_named(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount, other = make_mount(options="insecure,timeo=3"), make_mount("other")
    run = mount.make_run(RUN)
    assert list(run.iterdir()) == []
    wait_until(lambda: run_in(other).is_dir(), "the run elsewhere")
    master.kill()
    (run / "staged").write_bytes(b"acknowledged")
    mount.kill()
    master.start()
    wait_until(lambda: rmdir(run_in(other)), "the removal elsewhere")

    mount.start()
    result = mount.cloudai("wait", str(mount.mount_point))

    assert result.returncode != 0
    (failed,) = mount.status()["pending"]
    assert failed["path"].endswith("/staged")
    assert failed["state"] == "failed"
    (kept,) = [path for path in (mount.state_dir / "staged").rglob("*") if path.is_file()]
    assert kept.read_bytes() == b"acknowledged"


def rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True


def unread_bytes(address: str) -> int:
    """What waits in the connections to the address for who listens there."""
    port = int(address.rpartition(":")[2])
    waiting_bytes = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, _, _, queues = line.split()[1:5]
            if int(local.rpartition(":")[2], 16) == port:
                waiting_bytes += int(queues.rpartition(":")[2], 16)
    return waiting_bytes


def test_file_staged_under_a_name_that_is_a_filled_directory_by_now_is_kept_and_named(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount, other = make_mount(), make_mount("other")
    run = mount.make_run(RUN)
    (run / "first").touch()
    mount.wait_durable()
    with master.silent():
        (run / "results").write_bytes(b"acknowledged")
        mount.kill()
    wait_until(run_in(other).exists, "the run elsewhere")
    (run_in(other) / "results").mkdir()
    (run_in(other) / "results" / "inner").write_bytes(b"of the other mount")
    other.wait_durable()

    for _ in range(2):
        mount.start()
        wait_until(lambda: mount.status()["failed_count"] == 1, "what could not be placed")
        assert (run / "results").read_bytes() == b"acknowledged"
        (named,) = mount.status()["pending"]
        assert named["path"] == f"user-123/training/{RUN}/results"
        assert "directory" in named["reason"]
        staged = [path for path in (mount.state_dir / "staged").rglob("*") if path.is_file()]
        assert [path.read_bytes() for path in staged] == [b"acknowledged"]
        mount.kill()

    mount.start()
    (run / "results").write_bytes(b"written anew")
    (run_in(other) / "results").rename(run_in(other) / "theirs")
    wait_until(lambda: (run_in(other) / "results").is_file(), "the file elsewhere")
    mount.wait_durable()
    for _ in range(2):
        for place in (run, run_in(other)):
            assert (place / "results").read_bytes() == b"written anew"
        wait_until((run / "theirs" / "inner").exists, "what was in its way")
        mount.umount()
        mount.start()


def test_acknowledged_rename_survives_a_crash_before_the_commits_answer(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    write_synced(run / "final", b"old")
    mount.wait_durable()  # the directory's time too: the next commit is that of tmp
    for number in range(5):
        content = f"new {number}".encode()
        os.kill(master.pid, signal.SIGSTOP)
        try:
            (run / "tmp").write_bytes(content)
            # It has left, and no answer comes. A ping is shorter.
            wait_until(lambda: unread_bytes(master.address) > 100, "the commit of tmp")
            os.rename(run / "tmp", run / "final")
            mount.kill()
        finally:
            os.kill(master.pid, signal.SIGCONT)
        mount.start()
        mount.wait_durable()

        assert [path.name for path in run_in(mount).iterdir()] == ["final"]
        assert (run_in(mount) / "final").read_bytes() == content


def test_pages_of_before_are_not_shown_after_a_commit_of_the_same_size_elsewhere(
    run: Path, in_second_mount: InSecondMount
) -> None:
    elsewhere = in_second_mount(run)
    write_synced(run / "file", b"AAA")
    wait_until(lambda: has_content(elsewhere / "file", b"AAA"), "the file elsewhere")
    with (run / "file").open("r+b") as idle_writer:
        assert idle_writer.read() == b"AAA"
        write_synced(elsewhere / "file", b"BBB")
        wait_until(lambda: has_content(run / "file", b"BBB"), "the other's content beside an idle writer")

    assert (run / "file").read_bytes() == b"BBB"


def test_readers_of_one_file_wait_out_an_outage_once(make_mount: MakeMount, master: MasterProcess) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    write_synced(run / "file", os.urandom(MIB))
    other = make_mount("other", options="insecure,timeo=3")
    path = run_in(other) / "file"
    assert path.stat().st_size == MIB
    master.kill()
    began = time.monotonic()
    readers = [threading.Thread(target=read_refused, args=[path]) for _ in range(10)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)

    assert time.monotonic() - began < 12


def read_refused(path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
