"""What has neither a name, nor a reference of the kernel, nor an open handle is in no table any more, whoever took the
last of them: the kernel gives back only what it was told of.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import Node
from cloudai_fusefs.run_uploader import IDLE_SECONDS
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import OWNER, FileSystemHarness, open_file_system
from support.storage_requests import USER, commit_one, file_commit


def held_by_nothing(mount: FileSystemHarness) -> list[int]:
    """The ids of nodes in the tables to which nothing refers."""
    inodes = [inode for inode in mount.managed.inodes.values() if isinstance(inode, Node)]
    return [
        node.node_id
        for node in {*inodes, *mount.tree.nodes.values()}
        if not (node.is_attached or node.removal or node.lookup_count or node.open_count)
    ]


async def test_what_was_replaced_before_the_mount_died_is_let_go_of_by_the_next(
    master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    await commit_one(client, run, file_commit(b"model", b"old"))
    async with open_file_system(client, run, tmp_path / "first") as mount:
        await mount.sync.load_run(mount.tree)
        await mount.write_file(b"aside", b"new")
        await mount.rename(b"aside", b"model")
        mount.copy_state(tmp_path / "next")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.sync.wait_recovered()
        await mount.make_all_durable()

        assert list(mount.shown()) == [b"model"]
        assert held_by_nothing(mount) == []


async def test_what_a_rename_replaces_unseen_by_the_kernel_is_let_go_of(
    master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    await commit_one(client, run, file_commit(b"model", b"old"))
    async with open_file_system(client, run, tmp_path / "mount") as mount:
        await mount.sync.load_run(mount.tree)
        await mount.write_file(b"aside", b"new")
        root = mount.tree.root

        # News of it come between the kernel's look at the name and this.
        await mount.rearrangements.rename(root, b"aside", root, b"model", no_replace=False)

        assert held_by_nothing(mount) == []


async def test_directory_that_is_removed_unseen_by_the_kernel_is_let_go_of(
    master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(master.client(USER), run, tmp_path / "mount") as mount:
        await mount.sync.load_run(mount.tree)
        await mount.mkdir(b"d")
        await mount.make_all_durable()

        await mount.rearrangements.rmdir(mount.tree.root, b"d")

        assert held_by_nothing(mount) == []


async def test_file_that_cannot_be_written_down_is_let_go_of(
    master: FakeMaster, run: types.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(node: Node) -> None:
        raise OSError(28, "the state disk is full")

    async with open_file_system(master.client(USER), run, tmp_path / "mount") as mount:
        await mount.sync.load_run(mount.tree)
        monkeypatch.setattr(mount.staging, "note_made", refuse)

        with pytest.raises(OSError, match="full"):
            await mount.namespace.make_file(mount.tree.root, b"file", 0o644, OWNER)

        assert held_by_nothing(mount) == []


async def test_run_in_which_nothing_has_been_pending_for_a_while_has_no_task(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(master.client(USER), run, tmp_path / "mount") as mount:
        for name in (b"first", b"second"):
            await mount.write_file(name, b"content")
            await mount.make_all_durable()
            assert mount.uploader.trees == (mount.tree,)

            await trio.sleep(2 * IDLE_SECONDS)

            assert not mount.uploader.trees


async def test_run_whose_changes_wait_for_the_master_keeps_its_task(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(master.client(USER), run, tmp_path / "mount") as mount:
        await mount.write_file(b"model", b"content")
        master.go_away()
        await trio.sleep(10 * IDLE_SECONDS)
        assert mount.uploader.trees == (mount.tree,)

        master.come_back()
        await mount.make_all_durable()

        assert mount.tree.pending == {}


async def test_removed_run_leaves_the_memory(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(master.client(USER), run, tmp_path / "mount") as mount:
        user = mount.managed.root.users[USER]
        task = user.tasks[run.task]
        await mount.write_file(b"model", b"content")
        await mount.make_all_durable()
        await mount.unlink(b"model")
        await mount.make_all_durable()
        tree = weakref.ref(mount.tree)
        await mount.managed_changes.remove_directory(task, run.name.encode())

        await trio.sleep(2 * IDLE_SECONDS)
        gc.collect()

        assert tree() is None
