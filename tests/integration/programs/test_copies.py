"""Trees copied into a run and out of it: cp, rsync, tar, zip. What arrives is the tree, with its times and modes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from cloudai_model.limits import MIB
from support.mount_process import MountProcess, wait_until
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster, Entry, contents, differences, snapshot_tree

# -@-1: times are compared, and therefore set, to the nanosecond and not to the second.
RSYNC = ("rsync", "-a", "-@-1")


def test_cp_r_copies_in_and_out(run: Path, source: Path, tmp_path: Path, at_master: AtMaster) -> None:
    run_tool("cp", "-r", source, run / "copy")
    run_tool("cp", "-r", run / "copy", tmp_path / "back")

    assert contents(tmp_path / "back") == contents(source)
    assert contents(at_master() / "copy") == contents(source)


def test_cp_p_keeps_modes_owners_and_times(
    run: Path, source: Path, tmp_path: Path, at_master: AtMaster
) -> None:
    os.chown(source / "config.yaml", 1234, 2345)
    run_tool("cp", "-rp", source, run / "copy")

    assert differences(snapshot_tree(at_master() / "copy"), snapshot_tree(source)) == {}


def test_cp_a_within_a_run_copies_a_tree(run: Path, source: Path, at_master: AtMaster) -> None:
    run_tool("cp", "-a", source, run / "one")
    run_tool("cp", "-a", run / "one", run / "two")

    elsewhere = at_master()
    assert differences(snapshot_tree(elsewhere / "one"), snapshot_tree(source)) == {}
    assert differences(snapshot_tree(elsewhere / "two"), snapshot_tree(source)) == {}


def test_rsync_in_and_out_transfers_once(
    run: Path, source: Path, tmp_path: Path, at_master: AtMaster
) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    run_tool(*RSYNC, f"{run}/copy/", tmp_path / "back")

    assert run_tool(*RSYNC, "-in", f"{source}/", run / "copy") == ""
    assert run_tool(*RSYNC, "-inc", f"{run}/copy/", tmp_path / "back") == ""
    assert differences(snapshot_tree(tmp_path / "back"), snapshot_tree(source)) == {}
    assert differences(snapshot_tree(at_master() / "copy"), snapshot_tree(source)) == {}


def test_rsync_updates_and_deletes(run: Path, source: Path, at_master: AtMaster) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    (source / "metrics.csv").chmod(0o644)
    with (source / "metrics.csv").open("a") as file:
        file.write("2,0.4\n")
    shutil.rmtree(source / "checkpoints" / "old")
    (source / "last").unlink()
    (source / "last").mkdir()

    run_tool(*RSYNC, "--delete", f"{source}/", run / "copy")

    assert run_tool(*RSYNC, "-in", "--delete", f"{source}/", run / "copy") == ""
    assert differences(snapshot_tree(at_master() / "copy"), snapshot_tree(source)) == {}


def test_rsync_inplace_changes_what_is_published(
    run: Path, shared_mount: MountProcess, source: Path, at_master: AtMaster
) -> None:
    run_tool(*RSYNC, f"{source}/", run / "copy")
    shared_mount.wait_durable(run)
    with (source / "checkpoints" / "epoch-1.bin").open("r+b") as file:
        file.seek(4 * MIB - 3)
        file.write(b"changed")
        file.seek(0, os.SEEK_END)
        file.write(b"grown")
    os.truncate(source / "checkpoints" / "old" / "epoch-0.bin", 70_000)

    run_tool(*RSYNC, "--inplace", "--no-whole-file", f"{source}/", run / "copy")

    assert run_tool(*RSYNC, "-inc", f"{source}/", run / "copy") == ""
    assert differences(snapshot_tree(at_master() / "copy"), snapshot_tree(source)) == {}


@pytest.mark.parametrize("option", ["--append", "--append-verify"])
def test_rsync_appends_to_what_is_published(
    run: Path, shared_mount: MountProcess, tmp_path: Path, option: str, at_master: AtMaster
) -> None:
    content = random.Random(9).randbytes(9 * MIB + 5)
    (tmp_path / "logs").mkdir()
    for end in (1000, 4 * MIB + 1, 9 * MIB + 5):
        (tmp_path / "logs" / "train.log").write_bytes(content[:end])
        (tmp_path / "logs" / "metrics.csv").write_bytes(content[: end // 1000])
        run_tool("rsync", "-a", option, f"{tmp_path}/logs/", run / "copy")
        shared_mount.wait_durable(run)

    elsewhere = at_master() / "copy"

    assert (elsewhere / "train.log").read_bytes() == content
    assert (elsewhere / "metrics.csv").read_bytes() == content[: (9 * MIB + 5) // 1000]


def test_rsync_that_was_killed_goes_on_with_what_has_arrived(
    run: Path, shared_mount: MountProcess, tmp_path: Path, at_master: AtMaster
) -> None:
    """`--partial` keeps what the killed one had, under the file's own name."""
    content = random.Random(10).randbytes(24 * MIB)
    (tmp_path / "model.bin").write_bytes(content)
    # A limit of its speed, so that it is in the middle for long; the second one goes as fast as it can.
    command = [
        "rsync",
        "-a",
        "--partial",
        "--inplace",
        "--bwlimit=4m",
        str(tmp_path / "model.bin"),
        f"{run}/",
    ]
    with subprocess.Popen(command) as process:
        wait_until(lambda: _size_of(run / "model.bin") >= 4 * MIB, "a part of the copy")
        process.kill()
    assert _size_of(run / "model.bin") < len(content)
    shared_mount.wait_durable(run)

    run_tool("rsync", "-a", "--inplace", "--append", tmp_path / "model.bin", f"{run}/")

    assert (at_master() / "model.bin").read_bytes() == content


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_cp_keeps_the_contents_of_files_with_holes(run: Path, tmp_path: Path, at_master: AtMaster) -> None:
    """P5. A file takes as many blocks as its size, holes among them, whatever is stored; `SEEK_HOLE` finds its end."""
    holes = tmp_path / "holes"
    holes.mkdir()
    for name, places, size_bytes in (
        ("before", (9 * MIB,), 9 * MIB + 4),
        ("between", (0, 5 * MIB - 2, 11 * MIB), 11 * MIB + 4),
        ("behind", (100,), 6 * MIB),
        ("all", (), 4 * MIB + 1),
    ):
        with (holes / name).open("wb") as file:
            for place in places:
                file.seek(place)
                file.write(b"data")
            file.truncate(size_bytes)

    run_tool("cp", "-a", holes, run / "as-they-are")
    run_tool("cp", "-a", "--sparse=always", holes, run / "found")
    run_tool("cp", "-a", "--sparse=always", run / "as-they-are", run / "again")
    run_tool(*RSYNC, "--sparse", f"{holes}/", run / "sent")
    run_tool("cp", "-a", "--sparse=always", run / "found", tmp_path / "back")

    elsewhere = at_master()
    for copy in (
        *(elsewhere / name for name in ("as-they-are", "found", "again", "sent")),
        tmp_path / "back",
    ):
        assert differences(snapshot_tree(copy), snapshot_tree(holes)) == {}
    assert (elsewhere / "found" / "all").stat().st_blocks * 512 >= 4 * MIB + 1
    assert (tmp_path / "back" / "all").stat().st_blocks == 0


