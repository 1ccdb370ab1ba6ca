"""What is renamed while its first commit is under way has two names for a while: that here, and that at the master.
Whatever is given the second one here meanwhile, in the end each has its own, and nobody is told of a refusal.
"""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.node import DIRECTORY, SYMLINK
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import published, tree_of
from support.under_way import (
    UNDER_WAY_SECONDS,
    Make,
    make_directory,
    make_file,
    make_full_directory,
    make_symlink,
    make_two_directories,
    put_on_its_way,
)

Contents = dict[bytes, bytes]


class Scene(NamedTuple):
    """`made` is on its way to the master while `changed` happens."""

    made: Make
    changed: Make
    files: Contents
    others: Set[bytes] = frozenset()
    """Directories and symlinks."""
    waits: bool = False
    """Whether the change waits for the master's answer."""


async def _two_full_directories(mount: FileSystemHarness) -> None:
    for name in (b"one", b"two"):
        await mount.mkdir(name)
        await mount.write_file(name + b"/in-" + name, name)


async def _directory_and_file(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"one")
    await mount.write_file(b"one/in-one", b"one")
    await mount.write_file(b"two", b"two")


async def _file_and_directory(mount: FileSystemHarness) -> None:
    await mount.write_file(b"one", b"one")
    await mount.mkdir(b"two")
    await mount.write_file(b"two/in-two", b"two")


async def _two_files(mount: FileSystemHarness) -> None:
    await mount.write_file(b"one", b"one")
    await mount.write_file(b"two", b"two")


async def _file_directory_and_file(mount: FileSystemHarness) -> None:
    await mount.write_file(b"one", b"one")
    await mount.mkdir(b"two")
    await mount.write_file(b"two/in-two", b"two")
    await mount.write_file(b"three", b"three")


async def _file_in_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.write_file(b"name", b"new")


async def _symlink_in_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.symlink(b"name", b"new")


async def _directory_in_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.mkdir(b"name")
    await mount.write_file(b"name/new", b"new")


async def _link_in_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.write_file(b"new", b"new")
    await mount.link(b"new", b"name")


async def _file_renamed_into_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.write_file(b"temporary", b"new")
    await mount.rename(b"temporary", b"name")


