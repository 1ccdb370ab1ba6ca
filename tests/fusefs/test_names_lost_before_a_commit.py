"""A file that loses its last name by what others do, before the commit of what is pending of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.staged_file import StagedFile
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster
from support.file_system_harness import open_file_system
from support.storage_requests import USER, published
from support.two_mounts import open_both


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
        await one.write_file(b"log", b"line")
        await one.make_all_durable()
        await trio.sleep(1)
        node = await one.find(b"log")
        handle = await one.open(b"log")
        await one.append(handle, b"line")
        await other.write_file(b"aside", b"new")
        await other.rename(b"aside", b"log")
        await other.make_all_durable()
        await trio.sleep(0.1)
        assert not node.is_attached
        one.staging.record(node)
        one.copy_state(tmp_path / "next")
        one.close_handle(handle)

    async with open_file_system(client, run, tmp_path / "next") as next_mount:
        await next_mount.sync.wait_recovered()
        await next_mount.make_all_durable()

        assert await published(client, run) == {b"log": b"new"}
