"""Names in a run that move, go, and are linked: mv, rm, rmdir, ln, mktemp."""

from __future__ import annotations

import os
from pathlib import Path

from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster, differences, place_in, snapshot_tree


def test_mv_renames_replaces_and_moves_into_directories(run: Path, at_master: AtMaster) -> None:
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

    elsewhere = at_master()
    assert sorted(run_tool("find", elsewhere, "-mindepth", "1", "-printf", "%y %P\n").splitlines()) == [
        "d sub",
        "d there",
        "d there/here",
        "f sub/c",
        "f there/b",
    ]
    assert (elsewhere / "there" / "b").read_text() == "a\n"


def test_mv_of_what_is_published_renames_replaces_and_moves(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    run_shell("mkdir -p here/sub there; echo a > a; echo b > b; echo c > here/sub/c", cwd=run)
    shared_mount.wait_durable(run)

    run_shell("mv a renamed; mv renamed b; mv b there; mv here there; mv there/here/sub .", cwd=run)

    elsewhere = at_master()
    assert sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*")) == [
        "sub",
        "sub/c",
        "there",
        "there/b",
        "there/here",
    ]
    assert (elsewhere / "there" / "b").read_text() == "a\n"


def test_mv_between_runs_copies(
    run: Path, shared_mount: MountProcess, second_mount: MountProcess, source: Path, at_master: AtMaster
) -> None:
    run_tool("cp", "-a", source, run / "tree")
    other_run = shared_mount.make_run("2020-01-01_00-00-00", task=f"other-{run.name}")

    run_tool("mv", run / "tree", other_run / "tree")

    shared_mount.wait_durable(other_run)
    elsewhere = place_in(shared_mount, other_run, second_mount)
    assert list(at_master().iterdir()) == []
    assert differences(snapshot_tree(elsewhere / "tree"), snapshot_tree(source)) == {}


def test_rm_r_removes_a_tree(run: Path, source: Path, at_master: AtMaster) -> None:
    run_tool("cp", "-a", source, run / "fresh")
    run_tool("rm", "-r", run / "fresh")

    assert list(at_master().iterdir()) == []


def test_rm_rf_removes_a_published_tree_of_many_files(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    run_shell("mkdir many; cd many; for i in $(seq 300); do echo $i > file-$i; done", cwd=run)
    shared_mount.wait_durable(run)

    run_tool("rm", "-rf", run / "many")

    assert list(at_master().iterdir()) == []


def test_rmdir_refuses_what_is_not_an_empty_directory(run: Path, at_master: AtMaster) -> None:
    run_shell("mkdir full empty; touch full/file file", cwd=run)

    run_shell("rmdir full 2> full/said || grep -q 'not empty' full/said", cwd=run)
    run_tool("rmdir", run / "file", status=1)
    run_tool("rmdir", run / "missing", status=1)
    run_tool("rmdir", run / "empty")

    assert sorted(path.name for path in at_master().iterdir()) == ["file", "full"]


def test_ln_makes_symlinks_and_hard_links(run: Path, at_master: AtMaster) -> None:
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
    elsewhere = at_master()
    assert (elsewhere / "hard").stat().st_nlink == 1
    assert (elsewhere / "soft").read_text() == "1\n2\n"


def test_mktemp_makes_names_that_nobody_has(run: Path, at_master: AtMaster) -> None:
    made = run_shell(
        "for i in $(seq 20); do mktemp -p . part-XXXXXX; mktemp -d -p . dir-XXXXXX; done; mktemp -u -p .",
        cwd=run,
    ).splitlines()

    elsewhere = at_master()
    assert sorted(f"./{path.name}" for path in elsewhere.iterdir()) == sorted(made[:-1])
    assert {path.stat().st_mode for path in elsewhere.glob("part-*")} == {0o100600}
    assert {path.stat().st_mode for path in elsewhere.glob("dir-*")} == {0o040700}
