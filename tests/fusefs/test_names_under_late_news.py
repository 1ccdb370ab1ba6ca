"""Names that change here and elsewhere while the news of it are on their way: what was answered is not undone by older
news, and in the end all mounts show what the master has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import refusals
from cloudai_model.errors import CloudAIError, NotFound
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.storage_requests import commit_one, directory_commit, published, tree_of
from support.storage_requests import link as link_at_master
from support.storage_requests import rename as rename_at_master

NAMES = (b"a", b"b", b"c", b"d/a", b"d/b")
STEPS = 40
HISTORIES = 15
SETTLED_SECONDS = 20

Act = Callable[[FileSystemHarness, Random, set[bytes]], Awaitable[None]]
"""Does one thing to names of the set and says in it what there is afterwards."""


async def write(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    name = random.choice([name for name in NAMES if name not in present] or [b""])
    if name:
        await mount.write_file(name, random.randbytes(8))
        present.add(name)


async def rename(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    if present:
        old, new = random.choice(sorted(present)), random.choice(NAMES)
        is_same = new in present and await mount.find(old) is await mount.find(new)
        await mount.rename(old, new)
        if not is_same:  # by rename(2), two names of one file stay
            present.discard(old)
            present.add(new)


async def link(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    free = [name for name in NAMES if name not in present]
    if present and free:
        node = await mount.find(random.choice(sorted(present)))
        new = random.choice(free)
        parent, _, name = new.rpartition(b"/")
        await mount.rearrangements.link(node, await mount.find(parent), name)
        present.add(new)


async def unlink(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    if present:
        name = random.choice(sorted(present))
        await mount.unlink(name)
        present.discard(name)


async def fsync(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    if present:
        handle = await mount.open(random.choice(sorted(present)))
        await mount.fsync(handle)
        mount.close_handle(handle)


async def pause(mount: FileSystemHarness, random: Random, present: set[bytes]) -> None:
    await trio.sleep(random.choice((0.01, 0.3, 1.0)))


ACTS: tuple[Act, ...] = (write, write, rename, rename, rename, link, unlink, fsync, pause, pause)


def slow_down(master: FakeMaster, random: Random) -> None:
    master.latency_seconds = random.choice((0.0, 0.05))
    master.answer_latency_seconds = random.choice((0.0, 0.05, 0.4))
    master.news_latency_seconds = random.choice((0.0, 0.1, 0.7, 1.5))


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_what_was_done_here_is_never_undone_by_late_news(
    clock: MockClock, master: FakeMaster, file_system: FileSystemHarness, seed: int
) -> None:
    random = Random(seed)
    await file_system.mkdir(b"d")
    await file_system.make_all_durable()
    slow_down(master, random)
    present: set[bytes] = set()

    def check(done: list[str]) -> None:
        assert file_system.shown().keys() == present | {b"d"}, done

    async def look_often() -> None:
        while True:
            check(done)
            await trio.sleep(0.03)

    done: list[str] = []
    for _ in range(STEPS):
        act = random.choice(ACTS)
        done.append(act.__name__)
        await act(file_system, random, present)
        check(done)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_often)
        await file_system.make_all_durable()
        await trio.sleep(SETTLED_SECONDS)
        nursery.cancel_scope.cancel()


Mounts = tuple[FileSystemHarness, FileSystemHarness]


@pytest.fixture
async def mounts(client: FakeMasterClient, run: types.Run, tmp_path: Path) -> AsyncIterator[Mounts]:
    """Two of one run, which both have looked into."""
    async with (
        open_file_system(client, run, tmp_path / "one", timeo_seconds=10) as one,
        open_file_system(client, run, tmp_path / "other", timeo_seconds=10) as other,
    ):
        for mount in (one, other):
            await mount.namespace.load(mount.tree.root)
        yield one, other


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_mounts_that_change_the_same_names_agree_in_the_end(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    mounts: Mounts,
    seed: int,
) -> None:
    random = Random(seed)

    async def work(mount: FileSystemHarness, random: Random) -> None:
        for _ in range(STEPS):
            with suppress(CloudAIError):  # the other was faster
                await random.choice(ACTS)(mount, random, set(mount.shown()) - {b"d"})

    one, other = mounts
    await one.mkdir(b"d")
    await one.make_all_durable()
    await trio.sleep(1)
    slow_down(master, random)

    async with trio.open_nursery() as nursery:
        for mount in mounts:
            nursery.start_soon(work, mount, Random(random.random()))
    for mount in mounts:
        await mount.make_all_durable()
        await mount.uploader.wait_strays_removed()
    await trio.sleep(SETTLED_SECONDS)

    at_master = set(await tree_of(client, run)) - {b""}
    assert (set(one.shown()) ^ at_master, set(other.shown()) ^ at_master) == (set(), set())
    assert one.shown() == other.shown()


async def test_file_made_elsewhere_before_a_rename_from_its_name_is_answered_is_hidden_on_no_mount(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, other = mounts
    await one.write_file(b"f", b"first")
    await one.make_all_durable()
    await trio.sleep(1)
    await one.write_file(b"own", b"own")
    await one.rename(b"own", b"f")
    master.answer_latency_seconds = 0.4

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.rename, b"f", b"g")
        while b"f" in other.shown():
            await trio.sleep(0.1)
        await other.write_file(b"f", b"elsewhere")
    await one.make_all_durable()
    await other.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)

    assert one.shown().keys() == set(await tree_of(client, run)) - {b""}
    assert one.shown() == other.shown()


async def test_directories_that_two_mounts_move_into_each_other_are_where_the_master_has_them_in_the_end(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, other = mounts
    await one.mkdir(b"theirs")
    await one.make_all_durable()
    await trio.sleep(1)
    master.answer_latency_seconds = 2.0
    await one.mkdir(b"own")
    await trio.sleep(1)  # the commit is carried out, and known to the other, but not answered
    await one.rename(b"own", b"theirs/own")
    master.answer_latency_seconds = 0.0

    await other.rename(b"theirs", b"own/theirs")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)

    assert one.shown().keys() == set(await tree_of(client, run)) - {b""}
    assert one.shown() == other.shown()


async def test_file_that_a_change_brought_back_is_not_taken_away_by_the_late_news_of_its_removal(
    clock: MockClock, master: FakeMaster, mounts: Mounts
) -> None:
    one, other = mounts
    await one.write_file(b"kept", b"first")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    master.news_latency_seconds = 1.0
    handle = await one.open(b"kept")
    await one.write(handle, 0, b"FIRST")
    await other.unlink(b"kept")
    await other.make_all_durable()
    one.close_handle(handle)
    await one.make_all_durable()

    with trio.move_on_after(SETTLED_SECONDS):
        while True:
            assert b"kept" in one.shown()
            await trio.sleep(0.01)
    assert other.shown().keys() == {b"kept"}


async def test_change_of_a_directory_that_is_another_at_the_master_needs_nobody(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, other = mounts
    await one.mkdir(b"b")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    master.news_latency_seconds = 3.0
    await other.rename(b"b", b"a")
    await one.mkdir(b"a")
    await one.make_all_durable()

    await one.set_attributes(b"a", mode=0o700)
    await one.make_all_durable()

    await trio.sleep(SETTLED_SECONDS)
    assert one.shown() == other.shown()
    assert set(one.shown()) == set(await tree_of(client, run)) - {b""} == {b"a"}


async def test_change_of_what_the_master_never_knew_is_told_after_a_while(
    clock: MockClock, master: FakeMaster, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "OVERTAKEN_SECONDS_MAX", 0.0)  # listings explain it sooner
    one, other = mounts
    await one.mkdir(b"b")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    master.news_latency_seconds = 3.0
    await other.rename(b"b", b"a")
    await one.mkdir(b"a")
    await one.make_all_durable()
    await one.set_attributes(b"a", mode=0o700)

    with pytest.raises(NotFound):
        await one.make_all_durable()


async def test_directories_moved_into_each_other_here_and_elsewhere_need_nobody(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, other = mounts
    for name in (b"a", b"b"):
        await one.mkdir(name)
        await one.write_file(name + b"/file", name)
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    master.news_latency_seconds = 3.0
    await other.rename(b"a", b"b/a")

    with suppress(CloudAIError):
        await one.rename(b"b", b"a/b")
    await one.make_all_durable()

    await trio.sleep(SETTLED_SECONDS)
    assert one.shown() == other.shown()
    assert set(one.shown()) == set(await tree_of(client, run)) - {b""}


async def test_rename_into_what_others_moved_in_and_out_again_makes_no_circle(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    """The master's answer comes between the news of the two moves."""
    one, other = mounts
    await one.mkdir(b"a")
    await one.mkdir(b"t")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    node, target = await one.find(b"a"), await one.find(b"t")
    master.news_latency_seconds = 1.0
    await rename_at_master(client, run, target.node_id, (run.root_node_id, b"t"), (node.node_id, b"t"))
    await trio.sleep(0.2)
    await rename_at_master(client, run, target.node_id, (node.node_id, b"t"), (run.root_node_id, b"u"))
    master.answer_latency_seconds = 1.3

    await one.rearrangements.rename(one.tree.root, b"a", target, b"x", no_replace=False)

    above = node
    for _ in range(9):
        above = above.edges[0][0] if above.edges else above
    assert above is one.tree.root
    await trio.sleep(SETTLED_SECONDS)
    assert one.shown().keys() == other.shown().keys() == {b"u", b"u/x"}


