"""A mount that dies between two steps of one operation: afterwards there is what was before, or what the
operation was to make of it, and nothing else.

A step is what outlives the daemon: a row of the journal, a change of a staged file, an answer of the master.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.staged_file import StagedFile
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, make_run, published

STEPS_MAX = 30

Scene = Callable[[FileSystemHarness], Awaitable[None]]


class _Death(BaseException):
    """Nothing but the test may catch it."""


class _Reaper:
    """Kills before the given step of the task that is watched: the state as it is then is copied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, copy_to: Path) -> None:
        self.steps: list[str] = []
        self.deadly_step = -1
        self._copy_to = copy_to
        self._file_system: FileSystemHarness | None = None
        self._task: trio.lowlevel.Task | None = None
        for owner, name in (
            (Journal, "put"),
            (Journal, "remove"),
            (StagedFile, "_log_extent"),
            (StagedFile, "drop"),
            (os, "ftruncate"),
            (FakeMasterClient, "rename"),
            (FakeMasterClient, "remove"),
        ):
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def watch(self, file_system: FileSystemHarness) -> None:
        """From here on the present task's steps are counted."""
        self._file_system = file_system
        self._task = trio.lowlevel.current_task()

    def _watched(self, step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def take_step(*arguments: Any, **options: Any) -> Any:
            if self._file_system is not None and trio.lowlevel.current_task() is self._task:
                self.steps.append(name)
                if len(self.steps) - 1 == self.deadly_step:
                    self._file_system.copy_state(self._copy_to)
                    raise _Death
            return step(*arguments, **options)

        return take_step


async def _see(client: FakeMasterClient, run: types.Run) -> dict[bytes, bytes]:
    return dict(await published(client, run))


# --- what is done ----------------------------------------------------------------------------------------


async def _save(file_system: FileSystemHarness, path: bytes, content: bytes) -> None:
    await file_system.write_file(path, content)


async def _make_two_files(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"new", b"new content")
    await _save(file_system, b"old", b"old content")


async def _make_old_then_new(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await _save(file_system, b"new", b"new content")


async def _make_a_tree(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"far")
    await file_system.mkdir(b"far/away")
    await file_system.mkdir(b"directory")
    await file_system.mkdir(b"directory/below")
    await _save(file_system, b"directory/one", b"1")
    await _save(file_system, b"directory/below/two", b"2")


async def _durable_and_overwritten(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await file_system.make_all_durable()
    handle = await file_system.open(b"old")
    await file_system.write(handle, 4, b"CONTENT AND MORE")
    file_system.close_handle(handle)


async def _durable_with_another_mode(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await file_system.make_all_durable()
    await file_system.set_attributes(b"old", mode=0o600)


async def _durable(file_system: FileSystemHarness) -> None:
    await _make_old_then_new(file_system)
    await file_system.make_all_durable()


async def _durable_and_the_old_overwritten(file_system: FileSystemHarness) -> None:
    await _durable(file_system)
    handle = await file_system.open(b"old")
    await file_system.write(handle, 4, b"CONTENT AND MORE")
    file_system.close_handle(handle)


async def _durable_tree_with_news(file_system: FileSystemHarness) -> None:
    await _make_a_tree(file_system)
    await file_system.make_all_durable()
    await _save(file_system, b"directory/three", b"3")


async def _replace(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"new", b"old")


async def _move_directory(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"directory", b"far/away/moved")


async def _cut(file_system: FileSystemHarness) -> None:
    await file_system.truncate(b"old", 7)


async def _empty(file_system: FileSystemHarness) -> None:
    await file_system.truncate(b"old", 0)


async def _open_truncated(file_system: FileSystemHarness) -> None:
    file_system.close_handle(await file_system.open(b"old", os.O_RDWR | os.O_TRUNC))


async def _extend(file_system: FileSystemHarness) -> None:
    await file_system.truncate(b"old", 40)


async def _unlink(file_system: FileSystemHarness) -> None:
    await file_system.unlink(b"old")


SCENES: list[tuple[Scene, Scene]] = [
    *[
        (before, _replace)
        for before in (_make_two_files, _make_old_then_new, _durable, _durable_and_the_old_overwritten)
    ],
    *[(before, _move_directory) for before in (_make_a_tree, _durable_tree_with_news)],
    *[
        (before, act)
        for before in (_make_old_then_new, _durable, _durable_and_overwritten, _durable_with_another_mode)
        for act in (_cut, _empty, _open_truncated, _extend, _unlink)
    ],
]


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=lambda scene: scene.__name__.strip("_"))
async def test_death_between_two_steps_leaves_what_was_before_or_after(
    prepare: Scene, act: Scene, clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcomes: list[dict[bytes, bytes]] = []
    for deadly_step in range(-1, STEPS_MAX):
        master = FakeMaster()
        client, observer = master.client(USER), master.client(USER)
        run = await make_run(observer, USER)
        place = tmp_path / str(deadly_step)
        with monkeypatch.context() as patches:
            reaper = _Reaper(patches, place / "next")
            reaper.deadly_step = deadly_step
            async with open_file_system(client, run, place / "first", timeo_seconds=10) as file_system:
                await prepare(file_system)
                if deadly_step == -1:
                    await file_system.make_all_durable()
                    before = await _see(observer, run)
                reaper.watch(file_system)
                try:
                    await act(file_system)
                except _Death:
                    client.is_revoked = True
                else:
                    await file_system.make_all_durable()
                    outcomes.append(await _see(observer, run))
                    master.close()
                    if deadly_step == -1:
                        continue
                    break
        async with open_file_system(
            master.client(USER), run, place / "next", timeo_seconds=10
        ) as file_system:
            await file_system.make_all_durable()
            seen = await _see(observer, run)
            read = {path: await file_system.read_file(path) for path in seen}
        master.close()

        assert seen in (before, outcomes[0]), f"after a death before step {deadly_step} of {reaper.steps}"
        assert read == seen
    assert len(outcomes) == 2, "more steps than were tried"
