"""What one mount sees of another's work, and what each does while the master is away."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in, wait_until

MIB = 1024 * 1024

InSecondMount = Callable[[Path], Path]


def has_text(path: Path, expected: str) -> bool:
    return path.exists() and path.read_text() == expected


def has_size(path: Path, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == size_bytes


def has_count(directory: Path, count: int) -> bool:
    return len(list(directory.iterdir())) == count


def test_closed_file_is_elsewhere_within_a_second(run: Path, in_second_mount: InSecondMount) -> None:
    """W1. A file that was closed on one mount is there on another within a second, while both reach the master."""
    elsewhere = in_second_mount(run)
    wait_until(elsewhere.is_dir, "the run elsewhere")
    assert list(elsewhere.iterdir()) == []

    for number in range(5):
        (run / f"file-{number}").write_bytes(b"content")
        path = elsewhere / f"file-{number}"
        wait_until(path.exists, "the file elsewhere", seconds_max=1.0)
        assert path.read_bytes() == b"content"


def test_log_line_is_elsewhere_within_two_seconds(run: Path, in_second_mount: InSecondMount) -> None:
    """W2. A line appended to an open file is there on another mount within two seconds."""
    log = in_second_mount(run / "train.log")
    expected = ""
    with (run / "train.log").open("w", buffering=1) as file:
        for number in range(4):
            file.write(f"line {number}\n")
            expected += f"line {number}\n"
            wait_until(partial(has_text, log, expected), f"line {number} elsewhere", seconds_max=2.0)


def test_tail_follows_a_log_that_grows_elsewhere(run: Path, in_second_mount: InSecondMount) -> None:
    """W2. A line appended to an open file is there on another mount within two seconds."""
    log = in_second_mount(run / "train.log")
    with (run / "train.log").open("w", buffering=1) as file:
        file.write("first\n")
        wait_until(log.exists, "the log elsewhere")
        with subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            try:
                assert tail.stdout.readline() == b"first\n"
                for number in range(3):
                    file.write(f"line {number}\n")
                    assert tail.stdout.readline() == f"line {number}\n".encode()
            finally:
                tail.kill()


def test_readers_of_a_growing_file_get_no_byte_that_was_not_written(
    run: Path, in_second_mount: InSecondMount, tmp_path: Path
) -> None:
    """W8. Who reads a file that grows elsewhere gets the bytes that were written, and none before they were."""
    path, size_bytes = run / "large.log", 64 * MIB
    path.write_bytes(b"old line\n" * (size_bytes // 9))
    elsewhere = in_second_mount(path)
    size_bytes = path.stat().st_size
    wait_until(partial(has_size, elsewhere, size_bytes), "the log elsewhere")
    # In the page cache as a whole: dropping that takes long enough to be seen in the middle.
    assert elsewhere.read_bytes() == path.read_bytes()
    outputs = [tmp_path / f"tail-{number}" for number in range(3)]
    expected = b""
    with ExitStack() as tails:
        for output in outputs:
            sink = tails.enter_context(output.open("wb"))
            command = ["tail", "-c", f"+{size_bytes + 1}", "-s", "0.01", "-f", str(elsewhere)]
            tail = tails.enter_context(subprocess.Popen(command, stdout=sink))
            tails.callback(tail.kill)
        for number in range(60):
            line = b"line %03d\n" % number
            with path.open("ab") as file:
                file.write(line)
            expected += line
            wait_until(partial(has_size, elsewhere, size_bytes + len(expected)), "the line elsewhere")
            with elsewhere.open("rb") as file:
                file.seek(size_bytes)
                assert file.read() == expected
        for output in outputs:
            wait_until(partial(has_size, output, len(expected)), "the output of tail")
    assert [output.read_bytes() for output in outputs] == [expected] * len(outputs)


def test_removal_rename_and_sealing_are_seen_elsewhere_within_a_second(
    run: Path, shared_mount: MountProcess, in_second_mount: InSecondMount
) -> None:
    """W3. Removals, renames and the sealing of a run are seen on other mounts within a second."""
    (run / "gone").write_bytes(b"1")
    (run / "old").write_bytes(b"2")
    (run / "directory").mkdir()
    (run / "directory" / "inside").write_bytes(b"3")
    elsewhere = in_second_mount(run)
    wait_until(lambda: (elsewhere / "directory" / "inside").exists(), "the files elsewhere")
    assert (elsewhere / "gone").exists()
    shared_mount.wait_durable(run)

    (run / "gone").unlink()
    wait_until(lambda: not (elsewhere / "gone").exists(), "the removal elsewhere", seconds_max=1.0)
    os.rename(run / "old", run / "new")
    wait_until(
        lambda: (elsewhere / "new").exists() and not (elsewhere / "old").exists(),
        "the rename elsewhere",
        seconds_max=1.0,
    )
    os.rename(run / "directory", run / "moved")
    wait_until(lambda: (elsewhere / "moved" / "inside").exists(), "the move elsewhere", seconds_max=1.0)
    shared_mount.seal(run)

    def is_sealed_elsewhere() -> bool:
        try:
            (elsewhere / "refused").touch()
        except OSError as error:
            return error.errno == 30
        return False

    wait_until(is_sealed_elsewhere, "the sealing elsewhere", seconds_max=1.0)


def test_new_run_and_latest_are_seen_elsewhere(
    shared_mount: MountProcess, second_mount: MountProcess
) -> None:
    task = "new-run-elsewhere"
    first = shared_mount.make_run("2026-11-20_10-00-00", task=task)
    elsewhere = second_mount.mount_point / "user-123" / task
    wait_until(lambda: (elsewhere / first.name).is_dir(), "the first run elsewhere", seconds_max=2.0)
    assert os.readlink(elsewhere / "latest") == first.name

    second = shared_mount.make_run("2026-11-20_11-00-00", task=task)

    wait_until(
        lambda: os.readlink(elsewhere / "latest") == second.name, "the newest elsewhere", seconds_max=2.0
    )


def test_last_commit_wins(run: Path, shared_mount: MountProcess, in_second_mount: InSecondMount) -> None:
    """W4. For one path the last commit wins, whichever mount it came from."""
    elsewhere = in_second_mount(run)
    (run / "shared").write_bytes(b"one")
    wait_until(lambda: (elsewhere / "shared").exists(), "the file elsewhere")

    (elsewhere / "shared").write_bytes(b"two, longer")
    wait_until(lambda: (run / "shared").read_bytes() == b"two, longer", "the other's content here")
    (run / "shared").write_bytes(b"three")

    wait_until(lambda: (elsewhere / "shared").read_bytes() == b"three", "the last content elsewhere")


@pytest.mark.parametrize("access", [os.O_WRONLY, os.O_RDWR])
def test_log_that_was_kept_open_is_continued_behind_what_others_have_appended(
    run: Path, in_second_mount: InSecondMount, access: int
) -> None:
    """W9. What is appended (`O_APPEND`) to a file of which nothing is uncommitted here goes behind what has
    been seen of it from other mounts.
    """
    log = in_second_mount(run / "log")
    (run / "log").write_bytes(b"one\n" * 100)
    wait_until(partial(has_size, log, 400), "the log elsewhere")
    assert log.read_bytes() == b"one\n" * 100
    kept_open = os.open(log, access | os.O_APPEND)
    with (run / "log").open("ab") as file:
        file.write(b"two\n" * 100)
        os.fsync(file.fileno())
    # News come in their order. A look at the file itself would tell the kernel of its new end.
    (run / "later").touch()
    wait_until((log.parent / "later").exists, "a later name elsewhere")

    os.write(kept_open, b"three\n")
    os.write(kept_open, b"four\n")
    os.close(kept_open)

    expected = b"one\n" * 100 + b"two\n" * 100 + b"three\nfour\n"
    wait_until(lambda: log.read_bytes() == expected, "the log where it was continued")
    wait_until(lambda: (run / "log").read_bytes() == expected, "the log elsewhere")


def test_directory_that_is_open_goes_on_where_it_was_moved_elsewhere(
    run: Path, in_second_mount: InSecondMount
) -> None:
    elsewhere = in_second_mount(run)
    (run / "d").mkdir()
    (run / "d" / "file").write_bytes(b"content")
    wait_until((elsewhere / "d").exists, "the directory elsewhere")
    with ExitStack() as held:
        held.callback(os.close, descriptor := os.open(elsewhere / "d", os.O_RDONLY | os.O_DIRECTORY))

        (run / "d").rename(run / "e")

        wait_until((elsewhere / "e").exists, "its new name elsewhere")
        wait_until(lambda: not (elsewhere / "d").exists(), "the end of its old name elsewhere")
        assert os.listdir(elsewhere / "e") == ["file"]
        assert os.listdir(descriptor) == ["file"]
        (elsewhere / "e" / "more").touch()


def test_file_being_written_outlives_a_removal_elsewhere(run: Path, in_second_mount: InSecondMount) -> None:
    """W5. A file with changes that are not yet committed is not taken away by a removal elsewhere, of it or of the
    directory that it is in: the later commit brings both back.
    """
    elsewhere = in_second_mount(run)
    (run / "kept").write_bytes(b"first")
    wait_until(lambda: (elsewhere / "kept").exists(), "the file elsewhere")
    with (run / "kept").open("r+b", buffering=0) as file:
        file.write(b"FIRST")

        (elsewhere / "kept").unlink()

    wait_until(
        lambda: (elsewhere / "kept").exists() and (elsewhere / "kept").read_bytes() == b"FIRST",
        "the file brought back",
    )
    assert (run / "kept").read_bytes() == b"FIRST"


def test_file_being_written_outlives_the_removal_of_its_directory_elsewhere(
    run: Path, in_second_mount: InSecondMount, shared_mount: MountProcess
) -> None:
    """W5, and who has the directory open there keeps nobody from seeing what is in it by now."""
    elsewhere = in_second_mount(run)
    (run / "d").mkdir()
    shared_mount.wait_durable(run)
    wait_until((elsewhere / "d").exists, "the directory elsewhere")
    descriptor = os.open(elsewhere / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (run / "d" / "kept").open("wb", buffering=0) as file:
            file.write(b"content")

            (elsewhere / "d").rmdir()

        wait_until((elsewhere / "d" / "kept").exists, "directory and file brought back")
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []  # it was removed
    finally:
        os.close(descriptor)
    for place in (run, elsewhere):
        assert [path.name for path in (place / "d").iterdir()] == ["kept"]
        assert (place / "d" / "kept").read_bytes() == b"content"


def test_file_takes_no_directorys_place_from_what_is_staged_in_it(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """W11. A file is never replaced by a directory, nor a directory with something in it by a file, that another mount
    made under its name: what cannot be placed stays staged where it was made, `cloudai status` names it, and it goes on
    once it or the other is moved.
    """
    mount, other = make_mount(), make_mount("other")
    run = mount.make_run(RUN)
    elsewhere = run_in(other)
    (run / "results").mkdir()
    (run / "theirs").write_bytes(b"theirs")
    mount.wait_durable()
    wait_until((elsewhere / "theirs").exists, "all of it elsewhere")
    with (run / "results" / "mine").open("wb", buffering=0) as file:
        file.write(b"mine")

        (elsewhere / "results").rmdir()
        os.rename(elsewhere / "theirs", elsewhere / "results")

    wait_until(lambda: mount.status()["failed_count"] >= 1, "what could not be placed")
    assert f"user-123/training/{RUN}/results/mine" in [named["path"] for named in mount.status()["pending"]]
    assert (run / "results" / "mine").read_bytes() == b"mine"
    assert (elsewhere / "results").read_bytes() == b"theirs"
    third = make_mount("third")
    assert (run_in(third) / "results").read_bytes() == b"theirs"

    os.rename(run / "results" / "mine", run / "mine")
    mount.wait_durable(run / "mine")
    wait_until(lambda: has_text(elsewhere / "mine", "mine"), "what was moved out of the way")
    wait_until((run / "results").is_file, "what has the name at the master", seconds_max=60)
    assert (run / "results").read_bytes() == b"theirs"


def test_making_things_needs_no_master(make_mount: MakeMount, master: MasterProcess) -> None:
    """A1. Creating, writing, appending, `mkdir` and `symlink` in a run that has been looked into succeed and are
    staged. (Opening for writing what is of more than one chunk and was neither written nor opened on this mount
    before has to ask for its manifest.)
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "log").write_bytes(b"one\n")
    mount.wait_durable()
    master.kill()
    began = time.monotonic()

    (run / "directory").mkdir()
    (run / "directory" / "file").write_bytes(b"content")
    (run / "link").symlink_to("log")
    with (run / "log").open("ab") as file:
        file.write(b"two\n")

    assert time.monotonic() - began < 2.0
    assert (run / "link").read_bytes() == b"one\ntwo\n"
    master.start()
    mount.wait_durable()
    other = make_mount("other")
    assert (run_in(other) / "link").read_bytes() == b"one\ntwo\n"
    assert (run_in(other) / "directory" / "file").read_bytes() == b"content"


