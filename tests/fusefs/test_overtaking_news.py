"""News by the watch of what this mount itself has asked for, before the master's answer to it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER

ANSWER_SECONDS = 0.1

Act = Callable[[FileSystemHarness], Awaitable[None]]


async def remove(file_system: FileSystemHarness) -> None:
    await file_system.unlink(b"file")


async def replace(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"other", b"file")


@pytest.mark.parametrize("act", [remove, replace])
async def test_change_time_of_an_open_file_that_loses_its_name_moves(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster, act: Act
) -> None:
    for name in (b"file", b"other"):
        await file_system.write_file(name, b"content")
    await file_system.make_all_durable()
    handle = await file_system.open(b"file", os.O_RDONLY)
    node = file_system.files.node_of(handle)
    changed_ns = node.ctime_ns
    master.answer_latency_seconds = ANSWER_SECONDS

    await act(file_system)

    assert node.link_count == 0
    assert node.ctime_ns > changed_ns
    file_system.close_handle(handle)


@pytest.mark.parametrize("act", [remove, replace])
async def test_time_of_a_directory_that_was_set_before_its_names_changed_moves(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster, act: Act
) -> None:
    for name in (b"file", b"other"):
        await file_system.write_file(name, b"content")
    await file_system.make_all_durable()
    await file_system.set_attributes(b"", mtime_ns=1)
    master.answer_latency_seconds = ANSWER_SECONDS

    await act(file_system)

    assert file_system.tree.root.mtime_ns > 1
    await file_system.make_all_durable()
    assert file_system.tree.root.mtime_ns > 1


async def test_news_of_a_lost_name_moves_the_change_time_once(
    clock: MockClock, file_system: FileSystemHarness
) -> None:
    await file_system.write_file(b"file", b"content")
    node = await file_system.find(b"file")
    await file_system.rearrangements.link(node, file_system.tree.root, b"other")
    await file_system.make_all_durable()

    await file_system.unlink(b"other")
    changed_ns = node.ctime_ns
    await trio.sleep(1)  # what the watch has to tell is here

    assert node.ctime_ns == changed_ns


async def test_answer_to_a_rename_does_not_bring_back_what_was_removed_elsewhere_since(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster, run: types.Run, tmp_path: Path
) -> None:
    await file_system.write_file(b"old", b"content")
    await file_system.make_all_durable()
    async with open_file_system(master.client(USER), run, tmp_path / "other") as other:
        await other.find(b"old")
        master.answer_latency_seconds = ANSWER_SECONDS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file_system.rename, b"old", b"new")
            await trio.sleep(ANSWER_SECONDS / 2)  # the master has renamed, and its answer is on the way
            nursery.start_soon(other.unlink, b"new")

        await trio.sleep(1)

        assert file_system.shown() == {}


async def test_change_time_of_a_file_that_lost_one_of_its_names_to_a_new_file_stays(
    clock: MockClock, file_system: FileSystemHarness
) -> None:
    await file_system.write_file(b"file", b"content")
    node = await file_system.find(b"file")
    await file_system.rearrangements.link(node, file_system.tree.root, b"other")
    await file_system.make_all_durable()
    await file_system.write_file(b"new", b"new content")

    await file_system.rename(b"new", b"other")
    changed_ns = node.ctime_ns
    await file_system.make_all_durable()
    await trio.sleep(1)  # what the watch has to tell is here

    assert node.link_count == 1
    assert node.ctime_ns == changed_ns
