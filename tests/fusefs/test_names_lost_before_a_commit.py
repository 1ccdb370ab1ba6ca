"""A file that loses its last name by what others do, before the commit of what is pending of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import Node, new_node_id
from cloudai_fusefs.recovery import ContentInDoubt
from cloudai_fusefs.staged_file import StagedFile
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, open_file_system
from support.lost_power import lose_power
from support.storage_requests import USER, published
from support.two_mounts import open_both


async def append_and_replace(one: FileSystemHarness, other: FileSystemHarness) -> int:
    """The log is appended to here, and another put in its place elsewhere before that is committed; the handle."""
    await one.write_file(b"log", b"line")
    await one.make_all_durable()
    await trio.sleep(1)
    await other.write_file(b"aside", b"new")
    await other.make_all_durable()
    handle = await one.open(b"log")
    await one.append(handle, b"line")
    await other.rename(b"aside", b"log")
    return handle


async def test_file_that_loses_its_name_while_another_is_read_for_the_same_commit_is_not_refused(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"removed", b"")
        await one.make_all_durable()
        await trio.sleep(1)
        read = StagedFile.read

        async def read_slowly(staged: StagedFile, offset_bytes: int, length_bytes: int) -> bytes | memoryview:
            await trio.sleep(1)
            return await read(staged, offset_bytes, length_bytes)

        monkeypatch.setattr(StagedFile, "read", read_slowly)
        await one.set_attributes(b"removed", mode=0o600)
        await one.write_file(b"written", b"bytes")
        await trio.sleep(0.5)  # it is being read
        await other.unlink(b"removed")

        await one.make_all_durable()

        assert await published(client, run) == {b"written": b"bytes"}


async def test_file_that_was_replaced_elsewhere_while_it_was_written_has_no_name_in_the_next_mount(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        handle = await append_and_replace(one, other)
        node = one.files.node_of(handle)
        await trio.sleep(0.1)
        assert not node.is_attached
        one.staging.record(node)
        one.copy_state(tmp_path / "next")
        one.close_handle(handle)

    async with open_file_system(client, run, tmp_path / "next") as next_mount:
        await next_mount.sync.wait_recovered()
        await next_mount.make_all_durable()

        assert await published(client, run) == {b"log": b"new"}


async def test_file_that_was_replaced_elsewhere_takes_no_name_back_if_its_mount_dies_at_once(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        handle = await append_and_replace(one, other)
        while one.shown()[b"log"].size_bytes != len(b"new"):
            await trio.sleep(0.01)
        one.copy_state(tmp_path / "next")
        one.close_handle(handle)

    async with open_file_system(client, run, tmp_path / "next") as next_mount:
        await next_mount.make_all_durable()

        assert await published(client, run) == {b"log": b"new"}


async def test_file_in_doubt_that_was_replaced_elsewhere_is_waited_for_by_nobody(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"log", b"line")
        await one.make_all_durable()
        await trio.sleep(1)
        handle = await one.open(b"log")
        await one.append(handle, b"line")
        one.copy_state(tmp_path / "next")
        one.close_handle(handle)
        lose_power(tmp_path / "next/state")

        async with open_file_system(client, run, tmp_path / "next") as next_mount:
            with pytest.raises(ContentInDoubt):
                await next_mount.make_all_durable()
            await one.make_all_durable()
            await other.write_file(b"aside", b"new")
            await other.make_all_durable()
            await other.rename(b"aside", b"log")
            await trio.sleep(1)

            await next_mount.make_all_durable()
            assert next_mount.shown().keys() == {b"log"}


async def test_file_whose_new_name_elsewhere_is_not_understood_yet_keeps_what_is_staged_of_it(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(client, run, tmp_path) as (one, other):
        handle = await append_and_replace(one, other)
        log = one.files.node_of(handle)
        news = [
            names.Change(revision=10, edge_set=edge_of(log, new_node_id(), b"log.1", revision=10)),
            names.Change(revision=11, edge_set=edge_of(log, run.root_node_id, b"log", revision=11)),
        ]
        news[1].edge_set.node.node_id = new_node_id()
        one.tree.apply_changes(names.WatchResponse(changes=news, revision=one.tree.revision))
        one.staging.note_news(one.tree)
        assert (log.is_attached, one.tree.is_in_doubt) == (False, True)
        assert log in one.tree.pending

        one.staging.note_listing(one.tree)  # which has not found it either
        assert log not in one.tree.pending
        one.close_handle(handle)


def edge_of(node: Node, parent_id: int, name: bytes, *, revision: int) -> types.Edge:
    message = types.Node(node_id=node.node_id, kind=node.kind, revision=revision, generation=1, link_count=1)
    return types.Edge(parent_node_id=parent_id, name=name, node=message)
