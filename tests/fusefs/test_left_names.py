"""What is renamed while its first commit is under way has two names for a while: that here, and that at the master.
Whatever is given the second one here meanwhile, in the end each has its own, and nobody is told of a refusal.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Set
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import commit_composer, commit_sender
from cloudai_fusefs.commit_composer import ComposedCommit
from cloudai_fusefs.commit_order import order_for_commit
from cloudai_fusefs.node import DIRECTORY, SYMLINK, Node
from cloudai_fusefs.refusals import OVERTAKEN_SECONDS_MAX
from cloudai_model.errors import AlreadyExists, DirectoryNotEmpty, NoSpace
from cloudai_model.limits import INLINE_BYTES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.lost_power import lose_power
from support.storage_requests import published, tree_of

UNDER_WAY_SECONDS = 5.0
"""From a commit's arrival to its answer."""

Contents = dict[bytes, bytes]


class Scene(NamedTuple):
    """`made` is on its way to the master while `changed` happens."""

    made: Callable[[FileSystemHarness], Awaitable[None]]
    changed: Callable[[FileSystemHarness], Awaitable[None]]
    files: Contents
    others: Set[bytes] = frozenset()
    """Directories and symlinks."""
    waits: bool = False
    """Whether the change waits for the master's answer."""


async def _directory(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"name")


async def _full_directory(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"name")
    await mount.write_file(b"name/old", b"old")


async def _file(mount: FileSystemHarness) -> None:
    await mount.write_file(b"name", b"old")


async def _symlink(mount: FileSystemHarness) -> None:
    await mount.symlink(b"name", b"old")


async def _two_full_directories(mount: FileSystemHarness) -> None:
    for name in (b"one", b"two"):
        await mount.mkdir(name)
        await mount.write_file(name + b"/in-" + name, name)


async def _directory_and_file(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"one")
    await mount.write_file(b"one/in-one", b"one")
    await mount.write_file(b"two", b"two")


async def _two_directories(mount: FileSystemHarness) -> None:
    await mount.mkdir(b"one")
    await mount.mkdir(b"two")


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
    "file-for-directory": Scene(_directory, _file_in_its_place, {b"name": b"new"}, {b"moved"}),
    "file-for-full-directory": Scene(
        _full_directory, _file_in_its_place, {b"name": b"new", b"moved/old": b"old"}, {b"moved"}
    ),
    "symlink-for-directory": Scene(_directory, _symlink_in_its_place, {}, {b"name", b"moved"}),
    "directory-for-directory": Scene(
        _directory, _directory_in_its_place, {b"name/new": b"new"}, {b"name", b"moved"}
    ),
    "directory-for-full-directory": Scene(
        _full_directory,
        _directory_in_its_place,
        {b"name/new": b"new", b"moved/old": b"old"},
        {b"name", b"moved"},
    ),
    "directory-for-file": Scene(
        _file, _directory_in_its_place, {b"name/new": b"new", b"moved": b"old"}, {b"name"}
    ),
    "directory-for-symlink": Scene(
        _symlink, _directory_in_its_place, {b"name/new": b"new"}, {b"name", b"moved"}
    ),
    "file-for-file": Scene(_file, _file_in_its_place, {b"name": b"new", b"moved": b"old"}),
    "link-for-directory": Scene(
        _directory, _link_in_its_place, {b"name": b"new", b"new": b"new"}, {b"moved"}, waits=True
    ),
    "link-for-file": Scene(
        _file, _link_in_its_place, {b"name": b"new", b"new": b"new", b"moved": b"old"}, waits=True
    ),
    "renamed-file-for-directory": Scene(
        _full_directory, _file_renamed_into_its_place, {b"name": b"new", b"moved/old": b"old"}, {b"moved"}
    ),
    "renamed-directory-for-directory": Scene(
        _full_directory,
        _directory_renamed_into_its_place,
        {b"name/new": b"new", b"moved/old": b"old"},
        {b"name", b"moved"},
    ),
    "renamed-directory-for-file": Scene(
        _file, _directory_renamed_into_its_place, {b"name/new": b"new", b"moved": b"old"}, {b"name"}
    ),
    "moved-into-a-new-one": Scene(
        _full_directory,
        _moved_into_a_new_one_of_its_name,
        {b"name/new": b"new", b"name/moved/old": b"old"},
        {b"name", b"name/moved"},
        waits=True,
    ),
    "moved-twice": Scene(
        _full_directory,
        _moved_twice,
        {b"second/old": b"old", b"third/new": b"new", b"name": b"last"},
        {b"second", b"third"},
    ),
    "link-for-removed-file": Scene(
        _file, _removed_and_linked_to, {b"name": b"new", b"new": b"new"}, waits=True
    ),
    "directory-for-removed-file": Scene(
        _file, _removed_and_made_a_directory, {b"name/new": b"new"}, {b"name"}, waits=True
    ),
    "link-at-once-for-removed-file": Scene(
        _file, _removed_and_linked_to_at_once, {b"name": b"kept"}, waits=True
    ),
    "directory-for-replaced-file": Scene(
        _file, _replaced_elsewhere, {b"moved": b"new", b"name/new": b"new"}, {b"name"}
    ),
    "replaced-by-what-is-there": Scene(
        _file, _replaced_elsewhere_by_what_is_there, {b"moved": b"kept"}, waits=True
    ),
    "emptied-and-removed": Scene(_full_directory, _emptied_and_removed, {b"moved": b"old"}, waits=True),
    "emptied-and-replaced": Scene(
        _full_directory, _emptied_and_replaced, {b"moved": b"old", b"name/new": b"new"}, {b"name"}, waits=True
    ),
    "new-directory-over-directory": Scene(_directory, _replaced_by_an_empty_one, {}, {b"name"}),
    "directory-over-directory": Scene(_two_directories, _renamed_over_the_other, {}, {b"two"}),
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


