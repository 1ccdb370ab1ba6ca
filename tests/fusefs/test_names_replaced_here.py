"""Names that are given up here before the master has heard who has them: what it has under them stays until it has what
was put in its place, and for good where nobody here has replaced it.
"""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMasterClient
from support.file_system_harness import open_file_system
from support.storage_requests import published

SETTLED_SECONDS = 10.0


async def test_replaced_file_is_at_the_master_until_what_replaced_it_is(
    clock: MockClock, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """D6. A file that is replaced by renaming another over it is replaced as a whole: at the master and on every mount
    there is the old content or the new, never a part.
    """
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await mount.namespace.load(mount.tree.root)
        await mount.write_file(b"name", b"old")
        await mount.make_all_durable()

        await mount.write_file(b"aside", b"new")
        await mount.rename(b"aside", b"name")
        assert await published(client, run) == {b"name": b"old"}
        await mount.rename(b"name", b"moved")

        # The workstation may be lost at this moment.
        assert await published(client, run) == {b"moved": b"new"}


async def test_file_made_elsewhere_under_a_name_that_is_left_here_stays(
    clock: MockClock, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """W12. A file that another mount made under the same name stays when the one here is renamed or removed before it
    is at the master and before its mount has died.
    """
    async with (
        open_file_system(client, run, tmp_path / "one", timeo_seconds=10) as one,
        open_file_system(client, run, tmp_path / "other", timeo_seconds=10) as other,
    ):
        for mount in (one, other):
            await mount.sync.load_run(mount.tree)
        for name in (b"moved", b"removed"):
            await other.write_file(name, b"theirs")
        await trio.sleep(0.04)
        handles = {name: await one.create(name) for name in (b"moved", b"removed")}
        await other.make_all_durable()
        await trio.sleep(0.01)  # the news have come
        for handle in handles.values():
            await one.write(handle, 0, b"ours")
            one.close_handle(handle)

        await one.rename(b"moved", b"result")
        await one.unlink(b"removed")
        await one.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)

        expected = {b"moved": b"theirs", b"removed": b"theirs", b"result": b"ours"}
        assert await published(client, run) == expected
        for mount in (one, other):
            assert {path: await mount.read_file(path) for path in mount.shown()} == expected
