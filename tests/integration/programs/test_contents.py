"""Tools that change a file's content, or compare it: dd, truncate, fallocate, sort, split, cmp, sha256sum, flock."""

from __future__ import annotations

import os
from pathlib import Path

from cloudai_model.limits import MIB
from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster


def test_dd_writes_into_the_middle_and_past_the_end(run: Path, at_master: AtMaster) -> None:
    run_shell("printf 0123456789 > file; printf ab > two", cwd=run)

    run_tool("dd", "if=two", "of=file", "bs=1", "seek=3", "conv=notrunc", "status=none", cwd=run)
    run_tool("dd", "if=two", "of=file", "bs=1", "seek=12", "conv=notrunc,fsync", "status=none", cwd=run)
    run_tool("dd", "if=/dev/zero", "of=big", "bs=1M", "count=9", "status=none", cwd=run)
    run_tool("dd", "if=two", "of=big", "bs=1", f"seek={5 * MIB}", "conv=notrunc", "status=none", cwd=run)

    elsewhere = at_master()
    assert (elsewhere / "file").read_bytes() == b"012ab56789\0\0ab"
    assert (elsewhere / "big").read_bytes() == b"\0" * 5 * MIB + b"ab" + b"\0" * (4 * MIB - 2)


def test_dd_changes_a_published_file_in_place(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    content = os.urandom(9 * MIB)
    (run / "big").write_bytes(content)
    shared_mount.wait_durable(run)

    run_shell(f"printf changed | dd of=big bs=1 seek={4 * MIB - 3} conv=notrunc status=none", cwd=run)

    changed = content[: 4 * MIB - 3] + b"changed" + content[4 * MIB + 4 :]
    assert (at_master() / "big").read_bytes() == changed


def test_truncate_cuts_and_extends(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    (run / "small").write_bytes(b"0123456789")
    (run / "big").write_bytes(b"\1" * (9 * MIB))
    shared_mount.wait_durable(run)

    run_tool("truncate", "-s", "4", "small", cwd=run)
    run_tool("truncate", "-s", "+3", "small", cwd=run)
    run_tool("truncate", "-s", "5M", "big", cwd=run)
    run_tool("truncate", "-s", "6M", "big", cwd=run)
    run_tool("truncate", "-s", "1M", "hole", cwd=run)

    elsewhere = at_master()
    assert (elsewhere / "small").read_bytes() == b"0123\0\0\0"
    assert (elsewhere / "big").read_bytes() == b"\1" * (5 * MIB) + b"\0" * MIB
    assert (elsewhere / "hole").read_bytes() == b"\0" * MIB


def test_fallocate_says_what_is_not_offered_and_writes_zeros_if_it_may(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    """P8. `fallocate()` is EOPNOTSUPP, and `posix_fallocate()` writes zeros in its place."""
    run_shell("echo content > file; cp file longer", cwd=run)
    shared_mount.wait_durable(run)

    said = run_shell("fallocate -l 5M file 2>&1", cwd=run, status=1)
    run_tool("fallocate", "--posix", "-l", "5M", "longer", cwd=run)

    assert "Operation not supported" in said
    elsewhere = at_master()
    assert (elsewhere / "file").read_bytes() == b"content\n"
    assert (elsewhere / "longer").read_bytes() == b"content\n" + bytes(5 * MIB - 8)


def test_flock_lets_one_program_in_at_a_time(run: Path, at_master: AtMaster) -> None:
    """Four that read a number and write the next one, a hundred times each in all."""
    turn = "for j in $(seq 25); do flock lock sh -c 'read n < number; echo $((n + 1)) > number'; done"
    run_shell(f"echo 0 > number; for i in 1 2 3 4; do ({turn}) & done; wait", cwd=run)
    run_shell("flock lock flock --nonblock lock true", cwd=run, status=1)

    assert (at_master() / "number").read_text() == "100\n"


def test_cmp_finds_the_byte_that_differs(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    content = os.urandom(6 * MIB)
    (run / "one").write_bytes(content)
    run_tool("cp", "one", "other", cwd=run)
    shared_mount.wait_durable(run)
    run_tool("cmp", "one", "other", cwd=run)

    with (run / "other").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes([content[5 * MIB] ^ 1]))

    expected = f"one other differ: byte {5 * MIB + 1}, line "
    assert run_tool("cmp", "one", "other", cwd=run, status=1).startswith(expected)
    assert run_tool("cmp", "one", "other", cwd=at_master(), status=1).startswith(expected)


def test_sort_into_its_own_input(run: Path, at_master: AtMaster) -> None:
    lines = [f"{number * 7919 % 100_003:06}\n" for number in range(100_000)]
    (run / "list").write_text("".join(lines))

    # So little memory that it keeps parts of it in files, here in the run as well.
    run_tool("sort", "-S", "200K", "-T", ".", "-o", "list", "list", cwd=run)

    assert (at_master() / "list").read_text() == "".join(sorted(lines))


def test_split_and_cat_give_the_file_back(run: Path, at_master: AtMaster) -> None:
    content = os.urandom(3 * MIB + 5)
    (run / "whole").write_bytes(content)

    run_shell("split -b 1M whole part-; cat part-* > again; cmp whole again", cwd=run)

    elsewhere = at_master()
    assert sorted(path.name for path in elsewhere.glob("part-*")) == [
        "part-aa",
        "part-ab",
        "part-ac",
        "part-ad",
    ]
    assert (elsewhere / "again").read_bytes() == content


def test_sha256sum_c_accepts_what_was_written(run: Path, source: Path, at_master: AtMaster) -> None:
    run_tool("cp", "-r", source, run / "tree")
    run_shell("find tree -type f -exec sha256sum {} + > sums; sed 's#tree/##' sums > relative", cwd=run)

    run_tool("sha256sum", "--quiet", "-c", run / "relative", cwd=source)
    assert run_tool("sha256sum", "--quiet", "-c", "sums", cwd=at_master()) == ""
