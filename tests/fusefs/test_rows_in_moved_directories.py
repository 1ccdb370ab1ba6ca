"""What is staged in a directory that others have moved, or made as well: the next mount finds it in that directory,
and takes no name from what is staged too.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import Node
from cloudai_model.errors import MasterUnavailable, NoSpace
from cloudai_model.limits import CHUNK_BYTES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import HEARTBEAT_SECONDS, FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, published, tree_of
from support.two_mounts import open_both
from support.under_way import UNDER_WAY_SECONDS, wait_for_commit

FIRST = bytes(CHUNK_BYTES_MAX) + b"first"
SECOND = bytes(CHUNK_BYTES_MAX) + b"second"
SETTLED_SECONDS = 10.0

LONG_NAME = "ä".encode() * 127 + b"."
LONG_NAME_BESIDE = "ä".encode() * 122 + b".conflict-1"


async def make_results_together(one: FileSystemHarness, other: FileSystemHarness) -> None:
    """The directory of both is the other's at the master."""
    await one.mkdir(b"results")
    await one.write_file(b"results/f", FIRST)
    await other.mkdir(b"results")
    handle = await other.create(b"results/theirs")
    await other.fsync(handle)
    other.close_handle(handle)
    await trio.sleep(SETTLED_SECONDS)


async def move_and_make_anew(one: FileSystemHarness, other: FileSystemHarness) -> None:
    await other.rename(b"results", b"old")
    await trio.sleep(SETTLED_SECONDS)
    await one.mkdir(b"results")
    await one.write_file(b"results/f", SECOND)
    await trio.sleep(SETTLED_SECONDS)
    assert one.shown().keys() == {b"old", b"old/f", b"old/theirs", b"results", b"results/f"}


@pytest.mark.parametrize("news_latency_seconds", [0.0, 0.5], ids=["news-first", "answer-first"])
async def test_file_in_a_directory_that_was_moved_elsewhere_is_there_after_a_death(
    clock: MockClock,
    master: FakeMaster,
    full_client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    news_latency_seconds: float,
) -> None:
    client = master.client(USER)
    master.news_latency_seconds = news_latency_seconds
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        await make_results_together(one, other)
        await move_and_make_anew(one, other)
        one.copy_state(tmp_path / "next")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"old/f": FIRST, b"old/theirs": b"", b"results/f": SECOND}


async def test_file_in_a_directory_that_was_moved_after_a_death_is_there_after_another(
    clock: MockClock, master: FakeMaster, full_client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_file_system(client, run, tmp_path / "other") as other:
        async with open_file_system(full_client, run, tmp_path / "one") as one:
            await one.sync.load_run(one.tree)
            master.go_away()
            await one.mkdir(b"results")
            await one.write_file(b"results/f", FIRST)
            one.copy_state(tmp_path / "next")
        master.come_back()
        await other.sync.load_run(other.tree)
        await other.mkdir(b"results")
        await other.make_all_durable()
        async with open_file_system(full_client, run, tmp_path / "next") as one:
            await one.sync.load_run(one.tree)
            await other.write_file(b"results/theirs", b"")
            await other.make_all_durable()
            await move_and_make_anew(one, other)
            one.copy_state(tmp_path / "last")

    async with open_file_system(client, run, tmp_path / "last") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"old/f": FIRST, b"old/theirs": b"", b"results/f": SECOND}


async def test_file_in_a_directory_that_was_moved_and_removed_elsewhere_is_there_after_a_death(
    clock: MockClock, master: FakeMaster, full_client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        await other.mkdir(b"results")
        await other.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        await one.write_file(b"results/f", FIRST)
        await other.rename(b"results", b"old")
        await trio.sleep(SETTLED_SECONDS)
        await one.mkdir(b"results")
        await one.write_file(b"results/f", SECOND)
        await other.rmdir(b"old")
        assert one.shown().keys() == {b"old", b"old/f", b"results", b"results/f"}
        one.copy_state(tmp_path / "next")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"old/f": FIRST, b"results/f": SECOND}