async def test_directory_that_others_moved_and_moved_back_before_its_rename_has_one_name(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    """The master's answer comes between the news of the two moves. With a second name the directory would have been
    committed once it was removed, and come back under that name.
    """
    one, other = mounts
    await one.mkdir(b"a")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS + 0.5)  # no heartbeat is about to come, which would hold up the news
    node = await one.find(b"a")
    master.news_latency_seconds = 1.0
    for old_name, new_name in ((b"a", b"b"), (b"b", b"a")):
        old, new = (run.root_node_id, old_name), (run.root_node_id, new_name)
        await rename_at_master(client, run, node.node_id, old, new)
        await trio.sleep(0.1)
    master.answer_latency_seconds = 1.3

    await one.rearrangements.rename(one.tree.root, b"a", one.tree.root, b"c", no_replace=False)

    assert node.edges == ((one.tree.root, b"c"),)
    assert one.shown().keys() == {b"c"}
    await trio.sleep(SETTLED_SECONDS)
    assert one.shown().keys() == other.shown().keys() == {b"c"}


@pytest.mark.parametrize(("latency", "answer_latency"), [(0.3, 0.0), (0.0, 0.3)], ids=["asked", "answered"])
async def test_name_that_is_replaced_again_and_again_always_stands_for_something(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    mounts: Mounts,
    latency: float,
    answer_latency: float,
) -> None:
    """D6, where a replacement is itself replaced while its commit is under way."""
    one, other = mounts
    await one.write_file(b"checkpoint", b"first")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    master.latency_seconds, master.answer_latency_seconds = latency, answer_latency
    missing = 0
    for number in range(40):
        await one.write_file(b"aside", b"%d" % number)
        await one.rename(b"aside", b"checkpoint")
        for _ in range(8 + number % 12):
            await trio.sleep(0.02)
            missing += b"checkpoint" not in other.shown()

    assert missing == 0
    await one.make_all_durable()
    await one.uploader.wait_strays_removed()
    assert (await tree_of(client, run)).keys() == {b"", b"checkpoint"}
    assert await published(client, run) == {b"checkpoint": b"39"}