def test_tar_extracts_and_creates_the_same_tree(
    run: Path, source: Path, tmp_path: Path, at_master: AtMaster
) -> None:
    run_tool("tar", "--format=posix", "-C", source, "-cf", tmp_path / "in.tar", ".")
    (run / "tree").mkdir()

    run_tool("tar", "-C", run / "tree", "-xpf", tmp_path / "in.tar")
    run_tool("tar", "--format=posix", "-C", run / "tree", "-czf", run / "out.tar.gz", ".")

    assert differences(snapshot_tree(run / "tree"), snapshot_tree(source)) == {}
    elsewhere = at_master()
    assert differences(snapshot_tree(elsewhere / "tree"), snapshot_tree(source)) == {}
    assert run_tool("tar", "-C", source, "-df", elsewhere / "out.tar.gz") == ""


def test_tar_appends_to_a_published_archive(
    run: Path, shared_mount: MountProcess, source: Path, at_master: AtMaster
) -> None:
    """It looks for the archive's end, and writes over that."""
    run_tool("tar", "-C", source, "-cf", run / "all.tar", "checkpoints")
    shared_mount.wait_durable(run)

    run_tool("tar", "-C", source, "-rf", run / "all.tar", "metrics.csv", "config.yaml")
    run_tool("tar", "-C", source, "-uf", run / "all.tar", "last")

    elsewhere = at_master()
    assert run_tool("tar", "-C", source, "-df", elsewhere / "all.tar") == ""
    with tarfile.open(elsewhere / "all.tar") as archive:
        assert archive.getnames()[-3:] == ["metrics.csv", "config.yaml", "last"]


