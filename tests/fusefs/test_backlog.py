"""What an earlier mount left does not keep the next one from answering, however much it is."""

from __future__ import annotations

import itertools
from pathlib import Path

import trio
from trio.testing import MockClock

from cloudai_fusefs.tree_sync import RECOVERED_AT_ONCE
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import open_file_system
from support.storage_requests import published

FILE_COUNT = 8 * RECOVERED_AT_ONCE


async def test_backlog_is_taken_up_in_small_steps_and_sent_in_full_batches(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first") as first:
        await first.namespace.load(first.tree.root)
        master.go_away()
        for number in range(FILE_COUNT):
            await first.write_file(b"f%d" % number, b"%d" % number)
        first.copy_state(tmp_path / "next")
    master.come_back()
    master.call_count.clear()

    async with open_file_system(client, run, tmp_path / "next") as mount:
        left_counts = [len(mount.staging.recovery.unread_records)]
        while left_counts[-1]:
            await trio.lowlevel.checkpoint()
            left_counts.append(len(mount.staging.recovery.unread_records))
        await mount.make_all_durable()

    steps = [before - after for before, after in itertools.pairwise(left_counts)]
    assert left_counts[0] == FILE_COUNT
    # Two, where both tasks take their turns in another order from one round to the next.
    assert 0 < max(steps) <= 2 * RECOVERED_AT_ONCE
    assert master.call_count["commit_nodes"] <= 2
    assert len(await published(client, run)) == FILE_COUNT