async def put_on_its_way(mount: FileSystemHarness, master: FakeMaster, scene: Scene) -> None:
    """What the scene makes has been committed, and the answer is still to come."""
    await mount.write_file(b"kept", b"kept")
    await mount.make_all_durable()
    await scene.made(mount)
    await wait_for_commit(master)


async def wait_for_commit(master: FakeMaster) -> None:
    """The next commit has arrived, and its answer is still to come."""
    master.answer_latency_seconds = UNDER_WAY_SECONDS
    before = master.call_count["commit_nodes"]
    while master.call_count["commit_nodes"] == before:
        await trio.sleep(0.01)
    await trio.sleep(0.1)
    master.answer_latency_seconds = 0.0  # of the calls after this one


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
    await put_on_its_way(file_system, master, scene)

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
    await put_on_its_way(file_system, master, scene)

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
        await put_on_its_way(first, master, scene)
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
        await put_on_its_way(first, master, SCENES["directory-for-full-directory"])
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


async def test_file_that_is_renamed_to_the_name_while_its_commit_is_composed_comes_after(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put_on_its_way(file_system, master, SCENES["file-for-directory"])
    await file_system.rename(b"name", b"moved")
    await file_system.write_file(b"file", b"new")
    node = await file_system.find(b"file")
    compose = commit_composer.compose_commit

    async def compose_and_rename(composed: Node) -> ComposedCommit | None:
        item = await compose(composed)
        if composed is node and node.first_edge == (file_system.tree.root, b"file"):
            await file_system.rename(b"file", b"name")
        return item

    monkeypatch.setattr(commit_sender, "compose_commit", compose_and_rename)
    await file_system.uploader.make_durable([node])

    await file_system.make_all_durable()
    assert await published(client, run) == {b"kept": b"kept", b"name": b"new"}
    assert set(await tree_of(client, run)) == {b"", b"kept", b"name", b"moved"}


async def test_reader_elsewhere_finds_the_name_at_every_moment(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """What was replaced goes when the other is there, and not with the answer that has that under its older name."""
    await put_on_its_way(file_system, master, SCENES["directory-over-directory"])
    await file_system.rename(b"one", b"two")
    found: list[bool] = []
    with trio.move_on_after(2 * UNDER_WAY_SECONDS):
        while True:
            found.append(b"two" in await tree_of(client, run))
            await trio.sleep(0.01)

    assert all(found)
    assert set(await tree_of(client, run)) == {b"", b"kept", b"two"}


async def test_two_that_wait_for_each_other_are_told_of_in_the_end(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """Nothing here brings it about; news of others might."""
    await file_system.namespace.load(file_system.tree.root)
    master.go_away()
    await file_system.mkdir(b"one")
    await file_system.mkdir(b"two")
    await file_system.write_file(b"two/file", b"data")
    await file_system.write_file(b"other", b"other")
    root, left_names = file_system.tree.root, file_system.tree.left_names
    left_names.note(await file_system.find(b"one"), (root, b"two"))
    left_names.note(await file_system.find(b"two"), (root, b"one"))
    master.come_back()

    with pytest.raises(AlreadyExists):
        await file_system.make_all_durable()
    assert await published(client, run) == {b"other": b"other"}
    with trio.fail_after(OVERTAKEN_SECONDS_MAX):
        await file_system.uploader.drain()


async def test_refusal_of_what_left_the_name_is_that_of_who_waits_for_it(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await put_on_its_way(file_system, master, SCENES["directory-for-file"])
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    await file_system.write(handle, 0, b"more than fits" * INLINE_BYTES_MAX)
    free_bytes, master.store.free_bytes = master.store.free_bytes, 0
    file_system.close_handle(handle)
    await file_system.mkdir(b"name")

    with pytest.raises(NoSpace):
        await file_system.make_all_durable()
    await trio.sleep(2)
    waiting = (await file_system.find(b"name")).pending
    assert waiting is not None
    assert isinstance(waiting.failure, NoSpace)
    master.store.free_bytes = free_bytes
    await trio.sleep(10)
    await file_system.make_all_durable()
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_refused_file_that_left_the_name_is_tried_again_by_itself(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """Although who waits for it is tried again at other times."""
    await put_on_its_way(file_system, master, SCENES["directory-for-file"])
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    await file_system.write(handle, 0, b"more than fits" * INLINE_BYTES_MAX)
    free_bytes, master.store.free_bytes = master.store.free_bytes, 0
    file_system.close_handle(handle)
    await file_system.mkdir(b"name")
    await trio.sleep(30)
    master.store.free_bytes = free_bytes

    await trio.sleep(30)

    assert not file_system.tree.pending
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_file_that_stays_open_keeps_its_name_from_another_for_two_seconds_at_most(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """One that is written over is no log, and would be committed when it is closed."""
    await put_on_its_way(file_system, master, SCENES["directory-for-file"])
    await file_system.rename(b"name", b"moved")
    handle = await file_system.open(b"moved")
    data = b"x" * (INLINE_BYTES_MAX + 1)
    await file_system.write(handle, 0, data)
    await file_system.mkdir(b"name")
    await trio.sleep(UNDER_WAY_SECONDS)

    await trio.sleep(2)

    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}
    assert await published(client, run) == {b"kept": b"kept", b"moved": data}
    file_system.close_handle(handle)


async def test_two_that_left_one_name_are_known_until_both_are_there(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await put_on_its_way(file_system, master, SCENES["directory-for-file"])
    await file_system.rename(b"name", b"first")
    await file_system.write_file(b"name", b"new")
    await wait_for_commit(master)
    await file_system.rename(b"first", b"moved")
    await file_system.rename(b"name", b"second")
    await file_system.unlink(b"second")

    await file_system.make_all_durable()

    assert await published(client, run) == {b"kept": b"kept", b"moved": b"old"}
    assert not file_system.tree.left_names
    assert not caplog.records


async def test_a_thousand_directories_may_wait_in_a_row(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    """Each took the name of the next while the commits of all were under way."""
    await file_system.namespace.load(file_system.tree.root)
    master.go_away()
    root, left_names = file_system.tree.root, file_system.tree.left_names
    line: list[Node] = []
    for number in range(1100):
        await file_system.mkdir(b"%d" % number)
        line.append(await file_system.find(b"%d" % number))
        if number:
            left_names.note(line[number - 1], (root, b"%d" % number))

    assert order_for_commit(reversed(line)) == line
    assert order_for_commit([line[-1]]) == line
    master.come_back()


async def test_next_mount_does_not_upload_what_a_loss_of_power_may_have_damaged_for_another(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """D8. After a loss of power, content that was not yet uploaded and not known to be on the workstation's disk is not
    uploaded by itself.
    """
    async with open_file_system(client, run, tmp_path / "first") as first:
        await put_on_its_way(first, master, SCENES["directory-for-file"])
        await first.rename(b"name", b"moved")
        handle = await first.open(b"moved")
        await first.write(handle, 0, b"maybe lost")
        await first.mkdir(b"name")
        master.latency_seconds = 100.0
        await trio.sleep(UNDER_WAY_SECONDS)
        first.copy_state(tmp_path / "next")
    master.latency_seconds = 0.0
    lose_power(tmp_path / "next" / "state")
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await trio.sleep(10)
        assert await published(client, run) == {b"kept": b"kept", b"name": b"old"}

        await mount.set_attributes(b"moved", mode=0o600)
        await mount.make_all_durable()
        assert await published(client, run) == {b"kept": b"kept", b"moved": b"maybe lost"}
        assert set(await tree_of(client, run)) == {b"", b"kept", b"moved", b"name"}


async def test_name_of_what_cannot_be_recovered_holds_up_nobody(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "first") as first:
        for name in (b"from", b"to"):
            await first.mkdir(name)
        await first.make_all_durable()
        handle = await first.create(b"other")  # open, so that it is not under way with the next
        await first.write(handle, 0, b"other")
        await first.write_file(b"from/name", b"old")
        await wait_for_commit(master)
        await first.rename(b"from/name", b"to/moved")
        await first.rename(b"other", b"from/name")
        node = await first.find(b"to/moved")
        first.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    staged = tmp_path / "next" / "state" / "staged" / run.task_id / str(node.node_id)
    staged.unlink()
    staged.mkdir()
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.unlink(b"from/name")
        with pytest.raises(DirectoryNotEmpty):  # as the master has it
            await mount.rmdir(b"from")
    assert not mount.tree.left_names


@pytest.mark.parametrize("is_renamed", [False, True], ids=["made", "renamed"])
async def test_fsynced_file_is_not_lost_at_the_master_with_the_name_that_it_left(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_renamed: bool,
) -> None:
    """D3, also while what was written to it since is on its way and another file has its old name already."""
    await file_system.write_file(b"new", b"new")
    handle = await file_system.create(b"log")
    await file_system.write(handle, 0, b"acknowledged")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.fsync, handle)
        await wait_for_commit(master)
        await file_system.rename(b"log", b"log.1")
    await file_system.write(handle, 12, b"x" * INLINE_BYTES_MAX)
    if is_renamed:
        await file_system.rename(b"new", b"log")
    else:
        await file_system.write_file(b"log", b"new")

    seconds = 0.0
    while (await published(client, run)).get(b"log") != b"new":
        assert any(data.startswith(b"acknowledged") for data in (await published(client, run)).values())
        await trio.sleep(0.05)
        seconds += 0.05
    assert (await published(client, run))[b"log.1"].startswith(b"acknowledged")
    assert seconds < 3
    file_system.close_handle(handle)
    await file_system.make_all_durable()


@pytest.mark.parametrize("made", [_file, _symlink, _directory], ids=["file", "symlink", "directory"])
async def test_name_that_was_left_is_not_shown_again_while_what_replaced_its_node_is_under_way(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    made: Callable[[FileSystemHarness], Awaitable[None]],
) -> None:
    """News tell of it there until the commit of the other has arrived."""
    await put_on_its_way(file_system, master, Scene(made, made, {}))
    await file_system.rename(b"name", b"moved")
    if made is _directory:
        await file_system.mkdir(b"new")
    else:
        await file_system.write_file(b"new", b"new")
    await file_system.rename(b"new", b"moved")
    master.latency_seconds = 2 * UNDER_WAY_SECONDS

    for _ in range(4):
        await trio.sleep(UNDER_WAY_SECONDS / 2)
        assert set(file_system.shown()) == {b"kept", b"moved"}
    assert set(await tree_of(client, run)) == {b"", b"kept", b"name"}
    master.latency_seconds = 0
    await file_system.make_all_durable()
    await file_system.uploader.wait_strays_removed()
    assert set(await tree_of(client, run)) == {b"", b"kept", b"moved"}
    assert set(file_system.shown()) == {b"kept", b"moved"}


async def test_rename_that_replaces_nothing_finds_the_name_free_that_another_has_left(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """`mv -n` would leave the file where it is, and say nothing."""
    await put_on_its_way(file_system, master, SCENES["file-for-file"])
    await file_system.rename(b"name", b"moved")
    root = file_system.tree.root

    await file_system.rearrangements.rename(root, b"kept", root, b"name", no_replace=True)

    await file_system.make_all_durable()
    assert await published(client, run) == {b"name": b"kept", b"moved": b"old"}
    assert set(file_system.shown()) == {b"name", b"moved"}
