"""A mount that dies between two steps of one operation: afterwards there is what was before, or what the
operation was to make of it, and nothing else.

A step is what outlives the daemon: a row of the journal, a change of a staged file, an answer of the master.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.node import FILE
from cloudai_fusefs.staged_file import StagedFile
from cloudai_model.errors import CloudAIError
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import USER, make_run, published

STEPS_MAX = 60

Scene = Callable[[FileSystemHarness], Awaitable[None]]
Seen = dict[bytes, bytes | None]
Snapshots = tuple[Seen, Seen]


class _Reaper:
    """Kills before the given step of whatever task: the state as it is then is copied, and what the daemon does
    from there on reaches neither the copy nor the master.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, copy_to: Path, deadly_step: int) -> None:
        self.steps: list[str] = []
        self.has_killed = False
        self._deadly_step = deadly_step
        self._copy_to = copy_to
        self._victim: tuple[Path, FakeMasterClient] | None = None
        for owner, name in (
            (Journal, "put"),
            (Journal, "remove"),
            (Journal, "put_stray"),
            (Journal, "remove_stray"),
            (Journal, "put_removal"),
            (Journal, "remove_removals"),
            (StagedFile, "_log_extent"),
            (StagedFile, "drop"),
            (os, "ftruncate"),
            (FakeMasterClient, "put_chunk"),
            (FakeMasterClient, "commit_nodes"),
            (FakeMasterClient, "link"),
            (FakeMasterClient, "rename"),
            (FakeMasterClient, "remove"),
            (FakeMasterClient, "remove_nodes"),
        ):
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def watch(self, directory: Path, client: FakeMasterClient) -> None:
        """From here on the steps of the mount there are counted."""
        self._victim = directory, client

    def _watched(self, step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def take_step(*arguments: Any, **options: Any) -> Any:
            if self._victim is not None and not self.has_killed:
                self.steps.append(name)
                if len(self.steps) - 1 == self._deadly_step:
                    directory, client = self._victim
                    shutil.copytree(directory / "state", self._copy_to / "state")
                    self.has_killed = client.is_revoked = True
            return step(*arguments, **options)

        return take_step


async def _see(file_system: FileSystemHarness) -> Seen:
    """Each path with a file's content, None of a directory."""
    await file_system.namespace.load(file_system.tree.root)
    return {
        path: await file_system.read_file(path) if shown.kind == FILE else None
        for path, shown in file_system.shown().items()
    }


def _xattrs(file_system: FileSystemHarness) -> dict[bytes, Mapping[bytes, bytes]]:
    """Of what has some."""
    return {path: shown.xattrs for path, shown in file_system.shown().items() if shown.xattrs}


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


async def _overwritten_with_xattrs(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await file_system.set_xattr(b"old", b"user.first", b"1")
    await file_system.make_all_durable()
    await _write(file_system)


async def _durable_with_new_xattrs(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await file_system.make_all_durable()
    await file_system.set_xattr(b"old", b"user.first", b"1")


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


async def _write(file_system: FileSystemHarness) -> None:
    handle = await file_system.open(b"old")
    await file_system.write(handle, 3, b"written over")
    file_system.close_handle(handle)


async def _replaced(file_system: FileSystemHarness) -> None:
    await _save(file_system, b"old", b"old content")
    await file_system.make_all_durable()
    await _save(file_system, b"new", b"new content")
    await _replace(file_system)


async def _move_on(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"old", b"third")


async def _replaced_and_moved_on(file_system: FileSystemHarness) -> None:
    await _replaced(file_system)
    await _move_on(file_system)


async def _unlink_what_moved_on(file_system: FileSystemHarness) -> None:
    await file_system.unlink(b"third")


async def _move_back(file_system: FileSystemHarness) -> None:
    await file_system.rename(b"third", b"old")


async def _with_durable_empty_directory(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"empty")
    await file_system.make_all_durable()
    await file_system.set_attributes(b"empty", mode=0o700)


async def _remove_directory(file_system: FileSystemHarness) -> None:
    await file_system.rmdir(b"empty")


async def _unlink(file_system: FileSystemHarness) -> None:
    await file_system.unlink(b"old")


async def _durable_and_unlinked(file_system: FileSystemHarness) -> None:
    await _durable(file_system)
    await _unlink(file_system)


async def _durable_directory_of_unlinked(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"empty")
    await _save(file_system, b"empty/one", b"1")
    await _save(file_system, b"empty/two", b"2")
    await file_system.make_all_durable()
    await file_system.unlink(b"empty/one")
    await file_system.unlink(b"empty/two")


async def _unlinked_and_made_anew(file_system: FileSystemHarness) -> None:
    await _durable_and_unlinked(file_system)
    await _save(file_system, b"old", b"another content")


async def _make_file_anew(file_system: FileSystemHarness) -> None:
    file_system.close_handle(await file_system.create(b"old"))


async def _make_directory_anew(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"old")


SCENES: list[tuple[Scene, Scene]] = [
    (_make_two_files, _replace),
    (_make_old_then_new, _replace),
    (_durable, _replace),
    (_durable_and_the_old_overwritten, _replace),
    (_make_a_tree, _move_directory),
    (_durable_tree_with_news, _move_directory),
    (_replaced, _unlink),
    (_replaced, _move_on),
    (_replaced_and_moved_on, _make_file_anew),
    (_replaced_and_moved_on, _unlink_what_moved_on),
    (_replaced_and_moved_on, _move_back),
    (_with_durable_empty_directory, _remove_directory),
    (_durable, _write),
    (_durable, _unlink),
    (_durable_with_another_mode, _unlink),
    (_durable_and_unlinked, _make_file_anew),
    (_durable_and_unlinked, _make_directory_anew),
    (_durable_and_unlinked, _replace),
    (_unlinked_and_made_anew, _unlink),
    (_unlinked_and_made_anew, _move_on),
    (_durable_directory_of_unlinked, _remove_directory),
    (_durable_and_overwritten, _unlink),
    (_overwritten_with_xattrs, _unlink),
    (_durable_with_new_xattrs, _unlink),
    (_durable_and_overwritten, _cut),
    (_durable_and_overwritten, _empty),
    (_durable_and_overwritten, _open_truncated),
    (_durable_and_overwritten, _extend),
    (_make_old_then_new, _cut),
]


@pytest.mark.parametrize(("prepare", "act"), SCENES, ids=lambda scene: scene.__name__.strip("_"))
async def test_death_between_two_steps_leaves_what_was_before_or_after(
    prepare: Scene, act: Scene, clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run_until(deadly_step: int) -> tuple[_Reaper, bool, Snapshots]:
        """What was there before; then, where the mount lived, what came of it, and otherwise what the next mount
        made of it. Besides, whether the operation was acknowledged before the death.
        """
        master = FakeMaster()
        client, observer = master.client(USER), master.client(USER)
        run = await make_run(observer, USER)
        place = tmp_path / str(deadly_step)
        with monkeypatch.context() as patches:
            reaper = _Reaper(patches, place / "next", deadly_step)
            async with open_file_system(client, run, place / "first", timeo_seconds=10) as file_system:
                await prepare(file_system)
                before = await _see(file_system)
                reaper.watch(place / "first", client)
                is_acknowledged = False
                with trio.move_on_after(20):
                    try:
                        await act(file_system)
                        is_acknowledged = not reaper.has_killed
                        await file_system.make_all_durable()
                    except (CloudAIError, trio.TooSlowError):
                        assert reaper.has_killed
                if not reaper.has_killed:
                    file_system.copy_state(place / "next")
        async with open_file_system(
            master.client(USER), run, place / "next", timeo_seconds=10
        ) as file_system:
            await file_system.namespace.load(file_system.tree.root)
            for _ in range(2):  # as soon as it is shown, and in the end
                has_xattrs = prepare in (_overwritten_with_xattrs, _durable_with_new_xattrs)
                is_there = b"old" in file_system.shown()
                assert _xattrs(file_system) == (
                    {b"old": {b"user.first": b"1"}} if has_xattrs and is_there else {}
                )
                await file_system.make_all_durable()
            after = await _see(file_system)
            assert await published(observer, run) == {
                path: content for path, content in after.items() if content is not None
            }
        master.close()
        return reaper, is_acknowledged, (before, after)

    survivor, _, (before, after) = await run_until(-1)
    assert 0 < len(survivor.steps) < STEPS_MAX
    for deadly_step in itertools.count():
        reaper, is_acknowledged, (_, found) = await run_until(deadly_step)
        if not reaper.has_killed:
            break
        expected = [after] if is_acknowledged else [before, after]
        assert found in expected, f"after a death before step {deadly_step}, the last of {reaper.steps}"


RECOVERED = [
    _make_a_tree,
    _replaced,
    _durable_and_the_old_overwritten,
    _with_durable_empty_directory,
    _durable_and_unlinked,
    _durable_directory_of_unlinked,
    _unlinked_and_made_anew,
]


@pytest.mark.parametrize("prepare", RECOVERED, ids=lambda scene: scene.__name__.strip("_"))
async def test_death_of_the_mount_that_recovers_loses_nothing(
    prepare: Scene, clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for deadly_step in range(STEPS_MAX):
        master = FakeMaster()
        observer = master.client(USER)
        run = await make_run(observer, USER)
        place = tmp_path / str(deadly_step)
        async with open_file_system(master.client(USER), run, place / "first", timeo_seconds=10) as first:
            await prepare(first)
            expected = await _see(first)
            first.copy_state(place / "second")
        with monkeypatch.context() as patches:
            reaper = _Reaper(patches, place / "third", deadly_step)
            client = master.client(USER)
            reaper.watch(place / "second", client)
            async with open_file_system(client, run, place / "second", timeo_seconds=10) as second:
                with trio.move_on_after(20):
                    try:
                        await second.make_all_durable()
                    except CloudAIError:
                        assert reaper.has_killed
        if not reaper.has_killed:
            assert deadly_step > 0
            return
        async with open_file_system(master.client(USER), run, place / "third", timeo_seconds=10) as third:
            await third.make_all_durable()
            assert await _see(third) == expected, f"after a death before step {deadly_step} of {reaper.steps}"
        master.close()
    pytest.fail("more steps than were tried")