def test_zip_adds_to_a_published_archive_and_takes_from_it(
    run: Path, shared_mount: MountProcess, source: Path, at_master: AtMaster
) -> None:
    """`zip` writes a second archive and renames it; with -g it writes behind the first one's entries."""
    run_tool("zip", "-q", "-r", run / "all.zip", "checkpoints", "config.yaml", cwd=source)
    shared_mount.wait_durable(run)

    run_tool("zip", "-q", "-g", run / "all.zip", "metrics.csv", cwd=source)
    run_tool("zip", "-q", run / "all.zip", "nothing", cwd=source)
    run_tool("zip", "-q", "-d", run / "all.zip", "config.yaml", cwd=source)

    with zipfile.ZipFile(at_master() / "all.zip") as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    expected = ("checkpoints/epoch-1.bin", "checkpoints/old/epoch-0.bin", "metrics.csv", "nothing")
    assert files == {name: (source / name).read_bytes() for name in expected}


def test_large_source_tree_is_extracted_and_brought_up_to_date(
    run: Path, shared_mount: MountProcess, large_source: Path, tmp_path: Path, at_master: AtMaster
) -> None:
    """By tar, and then by rsync to another version: files that changed, went and came, and the rest left alone."""
    newer = tmp_path / "newer"
    changed = _make_newer_version(large_source, newer)
    expected = snapshot_tree(newer)
    assert len(expected) > 1500
    run_shell(f"mkdir copy; tar --format=posix -C '{large_source}' -c . | tar -C copy -xp", cwd=run)
    assert run_tool(*RSYNC, "-in", "--delete", f"{large_source}/", run / "copy") == ""
    shared_mount.wait_durable(run)

    said = run_tool(*RSYNC, "-i", "--delete", "--delay-updates", f"{newer}/", run / "copy").splitlines()

    assert run_tool(*RSYNC, "-in", "--delete", f"{newer}/", run / "copy") == ""
    sent = {line.split(" ", 1)[1] for line in said if line.startswith(">f")}
    assert sent == changed
    found = snapshot_tree(at_master() / "copy")
    assert differences(without_links(found), without_links(expected)) == {}


def _make_newer_version(tree: Path, newer: Path) -> set[str]:
    """A copy with some changes, whose other files are links. The names, below it, of the files that differ."""
    run_tool("cp", "-al", tree, newer)
    shutil.rmtree(newer / "scipy" / "stats")
    (newer / "numpy" / "lib").rename(newer / "numpy" / "library")
    edited = sorted(newer.glob("numpy/*/__init__.py"))
    for path in edited:
        text = path.read_text()
        path.unlink()  # it is the same file as in the older version
        path.write_text(f"{text}# newer\n")
    moved = [path for path in (newer / "numpy" / "library").rglob("*") if path.is_file()]
    return {path.relative_to(newer).as_posix() for path in (*edited, *moved)}


def without_links(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Link counts left out, which a copy of one tree alone cannot have."""
    return {path: entry._replace(link_count=0) for path, entry in tree.items()}
