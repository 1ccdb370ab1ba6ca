"""ls, find, du, df: what they say of a run is what they say of a local tree."""

from __future__ import annotations

from pathlib import Path

from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster


def test_ls_and_find_show_what_is_there(run: Path, at_master: AtMaster) -> None:
    run_shell("mkdir -p a/b; echo 1 > a/one; echo 12 > a/b/two; ln -s one a/link", cwd=run)

    for place in (run, at_master()):
        assert run_tool("ls", "-A", place / "a") == "b\nlink\none\n"
        assert "link -> one" in run_tool("ls", "-l", place / "a")
        found = run_tool(
            "find", place / "a", "-type", "f", "-printf", "%y %P %s\n", "-o", "-printf", "%y %P\n"
        )
        assert sorted(found.splitlines()) == ["d ", "d b", "f b/two 3", "f one 2", "l link"]


def test_find_newer_compares_times(run: Path, at_master: AtMaster) -> None:
    run_shell("touch -d 2026-01-01 old; touch -d 2026-01-02 mark; touch -d 2026-01-03 new", cwd=run)

    for place in (run, at_master()):
        assert run_tool("find", ".", "-type", "f", "-newer", "mark", cwd=place) == "./new\n"


def test_du_adds_up_sizes(run: Path, at_master: AtMaster) -> None:
    (run / "a").mkdir()
    (run / "a" / "one").write_bytes(b"x" * 8192)
    (run / "a" / "two").write_bytes(b"y" * 4096)

    for place in (run, at_master()):
        said = run_tool("du", "-sb", "--apparent-size", "a/one", "a/two", cwd=place)
        assert said == "8192\ta/one\n4096\ta/two\n"
        assert run_tool("du", "-k", "a/one", cwd=place) == "8\ta/one\n"


def test_df_shows_the_mount(run: Path, shared_mount: MountProcess) -> None:
    lines = run_tool("df", "--output=source,fstype,target", run).splitlines()

    assert lines[1].split() == [shared_mount.source, "fuse.cloudai", str(shared_mount.mount_point)]


def test_find_and_du_say_the_same_of_a_tree_here_and_elsewhere(
    run: Path, small_source: Path, at_master: AtMaster
) -> None:
    run_tool("cp", "-a", small_source, run / "copy")

    elsewhere = at_master() / "copy"

    for condition in ("-name *.py", "-type d", "-empty", "-size +20k", "-perm -u+w -newermt 2000-01-01"):
        # A directory's size is the filesystem's own business.
        shown = ("-printf", "%y %m %T@ %P\\n", "-type", "f", "-printf", "%s %P\\n")
        command = ("find", ".", *condition.split(), *shown)
        expected = sorted(run_tool(*command, cwd=small_source).splitlines())
        assert sorted(run_tool(*command, cwd=elsewhere).splitlines()) == expected
    files = [path.stat() for path in elsewhere.rglob("*") if path.is_file()]
    apparent = run_tool("du", "-s", "--apparent-size", "--block-size=1", elsewhere)
    taken = run_tool("du", "-s", "--block-size=1", elsewhere)
    assert int(taken.split()[0]) >= int(apparent.split()[0]) >= sum(file.st_size for file in files)


def test_find_removes_what_it_finds(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    run_shell(
        "mkdir -p a/b c; for i in $(seq 50); do echo $i > a/b/$i.tmp; done; touch a/kept c/x.tmp", cwd=run
    )
    shared_mount.wait_durable(run)

    run_tool("find", ".", "-name", "*.tmp", "-delete", cwd=run)
    run_shell("find . -mindepth 1 -type d -empty -print0 | xargs -0 rmdir", cwd=run)

    elsewhere = at_master()
    assert sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*")) == ["a", "a/kept"]
