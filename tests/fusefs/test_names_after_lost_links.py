"""A `link` that the master carried out and whose answer was lost: the mount does not know the name until news tell of
it, and what is renamed to it before then is the very same file.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.master_client import new_request_id
from cloudai_model.errors import AlreadyExists, InternalError, MasterUnavailable
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness
from support.storage_requests import published

NEWS_SECONDS = 100.0


async def lose_link(file_system: FileSystemHarness, master: FakeMaster) -> None:
    """`one` is also `two` at the master, and here it is not."""
    await file_system.write_file(b"one", b"content")
    await file_system.make_all_durable()
    await trio.sleep(1)
    master.news_latency_seconds = NEWS_SECONDS
    master.answer_latency_seconds = NEWS_SECONDS
    with pytest.raises(MasterUnavailable):
        await file_system.link(b"one", b"two")
    master.answer_latency_seconds = 0
    await trio.sleep(3)  # right after an outage, calls are refused without being made
    assert set(file_system.shown()) == {b"one"}


async def test_rename_to_a_name_that_a_lost_link_made_takes_the_old_one_away(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """To rename one of two names of a file to the other does nothing, for who knows of both."""
    await lose_link(file_system, master)

    await file_system.rename(b"one", b"two")

    for seconds in (0, 3 * NEWS_SECONDS):
        await trio.sleep(seconds)
        assert set(file_system.shown()) == {b"two"}
        assert await published(client, run) == {b"two": b"content"}
    assert (await file_system.read_file(b"two")) == b"content"


async def test_rename_whose_second_half_is_refused_shows_both_names(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(request: names.RemoveRequest) -> names.RemoveResponse:
        raise InternalError("not today")

    await lose_link(file_system, master)
    with monkeypatch.context() as patched, pytest.raises(InternalError):
        patched.setattr(client, "remove", refuse)
        await file_system.rename(b"one", b"two")

    for seconds in (0, 3 * NEWS_SECONDS):
        await trio.sleep(seconds)
        assert set(file_system.shown()) == {b"one", b"two"}
        assert await published(client, run) == {b"one": b"content", b"two": b"content"}


async def test_rename_to_a_name_that_somebody_has_removed_meanwhile_leaves_nothing_that_is_not_there(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After it was said to be the file's name, and before the other name was taken away."""
    remove = client.remove

    async def remove_late(request: names.RemoveRequest) -> names.RemoveResponse:
        late = names.RemoveRequest()
        late.CopyFrom(request)
        late.request_id = new_request_id()
        late.name = b"two"
        await remove(late)
        return await remove(request)

    await lose_link(file_system, master)
    monkeypatch.setattr(client, "remove", remove_late)

    await file_system.rename(b"one", b"two")

    assert await published(client, run) == {}
    await trio.sleep(3 * NEWS_SECONDS)
    assert set(file_system.shown()) == set()


async def test_rename_that_replaces_nothing_finds_the_name_that_a_lost_link_made(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    await lose_link(file_system, master)
    root = file_system.tree.root

    with pytest.raises(AlreadyExists):
        await file_system.rearrangements.rename(root, b"one", root, b"two", no_replace=True)

    await trio.sleep(3 * NEWS_SECONDS)
    assert set(file_system.shown()) == {b"one", b"two"}
