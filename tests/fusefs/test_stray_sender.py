"""Strays are removed at the master many at a time, whatever they are, and none is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs.journal import Journal
from cloudai_fusefs.run_tree import RunTree
from cloudai_model.errors import Unauthenticated
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness
from support.storage_requests import commit, directory_commit, file_commit, published, tree_of

STRAYS = 300


async def leave_strays(
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    commits: Sequence[names.NodeCommit],
) -> None:
    """What the master has of these was removed here."""
    for result in (await commit(client, run, *commits)).results:
        file_system.tree.stray_names.note_anywhere(result.node.node_id)
        file_system.staging.note_stray(file_system.tree, result.node.node_id)


def strays_in_journal(file_system: FileSystemHarness) -> set[int]:
    with closing(Journal(file_system.state_dir / "journal.sqlite")) as journal:
        return {stray.node_id for stray in journal.strays()}


async def test_many_strays_are_removed_in_the_time_of_a_few_calls(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """Nobody else can change a name of the run meanwhile."""
    await file_system.sync.load_run(file_system.tree)
    master.latency_seconds = 0.05
    await leave_strays(
        file_system, client, run, [file_commit(b"stray-%d" % index, b"x") for index in range(STRAYS)]
    )
    began_seconds = trio.current_time()

    await file_system.uploader.wait_strays_removed()

    assert trio.current_time() - began_seconds < STRAYS * 0.05 / 10
    master.latency_seconds = 0
    assert set(await tree_of(client, run)) == {b""}


async def test_directories_among_strays_go_after_what_is_in_them(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.sync.load_run(file_system.tree)
    master.latency_seconds = 0.05
    paths = [b"/".join([b"in"] * depth) for depth in range(1, 30)]
    commits = [directory_commit(path) for path in paths]
    await leave_strays(
        file_system, client, run, commits + [file_commit(path + b"/file", b"x") for path in paths]
    )

    await file_system.uploader.wait_strays_removed()

    assert set(await tree_of(client, run)) == {b""}


async def test_directory_into_which_others_have_put_something_comes_back_and_keeps_no_other(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.sync.load_run(file_system.tree)
    await leave_strays(
        file_system,
        client,
        run,
        [directory_commit(b"full"), directory_commit(b"empty"), file_commit(b"file")],
    )
    await commit(client, run, file_commit(b"full/theirs", b"x"))

    await file_system.uploader.wait_strays_removed()

    assert set(await tree_of(client, run)) == {b"", b"full", b"full/theirs"}
    await trio.sleep(10)
    assert set(file_system.shown()) == {b"full", b"full/theirs"}


async def test_outage_among_strays_leaves_them_for_later(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.sync.load_run(file_system.tree)
    await leave_strays(
        file_system, client, run, [file_commit(b"stray-%d" % index, b"x") for index in range(STRAYS)]
    )
    master.latency_seconds = 0.05
    await trio.sleep(0.2)
    master.go_away()
    await trio.sleep(30)
    left = list(file_system.tree.stray_ids)
    assert 0 < len(left) < STRAYS
    assert strays_in_journal(file_system) == set(left)
    master.come_back()

    await file_system.uploader.wait_strays_removed()

    assert set(await tree_of(client, run)) == {b""}
    assert strays_in_journal(file_system) == set()


async def test_each_who_waits_is_told_that_the_token_is_refused(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    """The second too, for whom the strays are not tried again: the master is asked for nothing else by then."""
    await file_system.sync.load_run(file_system.tree)
    await leave_strays(file_system, client, run, [file_commit(b"stray", b"x")])
    client.is_revoked = True

    for _ in range(2):
        with pytest.raises(Unauthenticated), trio.fail_after(60):
            await file_system.uploader.wait_strays_removed()

    client.is_revoked = False
    await trio.sleep(10)
    assert set(await tree_of(client, run)) == {b""}


@pytest.mark.parametrize("is_linked", [True, False], ids=["link", "rename"])
async def test_name_of_a_stray_is_free_for_who_asks_the_master_for_it(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    is_linked: bool,
) -> None:
    """Although what was removed became a stray but now: here nothing has the name."""
    changing_names = file_system.namespace.changing_names

    @asynccontextmanager
    async def changing_names_with_a_new_stray(tree: RunTree) -> AsyncIterator[None]:
        await leave_strays(file_system, client, run, [file_commit(b"name", b"stray")])
        async with changing_names(tree):
            yield

    await file_system.write_file(b"kept", b"kept")
    await file_system.make_all_durable()
    monkeypatch.setattr(file_system.namespace, "changing_names", changing_names_with_a_new_stray)
    root = file_system.tree.root

    if is_linked:
        await file_system.link(b"kept", b"name")
    else:
        await file_system.rearrangements.rename(root, b"kept", root, b"name", no_replace=True)

    assert (await published(client, run))[b"name"] == b"kept"