async def _directory_renamed_into_its_place(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.mkdir(b"temporary")
    await mount.write_file(b"temporary/new", b"new")
    await mount.rename(b"temporary", b"name")


async def _moved_into_a_new_one_of_its_name(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"temporary")
    await mount.mkdir(b"name")
    await mount.rename(b"temporary", b"name/moved")
    await mount.write_file(b"name/new", b"new")


async def _moved_twice(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"second")
    await mount.mkdir(b"name")
    await mount.rename(b"name", b"third")
    await mount.write_file(b"third/new", b"new")
    await mount.write_file(b"name", b"last")


async def _removed_and_linked_to(mount: FileSystemHarness) -> None:
    await mount.unlink(b"name")
    await mount.write_file(b"new", b"new")
    await mount.link(b"new", b"name")


async def _removed_and_made_a_directory(mount: FileSystemHarness) -> None:
    await mount.unlink(b"name")
    await mount.mkdir(b"name")
    await mount.write_file(b"name/new", b"new")


async def _replaced_elsewhere(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.write_file(b"new", b"new")
    await mount.rename(b"new", b"moved")
    await mount.mkdir(b"name")
    await mount.write_file(b"name/new", b"new")


async def _replaced_elsewhere_by_what_is_there(mount: FileSystemHarness) -> None:
    await mount.rename(b"name", b"moved")
    await mount.link(b"kept", b"linked")
    await mount.rename(b"linked", b"moved")


async def _removed_and_linked_to_at_once(mount: FileSystemHarness) -> None:
    await mount.unlink(b"name")
    await mount.link(b"kept", b"name")


async def _emptied_and_removed(mount: FileSystemHarness) -> None:
    await mount.rename(b"name/old", b"moved")
    await mount.rmdir(b"name")


async def _emptied_and_replaced(mount: FileSystemHarness) -> None:
    await mount.rename(b"name/old", b"moved")
    await mount.mkdir(b"temporary")
    await mount.write_file(b"temporary/new", b"new")
    await mount.rename(b"temporary", b"name")


async def _renamed_over_the_other(mount: FileSystemHarness) -> None:
    await mount.rename(b"one", b"two")
    await mount.set_attributes(b"two", mode=0o700)


async def _replaced_by_an_empty_one(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"new")
    await mount.rename(b"new", b"name")


async def _moved_up(mount: FileSystemHarness) -> None:
    await mount.rename(b"two", b"moved")
    await mount.rename(b"one", b"two")


async def _second_anew_with_the_first_in_it(mount: FileSystemHarness) -> None:
    await mount.rename(b"two", b"moved")
    await mount.mkdir(b"two")
    await mount.rename(b"one", b"two/one")


async def _swapped(mount: FileSystemHarness) -> None:
    await mount.rename(b"one", b"temporary")
    await mount.rename(b"two", b"one")
    await mount.rename(b"temporary", b"two")


async def _rotated(mount: FileSystemHarness) -> None:
    await mount.rename(b"three", b"temporary")
    await mount.rename(b"two", b"three")
    await mount.rename(b"one", b"two")
    await mount.rename(b"temporary", b"one")


SCENES = {
    "file-for-directory": Scene(make_directory, _file_in_its_place, {b"name": b"new"}, {b"moved"}),
    "file-for-full-directory": Scene(
        make_full_directory, _file_in_its_place, {b"name": b"new", b"moved/old": b"old"}, {b"moved"}
    ),
    "symlink-for-directory": Scene(make_directory, _symlink_in_its_place, {}, {b"name", b"moved"}),
    "directory-for-directory": Scene(
        make_directory, _directory_in_its_place, {b"name/new": b"new"}, {b"name", b"moved"}
    ),
    "directory-for-full-directory": Scene(
        make_full_directory,
        _directory_in_its_place,
        {b"name/new": b"new", b"moved/old": b"old"},
        {b"name", b"moved"},
    ),
    "directory-for-file": Scene(
        make_file, _directory_in_its_place, {b"name/new": b"new", b"moved": b"old"}, {b"name"}
    ),
    "directory-for-symlink": Scene(
        make_symlink, _directory_in_its_place, {b"name/new": b"new"}, {b"name", b"moved"}
    ),
    "file-for-file": Scene(make_file, _file_in_its_place, {b"name": b"new", b"moved": b"old"}),
    "link-for-directory": Scene(
        make_directory, _link_in_its_place, {b"name": b"new", b"new": b"new"}, {b"moved"}, waits=True
    ),
    "link-for-file": Scene(
        make_file, _link_in_its_place, {b"name": b"new", b"new": b"new", b"moved": b"old"}, waits=True
    ),
    "renamed-file-for-directory": Scene(
        make_full_directory, _file_renamed_into_its_place, {b"name": b"new", b"moved/old": b"old"}, {b"moved"}
    ),
    "renamed-directory-for-directory": Scene(
        make_full_directory,
        _directory_renamed_into_its_place,
        {b"name/new": b"new", b"moved/old": b"old"},
        {b"name", b"moved"},
    ),
    "renamed-directory-for-file": Scene(
        make_file, _directory_renamed_into_its_place, {b"name/new": b"new", b"moved": b"old"}, {b"name"}
    ),
    "moved-into-a-new-one": Scene(
        make_full_directory,
        _moved_into_a_new_one_of_its_name,
        {b"name/new": b"new", b"name/moved/old": b"old"},
        {b"name", b"name/moved"},
        waits=True,
    ),
    "moved-twice": Scene(
        make_full_directory,
        _moved_twice,
        {b"second/old": b"old", b"third/new": b"new", b"name": b"last"},
        {b"second", b"third"},
    ),
    "link-for-removed-file": Scene(
        make_file, _removed_and_linked_to, {b"name": b"new", b"new": b"new"}, waits=True
    ),
    "directory-for-removed-file": Scene(
        make_file, _removed_and_made_a_directory, {b"name/new": b"new"}, {b"name"}, waits=True
    ),
    "link-at-once-for-removed-file": Scene(
        make_file, _removed_and_linked_to_at_once, {b"name": b"kept"}, waits=True
    ),
    "directory-for-replaced-file": Scene(
        make_file, _replaced_elsewhere, {b"moved": b"new", b"name/new": b"new"}, {b"name"}
    ),
    "replaced-by-what-is-there": Scene(
        make_file, _replaced_elsewhere_by_what_is_there, {b"moved": b"kept"}, waits=True
    ),
    "emptied-and-removed": Scene(make_full_directory, _emptied_and_removed, {b"moved": b"old"}, waits=True),
    "emptied-and-replaced": Scene(
        make_full_directory,
        _emptied_and_replaced,
        {b"moved": b"old", b"name/new": b"new"},
        {b"name"},
        waits=True,
    ),
    "new-directory-over-directory": Scene(make_directory, _replaced_by_an_empty_one, {}, {b"name"}),
    "directory-over-directory": Scene(make_two_directories, _renamed_over_the_other, {}, {b"two"}),
    "swapped-directories": Scene(
        _two_full_directories,
        _swapped,
        {b"one/in-two": b"two", b"two/in-one": b"one"},
        {b"one", b"two"},
        waits=True,
    ),
    "swapped-directory-and-file": Scene(
        _directory_and_file, _swapped, {b"one": b"two", b"two/in-one": b"one"}, {b"two"}, waits=True
    ),
    "rotated-directory-and-files": Scene(
        _file_directory_and_file,
        _rotated,
        {b"one": b"three", b"two": b"one", b"three/in-two": b"two"},
        {b"three"},
        waits=True,
    ),
    "directory-moved-up": Scene(
        _two_full_directories,
        _moved_up,
        {b"two/in-one": b"one", b"moved/in-two": b"two"},
        {b"two", b"moved"},
    ),
    "directory-moved-up-to-a-file": Scene(
        _directory_and_file, _moved_up, {b"two/in-one": b"one", b"moved": b"two"}, {b"two"}
    ),
    "file-moved-up-to-a-directory": Scene(
        _file_and_directory, _moved_up, {b"two": b"one", b"moved/in-two": b"two"}, {b"moved"}
    ),
    "file-moved-into-the-new-one": Scene(
        _file_and_directory,
        _second_anew_with_the_first_in_it,
        {b"two/one": b"one", b"moved/in-two": b"two"},
        {b"two", b"moved"},
    ),
    "swapped-files": Scene(_two_files, _swapped, {b"one": b"two", b"two": b"one"}),
}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return SCENES[request.param]


async def check(mount: FileSystemHarness, client: FakeMasterClient, run: types.Run, scene: Scene) -> None:
    """Here and at the master there is what the scene made of it."""
    await mount.make_all_durable()
    await mount.uploader.wait_strays_removed()
    files = {b"kept": b"kept"} | scene.files
    assert await published(client, run) == files
    assert set(await tree_of(client, run)) - {b""} == files.keys() | scene.others
    await mount.namespace.load(mount.tree.root)
    shown = mount.shown()
    assert set(shown) == files.keys() | scene.others
    assert {path for path, node in shown.items() if node.kind in (DIRECTORY, SYMLINK)} == scene.others
    for path, data in files.items():
        assert await mount.read_file(path) == data


async def test_each_gets_its_own_name(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A4. What is renamed while its first commit is under way has its old name at the master until its next. What gets
    that name meanwhile is sent after it. A hard link waits for that, as does a rename that is to replace nothing, who
    removes or replaces the directory that it was in, and a directory that is renamed so that the two would wait for
    each other, as the last of a swap.
    """
    await put_on_its_way(file_system, master, scene.made)

    began_seconds = trio.current_time()
    await scene.changed(file_system)
    waited = trio.current_time() > began_seconds

    assert waited == scene.waits
    await check(file_system, client, run, scene)
    assert not caplog.records


async def test_who_waits_for_the_new_one_alone_is_not_told_of_the_other(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await put_on_its_way(file_system, master, scene.made)

    await scene.changed(file_system)
    for path in scene.files:
        handle = await file_system.open(path, os.O_RDWR)
        await file_system.write(handle, 0, scene.files[path])
        await file_system.fsync(handle)
        file_system.close_handle(handle)

    await check(file_system, client, run, scene)
    assert not caplog.records


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "unanswered"])
async def test_next_mount_gives_each_its_own_name(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    scene: Scene,
    is_answered: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_file_system(client, run, tmp_path / "first") as first:
        await put_on_its_way(first, master, scene.made)
        await scene.changed(first)
        if is_answered:
            master.latency_seconds = 100.0
            await trio.sleep(UNDER_WAY_SECONDS + 1)
        first.copy_state(tmp_path / "next")
    master.latency_seconds = 0.0
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.namespace.load(mount.tree.root)
        for path in reversed(scene.files):  # alone, as if somebody had asked for it
            await mount.uploader.make_durable([await mount.find(path)])
        await check(mount, client, run, scene)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "unanswered"])
async def test_next_mount_makes_the_new_directory_beside_the_one_that_has_replaced_another(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    is_answered: bool,
) -> None:
    """Its row is read after that of the new one: those of one directory come before those of the directories in it."""
    async with open_file_system(client, run, tmp_path / "first") as first:
        await first.mkdir(b"base")
        await first.mkdir(b"base/empty")
        await put_on_its_way(first, master, make_full_directory)
        await first.rename(b"name", b"base/empty")
        await first.mkdir(b"name")
        await first.write_file(b"name/new", b"new")
        if is_answered:
            master.latency_seconds = 100.0
            await trio.sleep(UNDER_WAY_SECONDS + 1)
        first.copy_state(tmp_path / "next")
    master.latency_seconds = 0.0
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.namespace.load(mount.tree.root)
        expected = {b"kept", b"base", b"base/empty", b"base/empty/old", b"name", b"name/new"}
        assert set(mount.shown()) == expected
        await mount.make_all_durable()
        await mount.uploader.wait_strays_removed()
        assert set(await tree_of(client, run)) - {b""} == expected
