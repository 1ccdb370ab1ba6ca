"""Editors save in a run: by writing beside it and renaming, or in place, with backups and swap files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from support.mount_process import MountProcess
from support.terminal import TerminalProgram
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster

# Nobody's own settings, and no traces in anybody's home.
VIM = ("vim.tiny", "-N", "-u", "NONE", "-i", "NONE")
ESCAPE = b"\x1b"
SAVE = b"\x0f"  # Ctrl-O
LEAVE = b"\x18"  # Ctrl-X


def test_sed_in_place_replaces_the_file(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    run_shell("printf 'lr: 0.1\\nepochs: 3\\n' > config.yaml; chmod 640 config.yaml", cwd=run)
    shared_mount.wait_durable(run)

    run_tool("sed", "-i", "s/0.1/0.2/", "config.yaml", cwd=run)
    run_tool("sed", "-i.bak", "s/0.2/0.3/", "config.yaml", cwd=run)

    elsewhere = at_master()
    assert (elsewhere / "config.yaml").read_text() == "lr: 0.3\nepochs: 3\n"
    assert (elsewhere / "config.yaml.bak").read_text() == "lr: 0.2\nepochs: 3\n"
    assert (elsewhere / "config.yaml").stat().st_mode & 0o777 == 0o640
    assert len(list(elsewhere.iterdir())) == 2


@pytest.mark.parametrize("backupcopy", ["yes", "no"])
def test_vim_saves_a_file(
    run: Path, shared_mount: MountProcess, backupcopy: str, at_master: AtMaster
) -> None:
    """`yes` writes in place, behind a copy; `no` renames the old file away and writes a new one."""
    (run / "notes").write_text("first\n")
    (run / "notes").chmod(0o640)
    shared_mount.wait_durable(run)

    options = f"set backupcopy={backupcopy} backup backupskip= swapfile fsync"
    with TerminalProgram(*VIM, "--cmd", options, run / "notes") as vim:
        vim.wait_for_text("first")
        vim.press(b"osecond" + ESCAPE + b":w\r")
        vim.wait_for_text("written")
        vim.press(b"othird" + ESCAPE + b":wq\r")
        assert vim.wait_end() == 0

    elsewhere = at_master()
    assert (elsewhere / "notes").read_text() == "first\nsecond\nthird\n"
    assert (elsewhere / "notes").stat().st_mode & 0o777 == 0o640
    assert (elsewhere / "notes~").read_text() == "first\nsecond\n"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["notes", "notes~"]


def test_vim_that_was_killed_leaves_a_swap_file_that_gives_the_text_back(
    run: Path, tmp_path: Path, at_master: AtMaster
) -> None:
    (run / "notes").write_text("first\n")
    with TerminalProgram(*VIM, run / "notes") as vim:
        vim.wait_for_text("first")
        vim.press(b"onever saved" + ESCAPE + b":preserve\r")
        vim.wait_for_text("preserved")
        vim.kill()

    shutil.copytree(at_master(), tmp_path / "copy")

    run_tool(*VIM, "-es", "-r", "notes", "-c", "write! recovered", "-c", "quit!", cwd=tmp_path / "copy")
    assert (tmp_path / "copy" / "recovered").read_text() == "first\nnever saved\n"
    assert (tmp_path / "copy" / "notes").read_text() == "first\n"


def test_nano_saves_a_file(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    """It writes in place, with a backup before and a lock file beside it meanwhile."""
    (run / "notes").write_text("first\n")
    shared_mount.wait_durable(run)

    with TerminalProgram("nano", "--ignorercfiles", "--backup", "--locking", run / "notes") as nano:
        nano.wait_for_text("first")
        assert (run / ".notes.swp").exists()
        nano.press(b"zero\r" + SAVE)
        nano.wait_for_text("File Name to Write")
        nano.press(b"\r")
        nano.wait_for_text("Wrote 2 lines")
        nano.press(LEAVE)
        assert nano.wait_end() == 0

    elsewhere = at_master()
    assert (elsewhere / "notes").read_text() == "zero\nfirst\n"
    assert (elsewhere / "notes~").read_text() == "first\n"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["notes", "notes~"]


def test_editor_that_writes_a_temporary_file_and_renames_it(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    """As most others do: the old version becomes a backup, the new one is written, synced and renamed."""
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

    elsewhere = at_master()
    assert [entry.name for entry in elsewhere.iterdir()] == ["notes"]
    assert (elsewhere / "notes").read_text() == "version 5\n"
