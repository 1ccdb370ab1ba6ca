"""Shell tools on a real mount do what they do on a local disk, and another mount sees the same."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import IO

import pytest

from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import CheckElsewhere, differences, place_in, snapshot_tree

MIB = 1024 * 1024

# -@-1: times are compared, and therefore set, to the nanosecond and not to the second.
RSYNC = ("rsync", "-a", "-@-1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree on a local disk: files of many sizes, directories, a symlink, times and modes."""
    root = tmp_path / "source"
    (root / "checkpoints" / "old").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "metrics.csv").write_text("epoch,loss\n1,0.5\n")
    (root / "config.yaml").write_text("lr: 0.1\n")
    (root / "checkpoints" / "epoch-1.bin").write_bytes(os.urandom(5 * MIB + 17))
    (root / "checkpoints" / "old" / "epoch-0.bin").write_bytes(b"\0" * 100_000)
    (root / "nothing").touch()
    (root / "last").symlink_to("checkpoints/epoch-1.bin")
    (root / "config.yaml").chmod(0o600)
    (root / "metrics.csv").chmod(0o444)
    for number, path in enumerate([*sorted(root.rglob("*")), root], start=1):
        moment_ns = 1_700_000_000_000_000_000 + number * 1_000_000_007
        os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)
    return root


def content_of(root: Path) -> dict[bytes, tuple[int, bytes]]:
    """Kinds with their permissions, and contents: what a copy without -p keeps."""
    return {
        path: (entry.mode & ~0o777, entry.content)
        for path, entry in snapshot_tree(root).items()
        if path != b"."
    }


# --- looking -------------------------------------------------------------------------------------------------


def test_ls_and_find_show_what_is_there(run: Path) -> None:
    run_shell("mkdir -p a/b; echo 1 > a/one; echo 12 > a/b/two; ln -s one a/link", cwd=run)

    assert run_tool("ls", "-A", run / "a") == "b\nlink\none\n"
    assert sorted(run_tool("find", ".", "-printf", "%y %p %s\n", cwd=run).splitlines()) == sorted(
        run_tool("bash", "-c", "find . -exec stat -c '%F %n %s' {} +", cwd=run)
        .replace("directory", "d")
        .replace("regular file", "f")
        .replace("symbolic link", "l")
        .splitlines()
    )
    assert "link -> one" in run_tool("ls", "-l", run / "a")


def test_find_newer_compares_times(run: Path) -> None:
    run_shell("touch -d 2026-01-01 old; touch -d 2026-01-02 mark; touch -d 2026-01-03 new", cwd=run)

    assert run_tool("find", ".", "-type", "f", "-newer", "mark", cwd=run) == "./new\n"


def test_du_adds_up_sizes(run: Path) -> None:
    (run / "a").mkdir()
    (run / "a" / "one").write_bytes(b"x" * 8192)
    (run / "a" / "two").write_bytes(b"y" * 4096)

    assert run_tool("du", "-sb", "--apparent-size", "a/one", "a/two", cwd=run) == "8192\ta/one\n4096\ta/two\n"
    assert run_tool("du", "-k", "a/one", cwd=run) == "8\ta/one\n"


def test_df_shows_the_mount(run: Path, shared_mount: MountProcess) -> None:
    lines = run_tool("df", "--output=source,fstype,target", run).splitlines()

    assert lines[1].split() == [shared_mount.source, "fuse.cloudai", str(shared_mount.mount_point)]


# --- copying -------------------------------------------------------------------------------------------------


