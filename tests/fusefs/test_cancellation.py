"""What a cancelled request, and a mount that dies, leave behind: tried at every step a task can be stopped at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from trio.abc import Instrument
from trio.testing import MockClock

from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, make_run, published

HALF = bytes(range(256)) * 2 * 100  # 50 KiB: staged without a thread
LARGE = HALF + HALF  # over what travels inside a commit
CHANGED = HALF + b"changed" + HALF[7:]

STEPS_MAX = 1000
"""A bound for the enumerations; the longest takes a quarter."""

Files = dict[bytes, bytes]

BEFORE: Files = {b"kept": b"first second", b"d/old": LARGE}
"""What every act starts from: published, and `kept` changed since."""


class Act(NamedTuple):
    """What a program does, and the files it may have left when it was stopped anywhere in it."""

    run: Callable[[FileSystemHarness], Awaitable[None]]
    outcomes: list[Files]


class StopAtStep(Instrument):
    """Calls `stop` after the step of this number of the watched tasks, when that task waits; 1 is the first."""

    def __init__(
        self, number: int, is_watched: Callable[[trio.lowlevel.Task], bool], stop: Callable[[], None]
    ) -> None:
        self._left = number
        self._is_watched = is_watched
        self._stop = stop

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_watched(task):
            self._left -= 1
            if self._left == 0:
                self._stop()


@contextmanager
def slow(master: FakeMaster) -> Iterator[None]:
    """Each call is a while on its way, and its answer too."""
    master.latency_seconds = master.answer_latency_seconds = 0.01
    try:
        yield
    finally:
        master.latency_seconds = master.answer_latency_seconds = 0


async def shown_files(file_system: FileSystemHarness) -> Files:
    return {
        path: await file_system.read_file(path)
        for path, shown in file_system.shown().items()
        if shown.kind == types.NODE_KIND_FILE
    }


async def prepare(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"d")
    await file_system.write_file(b"kept", b"first")
    await file_system.write_file(b"d/old", LARGE)
    await file_system.make_all_durable()
    handle = await file_system.open(b"kept")
    await file_system.write(handle, 5, b" second")
    file_system.close_handle(handle)


async def write_and_sync(file_system: FileSystemHarness) -> None:
    handle = await file_system.create(b"new")
    try:
        await file_system.write(handle, 0, HALF)
        await file_system.write(handle, len(HALF), HALF)
        await file_system.fsync(handle)
    finally:
        file_system.close_handle(handle)


async def overwrite_published(file_system: FileSystemHarness) -> None:
    handle = await file_system.open(b"d/old")
    try:
        await file_system.write(handle, len(HALF), b"changed")
        await file_system.fsync(handle)
    finally:
        file_system.close_handle(handle)


async def rename_published(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"kept", b"d/renamed")


async def replace_published(file_system: FileSystemHarness) -> None:
    await file_system.write_file(b"kept.tmp", b"third")
    await file_system.rename(b"kept.tmp", b"kept")
    await file_system.make_all_durable()


async def remove_published(file_system: FileSystemHarness) -> None:
    await file_system.unlink(b"d/old")
    await file_system.rmdir(b"d")


async def move_directory(file_system: FileSystemHarness) -> None:
    await file_system.write_file(b"d/new", b"moved along")
    await file_system.rename(b"d", b"e")


def after(*, without: Iterable[bytes] = (), **changed: bytes) -> Files:
    kept = {path: data for path, data in BEFORE.items() if path not in without}
    return kept | {path.replace("_", "/").encode(): data for path, data in changed.items()}


ACTS = [
    Act(write_and_sync, [BEFORE, after(new=b""), after(new=HALF), after(new=LARGE)]),
    Act(overwrite_published, [BEFORE, after(d_old=CHANGED)]),
    Act(rename_published, [BEFORE, after(without=[b"kept"], d_renamed=b"first second")]),
    Act(
        replace_published,
        [
            BEFORE,
            BEFORE | {b"kept.tmp": b""},
            BEFORE | {b"kept.tmp": b"third"},
            after(kept=b"third"),
        ],
    ),
    Act(remove_published, [BEFORE, after(without=[b"d/old"])]),
    Act(
        move_directory,
        [
            BEFORE,
            after(d_new=b""),
            after(d_new=b"moved along"),
            after(without=[b"d/old"], e_old=LARGE, e_new=b"moved along"),
        ],
    ),
]

each_act = pytest.mark.parametrize("act", ACTS, ids=lambda act: act.run.__name__)


async def assert_settles(
    file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run, act: Act
) -> None:
    """Everything becomes durable, is one of the act's outcomes, and is the same here and at the master."""
    await file_system.make_all_durable()
    # What was stopped may have been carried out at the master; news of it comes by the watch.
    await trio.sleep(1)
    await file_system.make_all_durable()
    await file_system.namespace.load(file_system.tree.root)
    shown = await shown_files(file_system)
    assert shown in act.outcomes
    assert shown == await published(client, run)
    assert [path for path in (file_system.state_dir / "staged").rglob("*") if path.is_file()] == []
    assert file_system.tree.pending == {}


@each_act
async def test_request_cancelled_at_any_step_leaves_mount_and_master_in_agreement(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, tmp_path: Path, act: Act
) -> None:
    task = trio.lowlevel.current_task()
    for number in count(1):
        assert number < STEPS_MAX
        run = await make_run(client, USER)
        async with open_file_system(client, run, tmp_path / str(number)) as file_system:
            await prepare(file_system)
            with slow(master), trio.CancelScope() as scope:
                instrument = StopAtStep(number, lambda stepped: stepped is task, scope.cancel)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await act.run(file_system)
                finally:
                    trio.lowlevel.remove_instrument(instrument)

            await assert_settles(file_system, client, run, act)
            assert file_system.files.count == 0
        if not scope.cancelled_caught:
            assert number > 1
            return


@each_act
async def test_mount_that_dies_at_any_step_loses_nothing(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, tmp_path: Path, act: Act
) -> None:
    for number in count(1):
        assert number < STEPS_MAX
        run = await make_run(client, USER)
        is_finished = await _run_until_step(number, act, master, run, tmp_path / str(number))
        if is_finished:
            assert number > 1
            return
        async with open_file_system(client, run, tmp_path / f"{number}-next") as next_file_system:
            await assert_settles(next_file_system, client, run, act)


async def _run_until_step(number: int, act: Act, master: FakeMaster, run: types.Run, directory: Path) -> bool:
    """Stops the whole mount at the step of this number of any task that writes. True: all was durable before.

    What it leaves on disk is in the directory's sibling `-next`.
    """
    is_killed = False
    client = master.client(USER)

    def kill() -> None:
        nonlocal is_killed
        is_killed = True
        file_system.copy_state(directory.with_name(f"{directory.name}-next"))
        client.is_revoked = True  # a step that was due already must not reach the master any more
        scope.cancel()

    with trio.CancelScope() as scope:
        async with open_file_system(client, run, directory) as file_system:
            await prepare(file_system)
            instrument = StopAtStep(number, lambda task: "watch" not in task.name, kill)
            trio.lowlevel.add_instrument(instrument)
            try:
                with slow(master):
                    await act.run(file_system)
                    await file_system.make_all_durable()
            finally:
                trio.lowlevel.remove_instrument(instrument)
    return not is_killed