@pytest.mark.parametrize("is_filled", [True, False], ids=["filled", "empty"])
async def test_file_under_the_name_of_anothers_directory_can_be_moved_and_removed(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    mounts: Mounts,
    is_filled: bool,
) -> None:
    one, other = mounts
    master.latency_seconds = 0.1
    for name in (b"moved", b"removed", b"waits"):
        await one.write_file(name, b"mine")
        await other.mkdir(name)
        if is_filled:
            await other.write_file(name + b"/theirs", b"theirs")
        await other.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    for name in (b"moved", b"removed", b"waits"):
        assert await one.read_file(name) == b"mine"

    await one.rename(b"moved", b"elsewhere")
    await one.unlink(b"removed")
    await other.rename(b"waits", b"theirs")
    await trio.sleep(SETTLED_SECONDS)

    expected = {b"moved", b"elsewhere", b"removed", b"waits", b"theirs"}
    if is_filled:
        expected |= {name + b"/theirs" for name in (b"moved", b"removed", b"theirs")}
    assert one.shown().keys() == other.shown().keys() == expected
    assert await other.read_file(b"elsewhere") == await other.read_file(b"waits") == b"mine"


async def test_directory_that_came_back_before_its_removal_was_answered_is_shown(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, _ = mounts
    await one.mkdir(b"d")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS + 0.5)
    node = await one.find(b"d")
    node.lookup_count = 1  # the kernel will take this inode for removed
    number = node.ino
    master.answer_latency_seconds = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.rmdir, b"d")
        await trio.sleep(0.2)
        await commit_one(client, run, directory_commit(b"d", node=node.node_id))

    assert one.shown().keys() == {b"d"}
    assert (await one.find(b"d")).ino != number


async def test_name_that_was_given_again_before_its_removal_was_answered_is_shown(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    one, _ = mounts
    await one.write_file(b"name", b"content")
    await one.make_all_durable()
    node = await one.find(b"name")
    await link_at_master(client, run, node.node_id, run.root_node_id, b"other")
    await trio.sleep(SETTLED_SECONDS + 0.5)
    master.answer_latency_seconds = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.unlink, b"name")  # of two names: the master is asked first
        await trio.sleep(0.2)
        await link_at_master(client, run, node.node_id, run.root_node_id, b"name")

    assert one.shown().keys() == {b"name", b"other"}


async def test_directory_moved_here_into_what_others_moved_into_it_stays_where_they_had_it(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, mounts: Mounts
) -> None:
    """Both made it. The move is made here alone, as its commit is under way, and the next one would make a circle."""
    one, other = mounts
    await one.mkdir(b"a")
    await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS + 0.5)
    master.news_latency_seconds = 3.0
    await other.mkdir(b"c")
    await other.make_all_durable()
    before = master.call_count["commit_nodes"]
    master.answer_latency_seconds = 1.0
    await one.mkdir(b"c")
    while master.call_count["commit_nodes"] == before:
        await trio.sleep(0.01)

    await one.rename(b"c", b"a/d")
    master.answer_latency_seconds = 0.0
    for old, new in ((b"a", b"x"), (b"c", b"a"), (b"x", b"a/c")):
        await other.rename(old, new)

    with trio.fail_after(SETTLED_SECONDS):
        await one.make_all_durable()
    await trio.sleep(SETTLED_SECONDS)
    assert one.shown().keys() == other.shown().keys() == {b"a", b"a/c"}
    assert set(await tree_of(client, run)) == {b"", b"a", b"a/c"}
