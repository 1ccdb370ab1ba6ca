"""What an earlier mount left does not keep the next one from answering, however much it is."""

from __future__ import annotations

import itertools
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import BuiltinFunctionType, BuiltinMethodType, FrameType
from typing import cast

import trio
from trio.testing import MockClock

from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.journal_rescue import FILES_NAME, JOURNAL_NAME
from cloudai_fusefs.journal_rows import JournalRecord
from cloudai_fusefs.node import FILE
from cloudai_fusefs.staging import Staging
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


TASK_ID = "t-1"
PURE_CALLS = {"posix.fspath", "time.time_ns", "time.monotonic", "time.perf_counter"}
"""They ask neither a disk nor a clock that has to pass."""


def leave_backlog(state_dir: Path, file_count: int) -> None:
    """As a mount leaves it that has ended before so many new files were at the master."""
    files = state_dir / FILES_NAME / TASK_ID
    files.mkdir(parents=True)
    journal = Journal(state_dir / JOURNAL_NAME)
    with closing(journal), journal.together():
        for node_id in range(1, file_count + 1):
            (files / str(node_id)).write_bytes(b"staged")
            journal.put(new_file(node_id))


def new_file(node_id: int) -> JournalRecord:
    return JournalRecord(
        node_id=node_id,
        user="user-123",
        task_id=TASK_ID,
        sequence=node_id,
        kind=FILE,
        path=b"f%d" % node_id,
        parent_node_id=0,
        place=True,
        has_content=True,
        mode=0o644,
        uid=0,
        gid=0,
        mtime_ns=0,
        ctime_ns=0,
        atime_ns=0,
    )


class WaitingCalls:
    """How often each call that may wait was made: of the file system, of SQLite, of the clock. A context."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Counter[str]:
        self._before = sys.getprofile()
        sys.setprofile(self._note)
        return self.counts

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, _frame: FrameType, event: str, called: BuiltinFunctionType | BuiltinMethodType) -> None:
        if event != "c_call":
            return
        owner = getattr(called, "__self__", None)
        if isinstance(owner, sqlite3.Connection | sqlite3.Cursor):
            self.counts[f"sqlite3.{called.__name__}"] += 1
        elif getattr(called, "__module__", None) in ("posix", "time", "fcntl", "_io", "io"):
            self.counts[f"{called.__module__}.{called.__name__}"] += 1


def count_waiting_calls_of_a_start(state_dir: Path, file_count: int) -> Counter[str]:
    leave_backlog(state_dir, file_count)
    no_reader = cast("ChunkReader", None)  # nothing is read before somebody asks
    with WaitingCalls() as counts:
        staging = Staging(state_dir, no_reader, lambda _node: None)
    with closing(staging):
        assert len(staging.recovery.unread_records) == file_count
    assert len(list((state_dir / FILES_NAME / TASK_ID).iterdir())) == file_count
    return Counter({name: count for name, count in counts.items() if name not in PURE_CALLS})


def test_start_waits_for_the_disk_no_more_often_for_a_thousand_files_than_for_ten(tmp_path: Path) -> None:
    """Before it answers, where a millisecond for each of 10,000 files would be ten seconds."""
    few = count_waiting_calls_of_a_start(tmp_path / "few", 10)
    many = count_waiting_calls_of_a_start(tmp_path / "many", 1000)

    assert few["sqlite3.execute"] > 0  # the calls are seen
    assert few["posix.scandir"] > 0
    # Not to be equal: the garbage of other tests may be collected meanwhile, and closes its files.
    assert many.total() - few.total() < 100, many - few
    assert many["time.sleep"] == 0