def test_cp_r_copies_in_and_out(
    run: Path, source: Path, tmp_path: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool("cp", "-r", source, run / "copy")
    run_tool("cp", "-r", run / "copy", tmp_path / "back")

    assert content_of(tmp_path / "back") == content_of(source)
    check_elsewhere()


def test_cp_p_keeps_modes_owners_and_times(
    run: Path, source: Path, tmp_path: Path, check_elsewhere: CheckElsewhere
) -> None:
    os.chown(source / "config.yaml", 1234, 2345)
    run_tool("cp", "-rp", source, run / "copy")

    assert differences(snapshot_tree(run / "copy"), snapshot_tree(source)) == {}
    check_elsewhere()


def test_cp_a_within_a_run_copies_a_tree(run: Path, source: Path, check_elsewhere: CheckElsewhere) -> None:
    run_tool("cp", "-a", source, run / "one")
    run_tool("cp", "-a", run / "one", run / "two")

    assert differences(snapshot_tree(run / "one"), snapshot_tree(run / "two")) == {}
    check_elsewhere()


def test_rsync_in_and_out_transfers_once(
    run: Path, source: Path, tmp_path: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    run_tool(*RSYNC, f"{run}/copy/", tmp_path / "back")

    assert run_tool(*RSYNC, "-in", f"{source}/", run / "copy") == ""
    assert run_tool(*RSYNC, "-inc", f"{run}/copy/", tmp_path / "back") == ""
    assert differences(snapshot_tree(tmp_path / "back"), snapshot_tree(source)) == {}
    check_elsewhere()


def test_rsync_updates_and_deletes(run: Path, source: Path, check_elsewhere: CheckElsewhere) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    (source / "metrics.csv").chmod(0o644)
    with (source / "metrics.csv").open("a") as file:
        file.write("2,0.4\n")
    shutil.rmtree(source / "checkpoints" / "old")
    (source / "last").unlink()
    (source / "last").mkdir()

    run_tool(*RSYNC, "--delete", f"{source}/", run / "copy")

    assert run_tool(*RSYNC, "-in", "--delete", f"{source}/", run / "copy") == ""
    check_elsewhere()


def test_rsync_inplace_and_append_change_what_is_published(
    run: Path, shared_mount: MountProcess, source: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    shared_mount.wait_durable(run)
    with (source / "checkpoints" / "epoch-1.bin").open("r+b") as file:
        file.seek(4 * MIB - 3)
        file.write(b"changed")
        file.seek(0, os.SEEK_END)
        file.write(b"grown")

    run_tool(*RSYNC, "--inplace", "--no-whole-file", f"{source}/", run / "copy")

    assert run_tool(*RSYNC, "-inc", f"{source}/", run / "copy") == ""
    check_elsewhere()


def test_tar_extracts_and_creates_the_same_tree(
    run: Path, source: Path, tmp_path: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool("tar", "--format=posix", "-C", source, "-cf", tmp_path / "in.tar", ".")
    (run / "tree").mkdir()

    run_tool("tar", "-C", run / "tree", "-xpf", tmp_path / "in.tar")
    run_tool("tar", "--format=posix", "-C", run / "tree", "-czf", run / "out.tar.gz", ".")

    assert differences(snapshot_tree(run / "tree"), snapshot_tree(source)) == {}
    assert run_tool("tar", "-C", source, "-df", run / "out.tar.gz") == ""
    check_elsewhere()


# --- moving, removing, linking -------------------------------------------------------------------------------


def test_mv_renames_replaces_and_moves_into_directories(run: Path, check_elsewhere: CheckElsewhere) -> None:
    run_shell(
        """
        mkdir -p here/sub there; echo a > a; echo b > b; echo c > here/sub/c
        mv a renamed
        mv renamed b
        mv b there
        mv here there
        mv there/here/sub .
        """,
        cwd=run,
    )

    assert sorted(run_tool("find", ".", "-mindepth", "1", "-printf", "%y %P\n", cwd=run).splitlines()) == [
        "d sub",
        "d there",
        "d there/here",
        "f sub/c",
        "f there/b",
    ]
    assert (run / "there" / "b").read_text() == "a\n"
    check_elsewhere()


def test_mv_of_what_is_published_renames_replaces_and_moves(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    run_shell("mkdir -p here/sub there; echo a > a; echo b > b; echo c > here/sub/c", cwd=run)
    shared_mount.wait_durable(run)

    run_shell("mv a renamed; mv renamed b; mv b there; mv here there; mv there/here/sub .", cwd=run)

    assert sorted(path.relative_to(run).as_posix() for path in run.rglob("*")) == [
        "sub",
        "sub/c",
        "there",
        "there/b",
        "there/here",
    ]
    assert (run / "there" / "b").read_text() == "a\n"
    check_elsewhere()


def test_mv_between_runs_copies(
    run: Path, shared_mount: MountProcess, source: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool("cp", "-a", source, run / "tree")
    other_run = shared_mount.make_run("2020-01-01_00-00-00", task=f"other-{run.name}")

    run_tool("mv", run / "tree", other_run / "tree")

    assert not (run / "tree").exists()
    assert differences(snapshot_tree(other_run / "tree"), snapshot_tree(source)) == {}
    check_elsewhere()


def test_rm_r_removes_a_tree(run: Path, source: Path, check_elsewhere: CheckElsewhere) -> None:
    run_tool("cp", "-a", source, run / "fresh")
    run_tool("rm", "-r", run / "fresh")

    assert list(run.iterdir()) == []
    check_elsewhere()


def test_rm_rf_removes_a_published_tree_of_many_files(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    run_shell("mkdir many; cd many; for i in $(seq 300); do echo $i > file-$i; done", cwd=run)
    shared_mount.wait_durable(run)

    run_tool("rm", "-rf", run / "many")

    assert list(run.iterdir()) == []
    check_elsewhere()


def test_rmdir_refuses_what_is_not_an_empty_directory(run: Path) -> None:
    run_shell("mkdir full empty; touch full/file file", cwd=run)

    run_shell("rmdir full 2> full/said || grep -q 'not empty' full/said", cwd=run)
    run_tool("rmdir", run / "file", status=1)
    run_tool("rmdir", run / "missing", status=1)
    run_tool("rmdir", run / "empty")

    assert sorted(path.name for path in run.iterdir()) == ["file", "full"]


def test_ln_makes_symlinks_and_hard_links(run: Path, check_elsewhere: CheckElsewhere) -> None:
    run_shell(
        "echo 1 > file; ln -s file soft; ln -s /nowhere dangling; ln file hard; echo 2 >> hard", cwd=run
    )

    assert os.readlink(run / "soft") == "file"
    assert os.readlink(run / "dangling") == "/nowhere"
    assert (run / "file").read_text() == "1\n2\n"
    assert (run / "file").stat().st_nlink == 2
    assert (run / "file").samefile(run / "hard")
    run_tool("ln", "-sf", "hard", "soft", cwd=run)
    run_tool("rm", "file", cwd=run)
    assert (run / "soft").read_text() == "1\n2\n"
    assert (run / "hard").stat().st_nlink == 1
    check_elsewhere()


# --- writing -------------------------------------------------------------------------------------------------


def test_dd_writes_into_the_middle_and_past_the_end(run: Path, check_elsewhere: CheckElsewhere) -> None:
    run_shell("printf 0123456789 > file; printf ab > two", cwd=run)

    run_tool("dd", "if=two", "of=file", "bs=1", "seek=3", "conv=notrunc", "status=none", cwd=run)
    run_tool("dd", "if=two", "of=file", "bs=1", "seek=12", "conv=notrunc,fsync", "status=none", cwd=run)
    run_tool("dd", "if=/dev/zero", "of=big", "bs=1M", "count=9", "status=none", cwd=run)
    run_tool("dd", "if=two", "of=big", "bs=1", f"seek={5 * MIB}", "conv=notrunc", "status=none", cwd=run)

    assert (run / "file").read_bytes() == b"012ab56789\0\0ab"
    assert (run / "big").read_bytes() == b"\0" * 5 * MIB + b"ab" + b"\0" * (4 * MIB - 2)
    check_elsewhere()


def test_dd_changes_a_published_file_in_place(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    content = os.urandom(9 * MIB)
    (run / "big").write_bytes(content)
    shared_mount.wait_durable(run)

    run_shell(f"printf changed | dd of=big bs=1 seek={4 * MIB - 3} conv=notrunc status=none", cwd=run)

    assert (run / "big").read_bytes() == content[: 4 * MIB - 3] + b"changed" + content[4 * MIB + 4 :]
    check_elsewhere()


def test_append_redirection_adds_lines(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    run_shell("echo one >> log; echo two >> log", cwd=run)
    shared_mount.wait_durable(run)
    run_shell("echo three >> log; (echo four; echo five) >> log", cwd=run)

    assert (run / "log").read_text() == "one\ntwo\nthree\nfour\nfive\n"
    check_elsewhere()


def test_processes_that_append_to_one_log_lose_no_line(run: Path, check_elsewhere: CheckElsewhere) -> None:
    script = "for j in $(seq 100); do echo line-$1-$j >> log; done"
    run_shell(f"for i in 1 2 3 4; do bash -c '{script}' _ $i & done; wait", cwd=run)

    expected = sorted(f"line-{i}-{j}" for i in range(1, 5) for j in range(1, 101))
    assert sorted((run / "log").read_text().splitlines()) == expected
    check_elsewhere()


def _put_lines(stream: IO[str], lines: Queue[str]) -> None:
    for line in stream:
        lines.put(line)


@pytest.fixture
def lines_of_tail(run: Path) -> Iterator[Queue[str]]:
    """The lines that `tail -f` of the run's `log` prints."""
    (run / "log").write_text("line 0\n")
    lines: Queue[str] = Queue()
    with subprocess.Popen(
        ["tail", "-f", "-s", "0.1", str(run / "log")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_put_lines, args=(process.stdout, lines))
        reader.start()
        yield lines
        process.kill()
        reader.join(timeout=10)


def test_tail_f_prints_lines_as_they_are_appended(run: Path, lines_of_tail: Queue[str]) -> None:
    assert lines_of_tail.get(timeout=10) == "line 0\n"
    with (run / "log").open("a", buffering=1) as log:
        for number in range(1, 6):
            log.write(f"line {number}\n")
            assert lines_of_tail.get(timeout=10) == f"line {number}\n"
    with pytest.raises(Empty):
        lines_of_tail.get_nowait()


def test_sed_in_place_replaces_the_file(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    run_shell("printf 'lr: 0.1\\nepochs: 3\\n' > config.yaml; chmod 640 config.yaml", cwd=run)
    shared_mount.wait_durable(run)

    run_tool("sed", "-i", "s/0.1/0.2/", "config.yaml", cwd=run)
    run_tool("sed", "-i.bak", "s/0.2/0.3/", "config.yaml", cwd=run)

    assert (run / "config.yaml").read_text() == "lr: 0.3\nepochs: 3\n"
    assert (run / "config.yaml.bak").read_text() == "lr: 0.2\nepochs: 3\n"
    assert (run / "config.yaml").stat().st_mode & 0o777 == 0o640
    check_elsewhere()


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is not installed")
@pytest.mark.parametrize("backupcopy", ["yes", "no"])
def test_vim_edits_a_file(
    run: Path, shared_mount: MountProcess, backupcopy: str, check_elsewhere: CheckElsewhere
) -> None:
    (run / "notes").write_text("first\n")
    shared_mount.wait_durable(run)

    options = f"set backupcopy={backupcopy} backup backupskip= swapfile fsync"
    run_tool(
        *("vim", "-es", "-u", "NONE", "--cmd", options, "-c", "normal osecond", "-c", "wq", "notes"), cwd=run
    )

    assert (run / "notes").read_text() == "first\nsecond\n"
    assert (run / "notes~").read_text() == "first\n"
    assert sorted(path.name for path in run.iterdir()) == ["notes", "notes~"]
    check_elsewhere()


def test_editor_that_writes_a_temporary_file_and_renames_it(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    """As vim and most others do: the old version becomes a backup, the new one is written, synced and renamed."""
    path = run / "notes"
    path.write_text("version 0\n")
    for number in range(1, 6):
        if number % 2:
            shared_mount.wait_durable(run)
        temporary = run / f".notes.{number}.tmp"
        with temporary.open("x") as file:
            file.write(f"version {number}\n")
            file.flush()
            os.fsync(file.fileno())
        backup = run / "notes~"
        path.rename(backup)
        temporary.rename(path)
        backup.unlink()
        assert path.read_text() == f"version {number}\n"

    assert [entry.name for entry in run.iterdir()] == ["notes"]
    check_elsewhere()


def test_truncate_cuts_and_extends(
    run: Path, shared_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    (run / "small").write_bytes(b"0123456789")
    (run / "big").write_bytes(b"\1" * (9 * MIB))
    shared_mount.wait_durable(run)

    run_tool("truncate", "-s", "4", "small", cwd=run)
    run_tool("truncate", "-s", "+3", "small", cwd=run)
    run_tool("truncate", "-s", "5M", "big", cwd=run)
    run_tool("truncate", "-s", "6M", "big", cwd=run)
    run_tool("truncate", "-s", "1M", "hole", cwd=run)

    assert (run / "small").read_bytes() == b"0123\0\0\0"
    assert (run / "big").read_bytes() == b"\1" * (5 * MIB) + b"\0" * MIB
    assert (run / "hole").read_bytes() == b"\0" * MIB
    check_elsewhere()


def test_sort_into_its_own_input(run: Path, check_elsewhere: CheckElsewhere) -> None:
    (run / "list").write_text("c\na\nb\n")

    run_tool("sort", "-o", "list", "list", cwd=run)

    assert (run / "list").read_text() == "a\nb\nc\n"
    check_elsewhere()


def test_split_and_cat_give_the_file_back(run: Path, check_elsewhere: CheckElsewhere) -> None:
    content = os.urandom(3 * MIB + 5)
    (run / "whole").write_bytes(content)

    run_shell("split -b 1M whole part-; cat part-* > again; cmp whole again", cwd=run)

    assert sorted(path.name for path in run.glob("part-*")) == ["part-aa", "part-ab", "part-ac", "part-ad"]
    check_elsewhere()


def test_sha256sum_c_accepts_what_was_written(run: Path, source: Path) -> None:
    run_tool("cp", "-r", source, run / "tree")
    run_shell("find tree -type f -exec sha256sum {} + > sums; sed 's#tree/##' sums > relative", cwd=run)

    assert "FAILED" not in run_shell("sha256sum -c sums", cwd=run)
    run_tool("sha256sum", "--quiet", "-c", run / "relative", cwd=source)


# --- attributes ----------------------------------------------------------------------------------------------


def test_touch_sets_times_to_the_nanosecond(run: Path, check_elsewhere: CheckElsewhere) -> None:
    run_shell("touch -d '2024-02-29 12:34:56.123456789' file; mkdir dir", cwd=run)
    run_shell("touch -d '1999-12-31 23:59:59.999999999' dir; ln -s x link; touch -hd @1.5 link", cwd=run)

    assert (run / "file").stat().st_mtime_ns == 1_709_210_096_123_456_789
    assert (run / "dir").stat().st_mtime_ns == 946_684_799_999_999_999
    assert (run / "link").lstat().st_mtime_ns == 1_500_000_000
    check_elsewhere()


def test_chmod_and_chown_change_what_stat_shows(run: Path, check_elsewhere: CheckElsewhere) -> None:
    run_shell("touch file; mkdir dir; ln -s file link", cwd=run)

    run_shell(
        "chmod 4751 file; chmod g+s,o+t dir; chown 12:34 file; chown -h 56:78 link; chgrp 90 dir", cwd=run
    )

    shown = run_tool("stat", "-c", "%a %u %g", "file", "dir", "link", cwd=run).splitlines()
    # chown takes the set-user-id bit of a file away.
    assert shown == ["751 12 34", "3755 0 90", "777 56 78"]
    check_elsewhere()


def test_chmod_r_and_chown_r_reach_a_whole_tree(
    run: Path, shared_mount: MountProcess, source: Path, check_elsewhere: CheckElsewhere
) -> None:
    run_tool("cp", "-r", source, run / "tree")
    shared_mount.wait_durable(run)

    run_shell("chmod -R u=rwX,go= tree; chown -R 77:88 tree", cwd=run)

    found = snapshot_tree(run / "tree")
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(77, 88)}
    assert {entry.mode & 0o777 for entry in found.values()} == {0o700, 0o600, 0o777}
    check_elsewhere()


# --- programs with demands -----------------------------------------------------------------------------------


def test_git_repository_in_a_run(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess, check_elsewhere: CheckElsewhere
) -> None:
    git = "git -c user.name=user-123 -c user.email=user-123@example.org -c safe.directory=*"
    run_shell(
        f"""
        mkdir repository; cd repository; {git} init -q -b main
        for i in $(seq 40); do echo $i > file-$i; done
        {git} add . ; {git} commit -qm first
        echo more >> file-1; {git} commit -qam second
        {git} mv file-2 moved; {git} commit -qm third
        {git} gc -q; {git} repack -adq
        test -z "$({git} status --porcelain)"
        {git} fsck --full --strict
        {git} clone -q . ../clone
        """,
        cwd=run,
    )
    check_elsewhere()

    elsewhere = place_in(shared_mount, run, second_mount)
    log = run_shell(f"{git} fsck --full; {git} log --format=%s", cwd=elsewhere / "repository")
    assert log.splitlines() == ["third", "second", "first"]


@pytest.mark.parametrize("journal_mode", ["delete", "truncate", "wal"])
def test_sqlite_database_in_a_run(run: Path, journal_mode: str, check_elsewhere: CheckElsewhere) -> None:
    database = sqlite3.connect(run / "results.sqlite", isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode={journal_mode}").fetchone() == (journal_mode,)
    database.execute("CREATE TABLE metrics (epoch INTEGER PRIMARY KEY, loss REAL, blob BLOB)")
    for epoch in range(5):
        database.execute("BEGIN")
        rows = ((epoch * 100 + i, 1 / (i + 1), os.urandom(500)) for i in range(100))
        database.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
    database.execute("DELETE FROM metrics WHERE epoch % 3 = 0")
    database.execute("VACUUM")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()

    again = sqlite3.connect(run / "results.sqlite")
    assert again.execute("SELECT count(*) FROM metrics").fetchone() == (333,)
    assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again.close()
    check_elsewhere()
