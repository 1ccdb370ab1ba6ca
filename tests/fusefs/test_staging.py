"""What a mount leaves in its state directory, and what the next one makes of it over a changed tree."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cloudai_fusefs import staging
from cloudai_fusefs.journal import Journal
from cloudai_fusefs.recovery import ContentInDoubt
from cloudai_fusefs.refusals import REFUSED_RETRY_SECONDS
from cloudai_fusefs.staged_file import StagedFile, mark_of
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.full_journal import full_journal
from support.lost_power import lose_power
from support.storage_requests import (
    USER,
    commit_one,
    directory_commit,
    file_commit,
    published,
    remove,
    rename,
    request_id,
    tree_of,
)
from support.two_mounts import open_both

Step = Callable[[FileSystemHarness], Awaitable[None]]
Meanwhile = Callable[[], Awaitable[object]]


def staged_files(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in (directory / "state/staged").rglob("*") if path.is_file()]


class TwoMounts:
    """A mount that dies with what it has staged, and the next one on the same state directory."""

    def __init__(self, client: FakeMasterClient, run: types.Run, directory: Path, master: FakeMaster) -> None:
        self.client = client
        self.run = run
        self.directory = directory
        self.master = master

    async def leave(self, publish: Step, stage: Step) -> None:
        """Dies after `stage`, of which the master learns nothing."""
        async with open_file_system(self.client, self.run, self.directory, timeo_seconds=10) as file_system:
            await publish(file_system)
            await file_system.make_all_durable()
            self.master.go_away()
            await stage(file_system)
        self.master.come_back()

    async def go_on(self) -> dict[bytes, bytes]:
        """The files at the master once the next mount has made durable what was left."""
        async with open_file_system(self.client, self.run, self.directory, timeo_seconds=10) as file_system:
            await file_system.make_all_durable()
            assert file_system.tree.pending == {}
        assert staged_files(self.directory) == []
        return await published(self.client, self.run)


@pytest.fixture
def mounts(client: FakeMasterClient, run: types.Run, tmp_path: Path, master: FakeMaster) -> TwoMounts:
    return TwoMounts(client, run, tmp_path / "mount", master)


async def nothing(file_system: FileSystemHarness) -> None:
    await file_system.namespace.load(file_system.tree.root)


async def publish_log(file_system: FileSystemHarness) -> None:
    await file_system.mkdir(b"d")
    await file_system.write_file(b"d/log", b"first")


async def append_to_log(file_system: FileSystemHarness) -> None:
    handle = await file_system.open(b"d/log")
    await file_system.append(handle, b" second")
    file_system.close_handle(handle)


async def test_file_that_was_still_open_is_published_by_the_next_mount(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def write(file_system: FileSystemHarness) -> None:
        await file_system.write(await file_system.create(b"f"), 0, b"acknowledged")

    await mounts.leave(nothing, write)

    assert await mounts.go_on() == {b"f": b"acknowledged"}


async def test_mode_of_a_directory_survives_although_a_file_in_it_is_older(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def move_into_new_directory(file_system: FileSystemHarness) -> None:
        await file_system.write_file(b"f", b"1")
        await file_system.mkdir(b"later", 0o700)
        await file_system.rename(b"f", b"later/f")

    await mounts.leave(nothing, move_into_new_directory)

    assert await mounts.go_on() == {b"later/f": b"1"}
    assert (await tree_of(mounts.client, mounts.run))[b"later"].attributes.mode == 0o700


async def test_directory_that_replaced_an_empty_one_before_the_death_keeps_its_attributes(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def publish_directory(file_system: FileSystemHarness) -> None:
        await file_system.mkdir(b"d", 0o700)

    async def replace_directory(file_system: FileSystemHarness) -> None:
        await file_system.mkdir(b"new", 0o755)
        await file_system.write_file(b"new/f", b"1")
        await file_system.set_attributes(b"new", mtime_ns=1_700_000_000_000_000_001)
        await file_system.rename(b"new", b"d")

    await mounts.leave(publish_directory, replace_directory)

    assert await mounts.go_on() == {b"d/f": b"1"}
    attributes = (await tree_of(mounts.client, mounts.run))[b"d"].attributes
    assert (attributes.mode, attributes.mtime_ns) == (0o755, 1_700_000_000_000_000_001)


@pytest.mark.parametrize("is_published", [False, True])
async def test_time_that_a_directory_was_given_survives_the_names_in_it(
    clock: MockClock, mounts: TwoMounts, is_published: bool
) -> None:
    async def make_directory(file_system: FileSystemHarness) -> None:
        await file_system.mkdir(b"d")

    async def fill_directory(file_system: FileSystemHarness) -> None:
        if not is_published:
            await make_directory(file_system)
        await file_system.write_file(b"d/f", b"1")
        await file_system.set_attributes(b"d", mtime_ns=1_700_000_000_000_000_001)

    await mounts.leave(make_directory if is_published else nothing, fill_directory)

    assert await mounts.go_on() == {b"d/f": b"1"}
    attributes = (await tree_of(mounts.client, mounts.run))[b"d"].attributes
    assert attributes.mtime_ns == 1_700_000_000_000_000_001


async def test_append_is_laid_over_the_base_it_was_made_on(clock: MockClock, mounts: TwoMounts) -> None:
    await mounts.leave(publish_log, append_to_log)

    assert await mounts.go_on() == {b"d/log": b"first second"}


async def test_change_follows_a_directory_that_was_renamed_elsewhere(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def change_and_make(file_system: FileSystemHarness) -> None:
        await append_to_log(file_system)
        await file_system.write_file(b"d/new", b"made here")

    await mounts.leave(publish_log, change_and_make)
    tree = await tree_of(mounts.client, mounts.run)
    root_id, directory_id = tree[b""].node_id, tree[b"d"].node_id
    await rename(mounts.client, mounts.run, directory_id, (root_id, b"d"), (root_id, b"moved"))

    assert await mounts.go_on() == {b"moved/log": b"first second", b"moved/new": b"made here"}


async def test_change_of_a_file_removed_elsewhere_brings_the_file_back(
    clock: MockClock, mounts: TwoMounts
) -> None:
    """Not lost without a word: the removal did not know of the change."""
    await mounts.leave(publish_log, append_to_log)
    tree = await tree_of(mounts.client, mounts.run)
    await remove(mounts.client, mounts.run, tree[b"d"].node_id, b"log", tree[b"d/log"].node_id)

    assert await mounts.go_on() == {b"d/log": b"first second"}


async def test_directory_made_here_and_elsewhere_becomes_one(clock: MockClock, mounts: TwoMounts) -> None:
    async def make(file_system: FileSystemHarness) -> None:
        await file_system.mkdir(b"d")
        await file_system.write_file(b"d/here", b"1")

    await mounts.leave(nothing, make)
    await commit_one(mounts.client, mounts.run, directory_commit(b"d"))
    await commit_one(mounts.client, mounts.run, file_commit(b"d/there", b"2"))

    assert await mounts.go_on() == {b"d/here": b"1", b"d/there": b"2"}


async def test_what_is_written_while_a_recovered_commit_is_under_way_is_committed(
    clock: MockClock, master: FakeMaster, run: types.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mode alone, which is refused: the file was removed elsewhere."""
    client, next_client = master.client(USER), master.client(USER)
    commit_nodes, is_let_through = next_client.commit_nodes, trio.Event()

    async def commit_late(request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        await is_let_through.wait()
        return await commit_nodes(request)

    monkeypatch.setattr(next_client, "commit_nodes", commit_late)
    async with open_both(client, run, tmp_path) as (one, other):
        await one.write_file(b"f", b"old")
        await one.make_all_durable()
        await trio.sleep(1)
        await one.set_attributes(b"f", mode=0o600)
        one.copy_state(tmp_path / "next")
        await one.make_all_durable()
        async with open_file_system(next_client, run, tmp_path / "next") as mount:
            await mount.sync.load_run(mount.tree)
            await trio.sleep(3)
            assert mount.tree.mutation_lock.locked()
            master.news_latency_seconds = 1.0
            await other.unlink(b"f")
            await other.make_all_durable()
            handle = await mount.open(b"f", os.O_RDWR | os.O_TRUNC)
            is_let_through.set()
            await trio.sleep(10)
            await mount.write(handle, 0, b"written")
            mount.close_handle(handle)
            await trio.sleep(10)

            await mount.make_all_durable()
            assert await published(client, run) == {b"f": b"written"}


async def test_directory_that_is_renamed_over_an_empty_one_while_it_is_committed_takes_its_place(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await mount.sync.load_run(mount.tree)
        await mount.mkdir(b"there")
        await mount.make_all_durable()
        count = master.call_count["commit_nodes"]
        master.answer_latency_seconds = 2.0
        await mount.mkdir(b"made")
        await mount.write_file(b"made/f", b"x")
        while master.call_count["commit_nodes"] == count:
            await trio.sleep(0.01)
        await trio.sleep(1)
        await mount.rename(b"made", b"there")
        await mount.make_all_durable()
        await trio.sleep(30)

        assert (await tree_of(client, run)).keys() == {b"", b"there", b"there/f"}
        assert mount.shown().keys() == {b"there", b"there/f"}


async def test_content_that_is_again_what_was_committed_once_is_committed_by_the_next_mount(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    """Another content was committed in between, of which the mount that died had no answer."""
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as mount:
        await mount.sync.load_run(mount.tree)
        handle = await mount.create(b"f")
        await mount.fsync(handle)
        await mount.write(handle, 0, b"in between")
        mount.close_handle(handle)
        master.answer_latency_seconds = 1.0
        while master.call_count["commit_nodes"] < 2:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        await mount.truncate(b"f", 0)
        mount.copy_state(tmp_path / "next")
    master.answer_latency_seconds = 0.0
    assert await published(client, run) == {b"f": b"in between"}

    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.make_all_durable()
        assert await published(client, run) == {b"f": b""}
        assert await mount.read_file(b"f") == b""


async def test_file_made_here_and_elsewhere_has_the_content_committed_last(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def make(file_system: FileSystemHarness) -> None:
        await file_system.write_file(b"f", b"here")

    await mounts.leave(nothing, make)
    await commit_one(mounts.client, mounts.run, file_commit(b"f", b"there"))

    assert await mounts.go_on() == {b"f": b"here"}


async def test_commit_whose_answer_was_lost_does_not_cover_what_others_wrote_since(
    clock: MockClock, mounts: TwoMounts
) -> None:
    """The next mount may commit once more what it does not know to be committed, and no third time."""
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as file_system:
        handle = await file_system.create(b"f")
        await file_system.write(handle, 0, b"here")
        await file_system.fsync(handle)
        await file_system.set_attributes(b"f", mode=0o600)
        mounts.master.go_away()
        await file_system.files.truncate(await file_system.find(b"f"), 4)
    mounts.master.come_back()
    node = (await tree_of(mounts.client, mounts.run))[b"f"]
    await commit_one(mounts.client, mounts.run, file_commit(b"f", b"there", node=node.node_id, place=False))

    assert await mounts.go_on() == {b"f": b"there"}


async def test_what_was_removed_before_the_death_stays_removed(clock: MockClock, mounts: TwoMounts) -> None:
    async def make_and_remove(file_system: FileSystemHarness) -> None:
        await file_system.write_file(b"f", b"1")
        handle = await file_system.open(b"f", os.O_RDONLY)
        await file_system.unlink(b"f")
        assert await file_system.read(handle) == b"1"

    await mounts.leave(nothing, make_and_remove)

    assert await mounts.go_on() == {}


async def test_staged_file_without_a_row_is_cleared_away(clock: MockClock, mounts: TwoMounts) -> None:
    await mounts.leave(nothing, nothing)
    leftover = mounts.directory / "state/staged" / mounts.run.task_id / "4294967999"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"never acknowledged")

    assert await mounts.go_on() == {}


async def test_rows_of_a_run_that_is_gone_stay_for_a_person(
    clock: MockClock, mounts: TwoMounts, caplog: pytest.LogCaptureFixture
) -> None:
    async def make(file_system: FileSystemHarness) -> None:
        await file_system.write_file(b"f", b"precious")

    await mounts.leave(nothing, make)
    request = names.RemoveRunRequest(request_id=request_id(), task_id=mounts.run.task_id)
    await mounts.client.remove_run(request)
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as file_system:
        await file_system.sync.wait_recovered()

    assert "stays staged" in caplog.text
    assert staged_files(mounts.directory) == [b"precious"]


async def test_rename_that_the_master_never_heard_of_survives_the_death(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def make_and_rename(file_system: FileSystemHarness) -> None:
        await file_system.mkdir(b"a")
        await file_system.write_file(b"a/old", b"1")
        await file_system.rename(b"a/old", b"a/new")
        await file_system.rename(b"a", b"b")

    await mounts.leave(nothing, make_and_rename)

    assert await mounts.go_on() == {b"b/new": b"1"}


async def die_with_a_stray(mounts: TwoMounts) -> None:
    """Leaves `b`, which replaced a file that the master has under `a` without this mount's knowing."""
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as file_system:
        mounts.master.answer_latency_seconds = 1.0
        await file_system.write_file(b"a", b"the first")
        await trio.sleep(0.2)
        mounts.master.go_away()  # the commit is carried out, its answer lost
        await trio.sleep(2.0)
        await file_system.rename(b"a", b"b")
        await file_system.write_file(b"new", b"the second")
        await file_system.rename(b"new", b"b")
    mounts.master.answer_latency_seconds = 0.0
    mounts.master.come_back()
    assert await published(mounts.client, mounts.run) == {b"a": b"the first"}


async def test_name_left_at_the_master_by_a_commit_without_an_answer_is_removed_by_the_next_mount(
    clock: MockClock, mounts: TwoMounts
) -> None:
    await die_with_a_stray(mounts)

    assert await mounts.go_on() == {b"b": b"the second"}


async def test_name_left_at_the_master_is_removed_although_two_more_mounts_die(
    clock: MockClock, mounts: TwoMounts
) -> None:
    """One before it has replaced the file, one after that and before the removal."""
    await die_with_a_stray(mounts)
    mounts.master.latency_seconds = 1.0
    for seconds in (0.5, 5.0):
        async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
            with trio.move_on_after(seconds):
                await fs.uploader.make_durable(list(fs.tree.pending))
            assert not any(name == "remove" for name in mounts.master.call_count)
    mounts.master.latency_seconds = 0.0

    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await fs.make_all_durable()

    assert await published(mounts.client, mounts.run) == {b"b": b"the second"}
    with closing(Journal(mounts.directory / "state/journal.sqlite")) as journal:
        assert (journal.records(), journal.strays()) == ([], [])


async def test_next_mount_says_nothing_of_an_empty_file_whose_commit_was_not_answered(
    clock: MockClock, mounts: TwoMounts, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no staged file, and lacks none."""
    mounts.master.answer_latency_seconds = 5.0
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        fs.close_handle(await fs.create(b"empty"))
        await trio.sleep(1.0)
    mounts.master.answer_latency_seconds = 0.0

    assert await mounts.go_on() == {b"empty": b""}
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def stage_early_and_late(file_system: FileSystemHarness) -> None:
    """`early` is on the disk, `late` perhaps, `rewritten` was and has been written since."""
    await file_system.write_file(b"early", b"long before")
    await file_system.write_file(b"rewritten", b"long before")
    for _ in range(2):
        await file_system.staging.settling.settle()
    handle = await file_system.open(b"rewritten")
    await file_system.write(handle, 0, b"just now...")
    file_system.close_handle(handle)
    await file_system.write_file(b"late", b"just now")
    await file_system.mkdir(b"directory")


async def test_file_that_a_loss_of_power_may_have_torn_is_not_uploaded_before_somebody_has_looked(
    clock: MockClock, mounts: TwoMounts
) -> None:
    await mounts.leave(nothing, stage_early_and_late)
    lose_power(mounts.directory / "state")

    for _ in range(2):  # the doubt outlives the next mount
        async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
            with pytest.raises(ContentInDoubt):
                await fs.make_all_durable()
            await trio.sleep(REFUSED_RETRY_SECONDS * 3)
            in_doubt = {file.path: file.reason for file in fs.control.status().pending}
            assert {path.rpartition("/")[2] for path in in_doubt} == {"rewritten", "late"}
            assert all("`touch` it" in reason for reason in in_doubt.values())
            assert await fs.read_file(b"late") == b"just now"
        tree = await tree_of(mounts.client, mounts.run)
        assert tree.keys() == {b"", b"early", b"directory"}
        assert await published(mounts.client, mounts.run) == {b"early": b"long before"}

    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await fs.set_attributes(b"late", mtime_ns=1_700_000_000_000_000_001)
        await fs.truncate(b"rewritten", 4)
        await fs.make_all_durable()
    assert await published(mounts.client, mounts.run) == {
        b"early": b"long before",
        b"late": b"just now",
        b"rewritten": b"just",
    }


async def test_file_in_doubt_is_removed_like_any_other(clock: MockClock, mounts: TwoMounts) -> None:
    await mounts.leave(nothing, stage_early_and_late)
    lose_power(mounts.directory / "state")

    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await fs.sync.wait_recovered()
        await fs.unlink(b"late")
        await fs.unlink(b"rewritten")
        await fs.make_all_durable()

    assert await published(mounts.client, mounts.run) == {b"early": b"long before"}


async def test_loss_of_power_that_undoes_an_acknowledgement_here_makes_no_empty_file_of_it(
    clock: MockClock, mounts: TwoMounts
) -> None:
    """The disk keeps the row, which says that all is there, and the staged file's name: only what was done to its
    bytes has got there.
    """
    after = mounts.directory / "after"
    kept_bytes = mounts.directory / "kept"
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await nothing(fs)
        mounts.master.go_away()
        await fs.write_file(b"f", b"waits")
        for _ in range(2):
            await fs.staging.settling.settle()
        fs.copy_state(after)
        (staged,) = (path for path in (after / "state/staged").rglob("*") if path.is_file())
        kept_bytes.hardlink_to(mounts.directory / staged.relative_to(after))
        mounts.master.come_back()
        await fs.make_all_durable()
    staged.write_bytes(kept_bytes.read_bytes())
    next_mount = TwoMounts(mounts.client, mounts.run, after, mounts.master)
    lose_power(next_mount.directory / "state")

    assert await next_mount.go_on() == {b"f": b"waits"}


async def test_file_that_waited_is_written_again_only_when_its_acknowledgement_is_on_the_disk(
    clock: MockClock, mounts: TwoMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old row says that the staged bytes are all there, and is followed by other bytes under that name."""
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await nothing(fs)
        mounts.master.go_away()
        for name in (b"f", b"g"):
            await fs.write_file(name, b"waits")
        for _ in range(2):
            await fs.staging.settling.settle()
        mounts.master.come_back()
        await fs.make_all_durable()
        said = note_calls(monkeypatch, (StagedFile, "_pwrite"), (Journal, "sync"))

        handle = await fs.open(b"f")
        await fs.write(handle, 0, b"again")
        await fs.write(handle, 0, b"and again")
        fs.close_handle(handle)
        assert said == ["Journal.sync", "StagedFile._pwrite", "StagedFile._pwrite"]

        await fs.staging.tidy()
        del said[:]
        handle = await fs.open(b"g")
        await fs.write(handle, 0, b"again")
        fs.close_handle(handle)
        assert said == ["StagedFile._pwrite"]


async def lose_power_and_row(mounts: TwoMounts) -> None:
    """A loss of power has taken the row of a file that was staged."""
    await mounts.leave(nothing, nothing)
    leftover = mounts.directory / "state/staged" / mounts.run.task_id / "4294967999"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"closed just before")
    lose_power(mounts.directory / "state")


async def test_staged_file_whose_row_a_loss_of_power_took_is_set_aside(
    clock: MockClock, mounts: TwoMounts
) -> None:
    await lose_power_and_row(mounts)

    assert await mounts.go_on() == {}

    (aside,) = (mounts.directory / "state").glob("set-aside-*")
    assert (aside / "staged" / mounts.run.task_id / "4294967999").read_bytes() == b"closed just before"
    assert "4294967999  18 bytes" in (aside / "README").read_text()


async def test_row_of_what_was_acknowledged_does_not_come_back_with_a_loss_of_power(
    clock: MockClock, mounts: TwoMounts
) -> None:
    async def write(file_system: FileSystemHarness) -> None:
        await file_system.write_file(b"f", b"durable, as its mark says")

    await mounts.leave(nothing, write)
    (staged,) = (mounts.directory / "state/staged").glob("*/*")
    mark_of(staged).touch()
    lose_power(mounts.directory / "state")

    assert await mounts.go_on() == {}

    with closing(Journal(mounts.directory / "state/journal.sqlite")) as journal:
        assert journal.records() == []


async def test_start_that_fails_after_a_loss_of_power_leaves_what_it_did_not_set_aside_to_the_next(
    clock: MockClock, mounts: TwoMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_power_and_row(mounts)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(staging, "set_files_aside", fail)
    with pytest.raises(ExceptionGroup):
        await mounts.go_on()
    monkeypatch.undo()

    assert await mounts.go_on() == {}

    (aside,) = (mounts.directory / "state").glob("set-aside-*")
    assert (aside / "staged" / mounts.run.task_id / "4294967999").read_bytes() == b"closed just before"


def note_calls(monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]) -> list[str]:
    """A list to which each call of the methods is added from now on."""
    said: list[str] = []

    def note(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def noting(*arguments: object) -> object:
            said.append(f"{owner.__name__}.{name}")
            return original(*arguments)

        monkeypatch.setattr(owner, name, noting)

    for owner, name in methods:
        note(owner, name)
    return said


async def test_file_that_waits_is_synced_once_and_its_row_goes_first_when_it_is_written_again(
    clock: MockClock, mounts: TwoMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is what makes it safe: sync, then the word; the word taken back and synced, then bytes."""
    async with open_file_system(mounts.client, mounts.run, mounts.directory, timeo_seconds=10) as fs:
        await nothing(fs)
        mounts.master.go_away()
        await fs.write_file(b"f", b"waits")
        said = note_calls(monkeypatch, (StagedFile, "sync"), (StagedFile, "_pwrite"), (Journal, "sync"))

        for _ in range(4):
            await fs.staging.settling.settle()
        assert said == ["StagedFile.sync"]
        handle = await fs.open(b"f")
        await fs.write(handle, 0, b"again")
        await fs.write(handle, 0, b"and again")
        assert said[1:] == ["Journal.sync", "StagedFile._pwrite", "StagedFile._pwrite"]
        for _ in range(4):
            await fs.staging.settling.settle()
        assert len(said) == 4  # it is still being written
        fs.close_handle(handle)
        for _ in range(4):
            await fs.staging.settling.settle()
        assert said[4:] == ["StagedFile.sync"]


@pytest.mark.parametrize("how", ["truncate", "touch"])
async def test_refused_change_does_not_say_that_what_may_be_lost_is_right(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """D8, where the journal has no room for the change that would say so."""
    async with open_file_system(client, run, tmp_path / "first") as first:
        await first.namespace.load(first.tree.root)
        master.go_away()
        await first.write_file(b"f", b"maybe lost")
        first.copy_state(tmp_path / "next")
    master.come_back()
    lose_power(tmp_path / "next" / "state")
    async with open_file_system(client, run, tmp_path / "next") as mount:
        await mount.find(b"f")
        with full_journal(monkeypatch), pytest.raises(OSError, match="No space"):
            await (mount.truncate(b"f", 0) if how == "truncate" else mount.set_attributes(b"f", mode=0o600))
        await mount.uploader.drain()
        await trio.sleep(10)
        assert await published(client, run) == {}
        assert await tree_of(client, run)