def test_destroying_what_is_published_asks_the_master_first(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """A2. What destroys or renames something that the master has asks the master first, but for removals of files with
    one name while it answers: once it is known to be away each waits at most `timeo`, and then fails with EIO and has
    changed nothing here.
    """
    mount = make_mount(options="insecure,timeo=2")
    run = mount.make_run(RUN)
    (run / "published").write_bytes(b"content")
    mount.wait_durable()
    killed = time.monotonic()
    master.kill()
    wait_until(lambda: not mount.status()["connected"], "the mount's notice of it")

    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        (run / "published").unlink()
    # An outage is waited out once: for a part of it this one may have been before.
    assert time.monotonic() - killed > 1.0
    assert time.monotonic() - began < 12
    with pytest.raises(OSError, match="Input/output error"):
        os.rename(run / "published", run / "renamed")  # the outage has been waited out

    assert (run / "published").read_bytes() == b"content"
    assert sorted(path.name for path in run.iterdir()) == ["published"]


def test_what_was_only_staged_is_renamed_and_removed_without_the_master(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    """A3. What was only staged is removed and renamed without the master, unless it has replaced something that is
    there: its rename then waits for its upload.
    """
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "warm").touch()
    mount.wait_durable()
    master.kill()
    began = time.monotonic()

    with (run / "last.tmp").open("wb") as file:
        file.write(b"weights")
    os.rename(run / "last.tmp", run / "last")
    with (run / "scratch").open("wb") as file:
        file.write(b"x")
        os.unlink(run / "scratch")

    assert time.monotonic() - began < 2.0
    assert sorted(path.name for path in run.iterdir()) == ["last", "warm"]


def test_exclusive_creation_holds_within_a_mount(
    run: Path, shared_mount: MountProcess, in_second_mount: InSecondMount
) -> None:
    """W6. `O_EXCL` and locks hold within a mount, not between mounts."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(run / "lock", flags))

    with pytest.raises(FileExistsError):
        os.open(run / "lock", flags)
    with (run / "lock").open("w") as first, (run / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait_until(lambda: in_second_mount(run / "lock").exists(), "the file elsewhere")
        with in_second_mount(run / "lock").open("w") as elsewhere:
            fcntl.flock(elsewhere, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_two_mounts_writing_at_once_lose_nothing(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess, in_second_mount: InSecondMount
) -> None:
    elsewhere = in_second_mount(run)
    wait_until(elsewhere.is_dir, "the run elsewhere")
    for number in range(100):
        (run / f"a-{number}").write_bytes(b"a")
        (elsewhere / f"b-{number}").write_bytes(b"b")
        (run / "both").mkdir(exist_ok=True)
        (elsewhere / "both").mkdir(exist_ok=True)
        (run / "both" / f"a-{number}").touch()
        (elsewhere / "both" / f"b-{number}").touch()
    shared_mount.wait_durable()
    second_mount.wait_durable()

    for place in (run, elsewhere):
        wait_until(partial(has_count, place, 201), "all files at the top")
        wait_until(partial(has_count, place / "both", 200), "all files below")