async def test_file_in_a_directory_of_whose_move_a_listing_told_is_there_after_a_death(
    clock: MockClock,
    master: FakeMaster,
    full_client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something on the way cuts the streams of news and lets calls pass."""

    def refuse_watch(request: names.WatchRequest) -> NoReturn:
        raise MasterUnavailable("the test lets no news pass")

    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        await other.mkdir(b"results")
        await other.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        await one.write_file(b"results/f", FIRST)
        monkeypatch.setattr(full_client, "watch", refuse_watch)
        full_client.is_revoked = True
        await other.rename(b"results", b"old")
        await trio.sleep(HEARTBEAT_SECONDS)
        full_client.is_revoked = False
        assert b"results/f" in one.shown()
        while b"old/f" not in one.shown():
            await trio.sleep(0.1)
        one.copy_state(tmp_path / "next")
    async with open_file_system(client, run, tmp_path / "other") as other:
        await other.sync.load_run(other.tree)
        await other.rmdir(b"old")
        await other.mkdir(b"results")
        await other.make_all_durable()

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"old/f": FIRST}


async def test_file_whose_name_another_has_that_is_staged_too_gets_one_beside(
    clock: MockClock,
    master: FakeMaster,
    full_client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_row(node: Node) -> None:
        raise OSError(errno.ENOSPC, "the test's disk is full")

    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        monkeypatch.setattr(one.staging.rows, "rewrite", refuse_row)
        await make_results_together(one, other)
        await move_and_make_anew(one, other)
        one.copy_state(tmp_path / "next")

    async with open_file_system(full_client, run, tmp_path / "next") as mount:
        await mount.sync.wait_recovered()
        assert "two files named b'f' are staged there" in caplog.text
        mount.copy_state(tmp_path / "last")
    async with open_file_system(client, run, tmp_path / "last") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {
            b"old/theirs": b"",
            b"results/f": FIRST,
            b"results/f.conflict-1": SECOND,
        }


async def test_file_that_has_the_name_that_another_would_get_beside_is_kept_too(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    contents = {b"d/f": b"first", b"e/f": b"second", b"e/f.conflict-1": b"own"}
    async with open_file_system(client, run, tmp_path / "one", timeo_seconds=1) as one:
        await one.sync.load_run(one.tree)
        for directory in (b"d", b"e"):
            await one.mkdir(directory)
        await one.make_all_durable()
        master.go_away()
        for path, content in contents.items():
            await one.write_file(path, content)
        one.copy_state(tmp_path / "next")
    master.come_back()
    async with open_file_system(client, run, tmp_path / "other") as other:
        await other.sync.load_run(other.tree)
        await other.rmdir(b"d")
        await other.rename(b"e", b"d")

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        found = await published(client, run)
        assert sorted(found.values()) == sorted(contents.values())
        assert found.keys() == {b"d/f", b"d/f.conflict-1", b"d/f.conflict-1.conflict-1"}


async def test_files_in_directories_that_become_one_are_all_committed(
    clock: MockClock, master: FakeMaster, full_client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """W14. Where others move directories so that two of what is staged on one mount have one name, both are kept: the
    file that came there, or that has the name of a directory, becomes `NAME.conflict-1`.
    """
    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        await other.mkdir(b"theirs")
        await other.mkdir(b"theirs/sub")
        await other.mkdir(b"theirs/kind")
        await other.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        await one.write_file(b"theirs/sub/f", FIRST)
        await one.write_file(b"theirs/sub/alone", FIRST)
        await one.write_file(b"theirs/sub/" + LONG_NAME, FIRST)
        await one.write_file(b"theirs/kind/f", FIRST)
        await one.mkdir(b"results")
        await one.mkdir(b"results/sub")
        for name in (b"f", b"f.conflict-1", LONG_NAME):
            await one.write_file(b"results/sub/" + name, SECOND)
        await one.write_file(b"results/kind", SECOND)
        await other.rename(b"theirs", b"results")
        await trio.sleep(SETTLED_SECONDS)
        shown = {path: content.size_bytes for path, content in one.shown().items()}
        one.copy_state(tmp_path / "next")

    assert shown == {
        b"results": 0,
        b"results/sub": 0,
        b"results/sub/f": len(SECOND),
        b"results/sub/f.conflict-1": len(SECOND),
        b"results/sub/f.conflict-2": len(FIRST),
        b"results/sub/" + LONG_NAME: len(SECOND),
        b"results/sub/" + LONG_NAME_BESIDE: len(FIRST),
        b"results/sub/alone": len(FIRST),
        b"results/kind": 0,
        b"results/kind/f": len(FIRST),
        b"results/kind.conflict-1": len(SECOND),
    }
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        contents = await published(client, run)
        assert {path: len(content) for path, content in contents.items()} == {
            path: size_bytes for path, size_bytes in shown.items() if size_bytes
        }


async def test_directories_that_become_one_leave_nothing_in_the_root_of_the_run(
    clock: MockClock,
    master: FakeMaster,
    full_client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each, one was made here, and in one of them is what waits for no commit of its own."""

    async def refuse_commit(request: names.CommitNodesRequest) -> NoReturn:
        raise NoSpace("the test's master takes nothing")

    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        for path in (b"theirs", b"theirs/sub"):
            await other.mkdir(path)
        await other.write_file(b"theirs/sub/x", FIRST)
        await other.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        with monkeypatch.context() as patched:
            patched.setattr(full_client, "commit_nodes", refuse_commit)
            await one.set_attributes(b"theirs/sub/x", mode=0o600)
            for path in (b"theirs/sub/deep", b"results", b"results/sub", b"results/sub/deep"):
                await one.mkdir(path)
            await other.rename(b"theirs", b"results")
            await trio.sleep(1)
            assert one.shown().keys() == {b"results", b"results/sub", b"results/sub/deep", b"results/sub/x"}
        await one.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        assert one.shown().keys() == {b"results", b"results/sub", b"results/sub/deep", b"results/sub/x"}
        tree = await tree_of(client, run)
        assert tree.keys() == {b"", *one.shown()}


@pytest.mark.parametrize("is_answered", [True, False])
async def test_name_that_was_left_in_a_directory_of_both_does_not_come_back_after_two_deaths(
    clock: MockClock,
    master: FakeMaster,
    full_client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    is_answered: bool,
) -> None:
    """Its row was written while the directory had the id that it was made with here."""
    client = master.client(USER)
    async with open_both(full_client, run, tmp_path, other_client=client) as (one, other):
        master.news_latency_seconds = 1.0
        await other.mkdir(b"results")
        await other.make_all_durable()
        await one.mkdir(b"results")
        await one.write_file(b"results/left", b"replaced")
        await wait_for_commit(master)
        await one.rename(b"results/left", b"results/f")
        await one.write_file(b"new", FIRST)
        await one.rename(b"new", b"results/f")
        if is_answered:
            await trio.sleep(2 * UNDER_WAY_SECONDS)
        one.copy_state(tmp_path / "between")
    async with open_file_system(full_client, run, tmp_path / "between") as between:
        await between.sync.load_run(between.tree)
        await trio.sleep(SETTLED_SECONDS)
        between.copy_state(tmp_path / "next")

    assert await published(client, run) == {b"results/left": b"replaced"}
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.sync.load_run(mount.tree)
        assert mount.shown().keys() == {b"results", b"results/f"}
        await mount.make_all_durable()
        await mount.uploader.wait_strays_removed()
        await trio.sleep(SETTLED_SECONDS)
        assert mount.shown().keys() == {b"results", b"results/f"}
    assert await published(client, run) == {b"results/f": FIRST}
