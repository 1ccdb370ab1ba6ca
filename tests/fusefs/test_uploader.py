"""From a program's calls to the master's tree: what is sent, when, how often, and what outages do to it."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cloudai_fusefs import file_content, run_uploader
from cloudai_fusefs.chunk_sender import PUTS_MAX, Sending
from cloudai_fusefs.commit_pace import QUIET_SECONDS
from cloudai_fusefs.mount_control import FileState
from cloudai_fusefs.refusals import REFUSED_RETRY_SECONDS, RETRY_SECONDS_MAX
from cloudai_fusefs.run_uploader import PUBLISH_INTERVAL_SECONDS
from cloudai_model.chunks import digest_of
from cloudai_model.errors import MasterUnavailable, NoSpace, QuotaExceeded, RunSealed
from cloudai_model.limits import CHUNK_BYTES_MAX, KIB, MIB
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.full_journal import full_journal
from support.staged_state import read_live_state
from support.storage_requests import USER, published, seal, tree_of

LARGE = bytes(range(256)) * 4 * 100  # 100 KiB: over what travels inside a commit


async def chunk_lengths(client: FakeMasterClient, run: types.Run, path: bytes) -> list[int]:
    node = (await tree_of(client, run))[path]
    manifest = await client.get_manifest(run.task_id, node.node_id, node.generation)
    return [chunk.length_bytes for chunk in manifest]


async def begin_first_commit(file_system: FileSystemHarness, master: FakeMaster, path: bytes) -> None:
    """Returns when the commit of a new file is at the master, which takes a second to answer anything."""
    master.answer_latency_seconds = 1.0
    await file_system.write_file(path, b"1")
    await trio.sleep(QUIET_SECONDS * 2)
    assert master.call_count["commit_nodes"] == 1


async def write_at_once(file_system: FileSystemHarness, handle: int) -> None:
    """More than travels inside a commit, in writes that need no thread: no time passes."""
    for number in range(3):
        await file_system.write(handle, number * 32 * KIB, os.urandom(32 * KIB))


def answer_at_once(master: FakeMaster) -> None:
    master.answer_latency_seconds = 0
    master.come_back()


async def test_pauses_between_questions_for_a_master_that_is_away_differ(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many mounts that upload do not come back together."""
    asked_at: list[float] = []

    async def note_question() -> names.GetCapabilitiesResponse:
        asked_at.append(trio.current_time())
        raise MasterUnavailable

    monkeypatch.setattr(file_system.client, "get_capabilities", note_question)
    await file_system.sync.load_run(file_system.tree)
    master.go_away()
    await file_system.write_file(b"a", b"1")
    await trio.sleep(30 * RETRY_SECONDS_MAX)

    pauses = [after - before for before, after in pairwise(asked_at)]
    for pause_seconds, bound_seconds in zip(pauses, (0.2, 0.4, 0.8, 1.6, 3.2), strict=False):
        assert pause_seconds <= bound_seconds + 0.001  # of a difference of two moments
    longest = pauses[5:]
    assert len(longest) >= 20
    assert max(longest) - min(longest) > 0.1
    assert max(longest) <= RETRY_SECONDS_MAX


async def test_small_file_is_one_commit_and_no_chunk_call(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b"config.yaml", b"lr: 0.1\n")

    await file_system.make_all_durable()

    assert await published(client, run) == {b"config.yaml": b"lr: 0.1\n"}
    assert master.call_count["commit_nodes"] == 1
    assert master.call_count["put_chunk"] == 0


async def test_copying_programs_attributes_and_rename_are_folded_into_one_commit(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b".model.tmp", b"weights")
    await file_system.set_attributes(b".model.tmp", mtime_ns=1_700_000_000_000_000_001)
    await file_system.set_attributes(b".model.tmp", mode=0o600)
    await file_system.rename(b".model.tmp", b"model")

    await file_system.make_all_durable()

    node = (await tree_of(client, run))[b"model"]
    assert await published(client, run) == {b"model": b"weights"}
    assert (node.attributes.mode, node.attributes.mtime_ns) == (0o600, 1_700_000_000_000_000_001)
    assert (node.generation, node.attributes.uid, node.attributes.gid) == (1, 1000, 1000)
    assert master.call_count["commit_nodes"] == 1
    assert master.call_count["rename"] == 0


async def test_closed_file_is_committed_by_itself_within_a_second(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"a", b"1")

    await trio.sleep(QUIET_SECONDS * 2)

    assert await published(client, run) == {b"a": b"1"}


async def test_parents_are_committed_before_their_children(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.mkdir(b"a", 0o700)
    await file_system.mkdir(b"a/b", 0o711)
    await file_system.write_file(b"a/b/f", b"deep")
    node = await file_system.find(b"a/b/f")

    await file_system.uploader.make_durable([node])

    tree = await tree_of(client, run)
    assert {path: tree[path].attributes.mode for path in (b"a", b"a/b")} == {b"a": 0o700, b"a/b": 0o711}
    assert await published(client, run) == {b"a/b/f": b"deep"}
    assert master.call_count["commit_nodes"] == 1


async def test_file_moved_into_a_directory_made_later_is_committed_after_it(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"f", b"first made")
    await file_system.mkdir(b"later", 0o700)
    await file_system.rename(b"f", b"later/f")

    await file_system.make_all_durable()

    assert (await tree_of(client, run))[b"later"].attributes.mode == 0o700
    assert await published(client, run) == {b"later/f": b"first made"}


async def test_fsync_of_an_open_file_does_not_wait_for_the_publish_tick(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    handle = await file_system.create(b"state")
    await file_system.write(handle, 0, LARGE)
    began_seconds = trio.current_time()

    await file_system.fsync(handle)

    assert trio.current_time() - began_seconds < QUIET_SECONDS
    assert await published(client, run) == {b"state": LARGE}
    file_system.close_handle(handle)


async def test_fsync_of_a_directory_covers_the_names_in_it(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.mkdir(b"d")
    await file_system.write_file(b"d/f", b"1")

    await file_system.files.fsync(await file_system.find(b"d"))

    assert await published(client, run) == {b"d/f": b"1"}


async def test_unlink_of_what_was_never_sent_needs_no_master(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.mkdir(b"d")
    await file_system.write_file(b"d/f", b"1")
    master.go_away()

    await file_system.unlink(b"d/f")
    await file_system.rmdir(b"d")

    assert file_system.shown() == {}
    master.come_back()
    await file_system.make_all_durable()
    assert master.call_count["remove"] == 0
    assert list(await tree_of(client, run)) == [b""]


async def test_unlink_of_what_the_master_has_fails_while_it_is_away_and_keeps_the_name(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b"f", b"1")
    await file_system.make_all_durable()
    master.go_away()
    await wait_all_tasks_blocked()  # the watch has noticed

    with pytest.raises(MasterUnavailable):
        await file_system.unlink(b"f")

    assert list(file_system.shown()) == [b"f"]
    master.come_back()
    await file_system.unlink(b"f")
    assert await published(client, run) == {}


async def test_rename_of_what_is_not_committed_needs_no_master(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b"old", b"1")
    master.go_away()

    await file_system.rename(b"old", b"new")

    assert list(file_system.shown()) == [b"new"]
    master.come_back()
    await file_system.make_all_durable()
    assert await published(client, run) == {b"new": b"1"}
    assert master.call_count["rename"] == 0


@pytest.mark.parametrize("is_answer_lost", [False, True])
async def test_rename_during_the_first_commit_ends_at_the_new_name_alone(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_answer_lost: bool,
) -> None:
    await begin_first_commit(file_system, master, b"old")
    if is_answer_lost:
        master.go_away()

    await file_system.rename(b"old", b"new")

    await trio.sleep(2)
    answer_at_once(master)
    await file_system.make_all_durable()
    assert await published(client, run) == {b"new": b"1"}
    assert list(file_system.shown()) == [b"new"]


@pytest.mark.parametrize("is_answer_lost", [False, True])
async def test_file_removed_during_its_first_commit_does_not_come_back(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_answer_lost: bool,
) -> None:
    await begin_first_commit(file_system, master, b"f")
    if is_answer_lost:
        master.go_away()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_system.unlink, b"f")
        await trio.sleep(2)
        answer_at_once(master)

    await file_system.make_all_durable()

    assert await published(client, run) == {}
    assert file_system.shown() == {}


@pytest.mark.parametrize("is_renamed_back_and_forth", [False, True])
async def test_file_renamed_and_removed_after_a_commit_without_answer_does_not_stay_under_its_first_name(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_renamed_back_and_forth: bool,
) -> None:
    await begin_first_commit(file_system, master, b"first")
    master.go_away()
    await trio.sleep(2)
    await file_system.rename(b"first", b"second")
    if is_renamed_back_and_forth:
        await file_system.rename(b"second", b"third")
        await file_system.rename(b"third", b"second")
    answer_at_once(master)

    await file_system.unlink(b"second")

    await trio.sleep(10)  # the batch without an answer is sent again
    await file_system.make_all_durable()
    assert await published(client, run) == {}
    assert file_system.shown() == {}


async def test_file_replaced_after_a_commit_without_answer_does_not_stay_under_its_first_name(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await begin_first_commit(file_system, master, b"first")
    master.go_away()
    await trio.sleep(2)
    await file_system.rename(b"first", b"last")
    await file_system.write_file(b"second", b"2")
    await file_system.rename(b"second", b"last")
    answer_at_once(master)

    await trio.sleep(10)
    await file_system.make_all_durable()

    assert await published(client, run) == {b"last": b"2"}
    assert list(file_system.shown()) == [b"last"]


@pytest.mark.parametrize("is_removed", [True, False])
async def test_name_taken_over_during_a_commit_and_given_up_after_it_does_not_come_back(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    is_removed: bool,
) -> None:
    await file_system.write_file(b"last", b"0")
    await file_system.make_all_durable()
    master.call_count.clear()
    await begin_first_commit(file_system, master, b"tmp")
    await file_system.rename(b"tmp", b"last")
    await trio.sleep(1.0 - QUIET_SECONDS)  # the answer is there, the commit under the new name is not
    answer_at_once(master)

    if is_removed:
        await file_system.unlink(b"last")
    else:
        await file_system.rename(b"last", b"kept")

    await file_system.make_all_durable()
    assert await published(client, run) == ({} if is_removed else {b"kept": b"1"})


async def test_write_during_a_commit_is_committed_next(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await begin_first_commit(file_system, master, b"f")
    handle = await file_system.open(b"f")
    await file_system.write(handle, 0, b"FIRST and more")
    file_system.close_handle(handle)

    await file_system.make_all_durable()

    assert await published(client, run) == {b"f": b"FIRST and more"}
    assert (await tree_of(client, run))[b"f"].generation == 2


async def test_rename_of_a_published_file_sends_what_was_written_to_it_first(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"old", b"first")
    await file_system.make_all_durable()
    handle = await file_system.open(b"old")
    await file_system.append(handle, b" second")
    file_system.close_handle(handle)

    await file_system.rename(b"old", b"new")

    assert await published(client, run) == {b"new": b"first second"}


async def test_outage_is_waited_out_and_nothing_is_lost(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b"before", LARGE)
    master.go_away()
    await file_system.mkdir(b"d")
    await file_system.write_file(b"d/during", b"2")
    await trio.sleep(60)
    assert {file.path.rpartition("/")[2] for file in file_system.control.status().pending} >= {
        "before",
        "during",
    }

    master.come_back()
    await file_system.make_all_durable()

    assert await published(client, run) == {b"before": LARGE, b"d/during": b"2"}
    assert file_system.control.status().pending == []


async def test_fsync_gives_up_after_timeo_and_the_upload_goes_on(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    handle = await file_system.create(b"f")
    await file_system.write(handle, 0, b"1")
    master.go_away()

    with pytest.raises(MasterUnavailable):
        await file_system.fsync(handle)

    master.come_back()
    await trio.sleep(10)
    assert await published(client, run) == {b"f": b"1"}
    file_system.close_handle(handle)


async def test_upload_into_a_run_sealed_elsewhere_fails_visibly_and_keeps_the_bytes(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.namespace.load(file_system.tree.root)
    await file_system.write_file(b"f", b"kept")
    await seal(client, run)

    with pytest.raises(RunSealed):
        await file_system.make_all_durable()

    (pending,) = [file for file in file_system.control.status().pending if file.path.endswith("/f")]
    assert pending.state == FileState.FAILED
    assert "sealed" in pending.reason
    assert await file_system.read_file(b"f") == b"kept"
    staged = [path for path in (file_system.state_dir / "staged").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in staged] == [b"kept"]


async def test_used_up_quota_at_the_master_fails_fsync_is_one_line_in_the_log_and_keeps_the_bytes(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        raise QuotaExceeded

    handle = await file_system.create(b"f")
    await file_system.write(handle, 0, LARGE)
    with monkeypatch.context() as patched:
        patched.setattr(client, "put_chunk", refuse)
        for _ in range(3):
            with pytest.raises(QuotaExceeded):
                await file_system.fsync(handle)
            await trio.sleep(REFUSED_RETRY_SECONDS)
        (pending,) = [file for file in file_system.control.status().pending if file.path.endswith("/f")]

    assert (pending.state, pending.reason) == (FileState.FAILED, "quota exceeded")
    assert len([record for record in caplog.records if "quota exceeded" in record.getMessage()]) == 1
    await trio.sleep(REFUSED_RETRY_SECONDS)
    assert await published(client, run) == {b"f": LARGE}
    file_system.close_handle(handle)


async def test_full_master_fails_fsync_and_is_tried_again_by_itself(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    free_bytes, master.store.free_bytes = master.store.free_bytes, 10
    handle = await file_system.create(b"f")
    await file_system.write(handle, 0, LARGE)

    with pytest.raises(NoSpace):
        await file_system.fsync(handle)

    master.store.free_bytes = free_bytes
    await trio.sleep(REFUSED_RETRY_SECONDS)
    assert await published(client, run) == {b"f": LARGE}
    file_system.close_handle(handle)


async def test_chunks_that_the_master_lost_before_the_commit_are_made_again(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    handle = await file_system.create(b"f")
    await file_system.write(handle, 0, bytes(CHUNK_BYTES_MAX) + b"tail")
    node = file_system.files.node_of(handle)
    assert node.staged is not None
    while node.staged.layout.changed_bytes > len(b"tail"):
        await trio.lowlevel.checkpoint()  # no time may pass, or the file is published
    # Of the node, since asking the master would let time pass. The empty file may be there: the first write
    # is done in a thread, and for longer than the clock waits.
    assert node.published_size_bytes == 0
    master.forget_chunks()

    await file_system.fsync(handle)

    assert await published(client, run) == {b"f": bytes(CHUNK_BYTES_MAX) + b"tail"}
    file_system.close_handle(handle)


async def test_full_chunks_leave_while_the_file_is_still_open(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    handle = await file_system.create(b"f")
    for index in range(3):
        await file_system.write(handle, index * CHUNK_BYTES_MAX, bytes([index]) * CHUNK_BYTES_MAX)

    with trio.fail_after(PUBLISH_INTERVAL_SECONDS * 2):
        while master.call_count["put_chunk"] < 2:
            await trio.sleep(0.01)

    file_system.close_handle(handle)
    await file_system.make_all_durable()
    assert await chunk_lengths(client, run, b"f") == [CHUNK_BYTES_MAX] * 3
    assert master.call_count["put_chunk"] == 3


async def test_growing_file_is_published_each_second_in_short_chunks_and_merged_at_close(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    line = b"x" * KIB
    handle = await file_system.create(b"train.log")
    commit_counts = []
    for _ in range(5):
        await file_system.append(handle, line)
        await trio.sleep(PUBLISH_INTERVAL_SECONDS * 1.2)
        commit_counts.append(master.call_count["commit_nodes"])

    assert await published(client, run) == {b"train.log": line * 5}
    # Nothing is sent twice before the end, also not the first line with its name.
    assert await chunk_lengths(client, run, b"train.log") == [KIB] * 5
    assert commit_counts == [commit_counts[0] + step for step in range(5)]

    file_system.close_handle(handle)
    await file_system.make_all_durable()
    assert await published(client, run) == {b"train.log": line * 5}
    assert await chunk_lengths(client, run, b"train.log") == [5 * KIB]


async def test_new_file_that_was_emptied_and_stays_open_is_published(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    """As a lock file: whoever looks for it elsewhere must find it."""
    file_system.close_handle(await file_system.create(b"lock"))
    handles = [await file_system.open(b"lock", os.O_WRONLY | os.O_TRUNC) for _ in range(2)]

    await trio.sleep(2 * PUBLISH_INTERVAL_SECONDS)

    assert await published(client, run) == {b"lock": b""}
    for handle in handles:
        file_system.close_handle(handle)


async def test_lines_within_one_second_are_one_commit(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await file_system.create(b"train.log")
    for _ in range(100):
        await file_system.append(handle, b"epoch 1\n")

    await trio.sleep(PUBLISH_INTERVAL_SECONDS * 2)

    assert master.call_count["commit_nodes"] <= 2  # the name, perhaps, and the lines
    file_system.close_handle(handle)


async def test_one_changed_chunk_of_a_published_file_is_sent_alone(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    await file_system.write_file(b"f", b"a" * CHUNK_BYTES_MAX + b"b" * CHUNK_BYTES_MAX + LARGE)
    await file_system.make_all_durable()
    master.call_count.clear()
    handle = await file_system.open(b"f")
    await file_system.write(handle, CHUNK_BYTES_MAX + 7, b"changed")
    file_system.close_handle(handle)

    await file_system.make_all_durable()

    content = (await published(client, run))[b"f"]
    assert content[CHUNK_BYTES_MAX + 6 : CHUNK_BYTES_MAX + 15] == b"bchangedb"
    assert len(content) == 2 * CHUNK_BYTES_MAX + len(LARGE)
    assert master.call_count["put_chunk"] == 1


async def test_file_that_is_opened_again_to_append_to_it_is_neither_fetched_nor_copied(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
) -> None:
    content = b"a" * CHUNK_BYTES_MAX + b"b" * CHUNK_BYTES_MAX + LARGE
    await file_system.write_file(b"f", content)
    await file_system.make_all_durable()
    async with open_file_system(client, run, tmp_path / "other", timeo_seconds=10) as other:
        await other.find(b"f")
        master.call_count.clear()

        handle = await other.open(b"f", os.O_WRONLY | os.O_APPEND)
        await other.append(handle, b"more")

        staged = [path for path in (other.state_dir / "staged").rglob("*") if path.is_file()]
        assert sum(path.stat().st_blocks * 512 for path in staged) < 64 * KIB
        other.close_handle(handle)
        await other.make_all_durable()
    calls = {name: master.call_count[name] for name in ("read_chunk", "read_files", "put_chunk")}
    assert calls["read_chunk"] + calls["read_files"] <= 1, (
        calls
    )  # the last chunk alone, made one with its end
    assert calls["put_chunk"] <= 1
    assert await published(client, run) == {b"f": content + b"more"}


async def test_drain_sends_complete_files_newest_first_and_then_what_is_still_being_written(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """U2. While a mount ends, complete files are sent before those that are still being written, and the newest of them
    first, once the chunks that are under way have arrived.
    """
    await file_system.namespace.load(file_system.tree.root)
    log = await file_system.create(b"train.log")
    await write_at_once(file_system, log)
    for number in range(3):
        await file_system.write_file(b"small-%d" % number, b"%d" % number)
        large = await file_system.create(b"large-%d" % number)
        await write_at_once(file_system, large)
        file_system.close_handle(large)

    left = await file_system.control.drain(60.0)

    assert left.pending == []
    tree = await tree_of(client, run)
    by_revision = sorted((path for path in tree if path), key=lambda path: tree[path].revision)
    small = [path for path in by_revision if path.startswith(b"small")]
    large_ones = [path for path in by_revision if path.startswith(b"large")]
    assert small == [b"small-2", b"small-1", b"small-0"]
    assert large_ones == [b"large-2", b"large-1", b"large-0"]
    assert by_revision[-1] == b"train.log"
    file_system.close_handle(log)


async def test_drain_goes_on_past_a_file_that_needs_a_person(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.namespace.load(file_system.tree.root)
    await file_system.write_file(b"late", b"1")
    await seal(client, run)
    began_seconds = trio.current_time()

    left = await file_system.control.drain(60.0)

    (late,) = [file for file in left.pending if file.path.endswith("/late")]
    assert late.state == FileState.FAILED
    assert trio.current_time() - began_seconds < 10  # it does not wait for what patience alone will not do


async def test_revoked_token_is_a_failure_with_its_reason_and_one_line_in_the_log(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await file_system.namespace.load(file_system.tree.root)
    client.is_revoked = True
    await file_system.write_file(b"f", b"kept")
    for _ in range(3):
        left = await file_system.control.drain(60.0)
        await trio.sleep(REFUSED_RETRY_SECONDS)

    (file,) = [file for file in left.pending if file.path.endswith("/f")]
    assert file.state == FileState.FAILED
    assert "not authenticated" in file.reason
    assert len([record for record in caplog.records if "refused" in record.message]) == 1
    client.is_revoked = False
    await trio.sleep(REFUSED_RETRY_SECONDS)
    assert await published(client, run) == {b"f": b"kept"}


async def test_status_of_a_file_says_staged_uploading_and_durable(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    """U4. `cloudai status` of a file says whether it is staged, uploading, durable or failed, and why; what failed
    stays staged.
    """
    path = f"{file_system.tree.path}/f"

    def state() -> tuple[str, int, int]:
        file = file_system.control.status(path).file
        assert file is not None
        return str(file.state), file.uploaded_bytes, file.size_bytes

    await file_system.namespace.load(file_system.tree.root)
    handle = await file_system.create(b"f")
    assert state() == ("staged", 0, 0)
    await file_system.write(handle, 0, b"1" * CHUNK_BYTES_MAX + LARGE)
    while file_system.control.status(path).pending[0].uploaded_bytes == 0:
        await trio.lowlevel.checkpoint()
    assert state() == ("uploading", CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + len(LARGE))
    file_system.close_handle(handle)
    await file_system.make_all_durable()
    assert state() == ("durable", CHUNK_BYTES_MAX + len(LARGE), CHUNK_BYTES_MAX + len(LARGE))
    directory = file_system.control.status(file_system.tree.path)
    assert (directory.file, directory.durable_count, directory.pending) == (None, 1, [])


async def test_drain_ends_with_its_time_and_says_what_is_left(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    await file_system.namespace.load(file_system.tree.root)
    master.go_away()
    await file_system.write_file(b"f", LARGE)
    began_seconds = trio.current_time()

    left = await file_system.control.drain(30.0)

    assert trio.current_time() - began_seconds == pytest.approx(30.0)
    (file,) = [file for file in left.pending if file.path.endswith("/f")]
    assert (file.size_bytes, file.uploaded_bytes) == (len(LARGE), 0)


def put_order_of(client: FakeMasterClient, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The digests of the chunks that the master is given from here on, as they begin."""
    order: list[bytes] = []
    put = client.put_chunk

    async def put_chunk(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        order.append(digest)
        await put(task_id, digest, data)

    monkeypatch.setattr(client, "put_chunk", put_chunk)
    return order


async def test_log_is_published_within_its_second_while_a_backlog_goes_up(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    handle = await file_system.create(b"big.bin")
    await file_system.write(handle, 0, os.urandom(24 * CHUNK_BYTES_MAX))
    file_system.close_handle(handle)
    master.latency_seconds = 0.5  # 24 chunks take 3 s and more
    log = await file_system.create(b"train.log")
    await file_system.write(log, 0, LARGE)

    await trio.sleep(PUBLISH_INTERVAL_SECONDS + 4 * master.latency_seconds)

    master.latency_seconds = 0.0
    tree = await tree_of(client, run)
    assert tree[b"train.log"].size_bytes == len(LARGE)
    assert b"big.bin" not in tree
    file_system.close_handle(log)


async def test_log_goes_before_small_files_that_waited_longer(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file_count = 100
    line = b"one more line\n"
    order = put_order_of(client, monkeypatch)
    log = await file_system.create(b"train.log")
    await file_system.write(log, 0, LARGE)
    await file_system.fsync(log)
    order.clear()
    master.latency_seconds = 0.5  # the files take 16 s
    await file_system.append(log, line)
    for number in range(file_count):
        await file_system.write_file(b"f%d" % number, LARGE + b"%d" % number)

    while len(order) <= file_count:
        await trio.sleep(0.1)

    # Two calls a chunk, six at a time: what is sent in its first second and while it is asked for.
    assert order.index(digest_of(line)) <= 3 * PUTS_MAX
    file_system.close_handle(log)


async def test_log_does_not_wait_for_the_line_that_is_left_to_one_chunk(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = b"one more line\n"
    log = await file_system.create(b"train.log")
    await file_system.write(log, 0, LARGE)
    await file_system.fsync(log)
    begun: list[int] = []

    async def put_chunk(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        begun.append(len(data))
        if len(data) == CHUNK_BYTES_MAX:
            await trio.sleep(1000)  # none of them keeps its deadline
        await put(task_id, digest, data)

    put = client.put_chunk
    monkeypatch.setattr(client, "put_chunk", put_chunk)
    for number in range(4):
        await file_system.write_file(b"model%d" % number, os.urandom(8 * CHUNK_BYTES_MAX))
    await trio.sleep(600)
    begun.clear()
    while not begun:
        await trio.sleep(0.1)

    await file_system.append(log, line)
    await trio.sleep(PUBLISH_INTERVAL_SECONDS + 1)

    assert begun == [CHUNK_BYTES_MAX, len(line)]
    file_system.close_handle(log)


async def test_fewer_chunks_are_sent_at_once_where_they_did_not_arrive(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_flight: set[object] = set()
    lost: set[object] = set()

    async def put_chunk(task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        sent = object()
        in_flight.add(sent)
        if len(in_flight) > 1:
            lost.update(in_flight)  # the line carries one within its deadline, and not two
        try:
            await trio.sleep(5.0)
        finally:
            in_flight.discard(sent)
        if sent in lost:
            raise MasterUnavailable("the deadline is over")
        await put(task_id, digest, data)

    put = client.put_chunk
    monkeypatch.setattr(client, "put_chunk", put_chunk)
    await file_system.write_file(b"model", os.urandom(6 * CHUNK_BYTES_MAX))

    with trio.fail_after(600):
        await file_system.make_all_durable()

    assert lost
    assert master.call_count["put_chunk"] == 6


async def test_fast_writer_is_not_taken_for_a_log_because_its_upload_keeps_up(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    handle = await file_system.create(b"checkpoint")
    for _ in range(6):
        await file_system.append(handle, os.urandom(9 * MIB))
        await trio.sleep(PUBLISH_INTERVAL_SECONDS)
    file_system.close_handle(handle)

    await file_system.make_all_durable()

    assert master.call_count["put_chunk"] == 14  # 54 MiB, nothing of it twice


async def test_unchanged_chunks_of_a_checkpoint_are_asked_for_in_few_calls(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    chunks = [bytes([number]) * CHUNK_BYTES_MAX for number in range(40)]
    await file_system.write_file(b"epoch-1", b"".join(chunks))
    await file_system.make_all_durable()
    for number in (3, 13, 23, 33):
        chunks[number] = os.urandom(CHUNK_BYTES_MAX)
    before = master.call_count.copy()

    await file_system.write_file(b"epoch-2", b"".join(chunks))
    await file_system.make_all_durable()

    assert master.call_count["put_chunk"] - before["put_chunk"] == 4
    assert master.call_count["find_missing_chunks"] - before["find_missing_chunks"] <= 12


async def test_emptied_file_is_published_empty(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"f", LARGE)
    await file_system.make_all_durable()

    file_system.close_handle(await file_system.open(b"f", os.O_WRONLY | os.O_TRUNC))

    await file_system.make_all_durable()
    assert await published(client, run) == {b"f": b""}


async def test_those_who_wait_are_woken_when_what_they_wait_for_is_removed(
    clock: MockClock, file_system: FileSystemHarness, master: FakeMaster
) -> None:
    await file_system.write_file(b"f", b"1")
    master.go_away()
    node = await file_system.find(b"f")
    woken_at_seconds = []

    async def wait() -> None:
        await file_system.uploader.make_durable([node])
        woken_at_seconds.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert woken_at_seconds == []
        # Nothing of it can have reached the master.
        assert node.pending is not None
        node.pending.sent = False
        await file_system.unlink(b"f")
        removed_at_seconds = trio.current_time()

    assert woken_at_seconds == [removed_at_seconds]


async def test_file_written_as_it_was_is_not_a_new_generation(
    clock: MockClock, file_system: FileSystemHarness, client: FakeMasterClient, run: types.Run
) -> None:
    await file_system.write_file(b"f", b"same")
    await file_system.make_all_durable()
    handle = await file_system.open(b"f", os.O_RDWR | os.O_TRUNC)
    await file_system.write(handle, 0, b"same")
    file_system.close_handle(handle)

    await file_system.make_all_durable()

    assert (await tree_of(client, run))[b"f"].generation == 1


async def test_file_replaced_after_a_commit_without_answer_does_not_come_back_with_the_next_mount(
    clock: MockClock, master: FakeMaster, client: FakeMasterClient, run: types.Run, tmp_path: Path
) -> None:
    mortal = master.client(USER)
    async with open_file_system(mortal, run, tmp_path / "mount", timeo_seconds=10) as file_system:
        await begin_first_commit(file_system, master, b"first")
        master.go_away()
        await trio.sleep(2)
        await file_system.rename(b"first", b"last")
        await file_system.write_file(b"second", b"2")
        await file_system.rename(b"second", b"last")
        file_system.copy_state(tmp_path / "next")
        mortal.is_revoked = True
    answer_at_once(master)

    async with open_file_system(client, run, tmp_path / "next", timeo_seconds=10) as file_system:
        await file_system.make_all_durable()
        await trio.sleep(10)

        assert await published(client, run) == {b"last": b"2"}
        assert list(file_system.shown()) == [b"last"]
        assert read_live_state(file_system.state_dir).pending_count == 0


async def test_what_is_made_in_an_outage_is_renamed_and_removed_however_long_it_lasts(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
) -> None:
    """No commit is tried that may have arrived: the run's watch has said that nobody answers."""
    await file_system.mkdir(b"d")
    await file_system.make_all_durable()
    master.go_away()
    await wait_all_tasks_blocked()  # the watch has noticed
    for name in (b"kept", b"moved", b"removed"):
        await file_system.write_file(name, name)
    await trio.sleep(60)

    await file_system.rename(b"moved", b"here")
    await file_system.unlink(b"removed")
    assert master.call_count["commit_nodes"] == 1
    answer_at_once(master)
    await file_system.make_all_durable()

    assert await published(client, run) == {b"kept": b"kept", b"here": b"moved"}


async def test_manifest_of_a_large_file_does_not_stay_in_memory_once_it_is_closed_and_committed(
    clock: MockClock, file_system: FileSystemHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again by who reads the file."""
    monkeypatch.setattr(file_content, "CLOSED_CHUNKS_MAX", 1)
    await file_system.write_file(b"short", b"s" * CHUNK_BYTES_MAX)
    await file_system.write_file(b"large", b"l" * CHUNK_BYTES_MAX + b"end")
    handle = await file_system.create(b"open")
    await file_system.write(handle, 0, b"o" * CHUNK_BYTES_MAX + b"end")
    await file_system.make_all_durable()

    names = [b"short", b"large", b"open"]
    known = [(await file_system.find(name)).content is not None for name in names]
    assert known == [True, False, True]
    assert await file_system.read_file(b"large") == b"l" * CHUNK_BYTES_MAX + b"end"
    file_system.close_handle(handle)
    await file_system.read_file(b"short")
    known = [(await file_system.find(name)).content is not None for name in names]
    assert known == [True, False, False]


@pytest.mark.parametrize("is_closed", [True, False])
async def test_many_chunks_of_one_file_are_given_to_the_sender_in_parts(
    clock: MockClock,
    file_system: FileSystemHarness,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    is_closed: bool,
) -> None:
    """A sparse file of a TiB is one write, and a quarter of a million chunks that are not to be listed at once."""
    monkeypatch.setattr(run_uploader, "SEGMENTS_AT_ONCE_MAX", 2)
    start = file_system.uploader.sender.start
    given: list[int] = []

    def count(sending: Sending) -> None:
        given.append(len(sending._waiting))
        start(sending)

    monkeypatch.setattr(file_system.uploader.sender, "start", count)
    handle = await file_system.create(b"sparse")
    await file_system.write(handle, 5 * CHUNK_BYTES_MAX, b"end")
    if is_closed:
        file_system.close_handle(handle)
        await file_system.make_all_durable()
    else:
        await file_system.fsync(handle)

    assert await chunk_lengths(client, run, b"sparse") == [CHUNK_BYTES_MAX] * 5 + [3]
    assert sum(given) == 6
    assert max(given) == 2
    if not is_closed:
        file_system.close_handle(handle)


@pytest.mark.parametrize("is_silent", [True, False])
async def test_outage_is_waited_out_once_by_all_names_beside_what_is_pending(
    clock: MockClock,
    master: FakeMaster,
    client: FakeMasterClient,
    run: types.Run,
    tmp_path: Path,
    *,
    is_silent: bool,
) -> None:
    """`mv` of a hundred files would wait a hundred times, and cannot be killed meanwhile."""
    async with open_file_system(client, run, tmp_path / "mount", timeo_seconds=10) as file_system:
        await file_system.mkdir(b"d")
        for number in range(6):
            await file_system.write_file(b"d/f%d" % number, b"stored")
        await file_system.make_all_durable()
        if is_silent:
            master.latency_seconds = master.news_latency_seconds = 3600
        else:
            master.go_away()
        await file_system.write_file(b"d/new", b"waits")
        await file_system.set_attributes(b"d", mtime_ns=1)
        began_seconds = trio.current_time()

        for number in range(6):
            with pytest.raises(MasterUnavailable):
                await file_system.rename(b"d/f%d" % number, b"d/moved%d" % number)

        assert trio.current_time() - began_seconds <= 10 + 5 * 1.01
        master.latency_seconds = master.news_latency_seconds = 0
        master.come_back()
        await trio.sleep(60)
        await file_system.rename(b"d/f0", b"d/moved0")
        assert await file_system.find(b"d/moved0")


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("has_mode", [False, True], ids=["alone", "with-mode"])
async def test_truncation_that_a_full_disk_refuses_changes_nothing(
    clock: MockClock,
    file_system: FileSystemHarness,
    client: FakeMasterClient,
    run: types.Run,
    monkeypatch: pytest.MonkeyPatch,
    is_open: bool,
    has_mode: bool,
) -> None:
    handle = await file_system.create(b"f")
    await file_system.write(handle, 0, b"content")
    await file_system.fsync(handle)
    if not is_open:
        file_system.close_handle(handle)
        await file_system.make_all_durable()
    if has_mode:
        await file_system.set_attributes(b"f", mode=0o600)
    before = file_system.shown()[b"f"]

    with full_journal(monkeypatch):
        with pytest.raises(OSError, match="No space"):
            await file_system.truncate(b"f", 0)
        with pytest.raises(OSError, match="No space"):
            await file_system.open(b"f", os.O_RDWR | os.O_TRUNC)

    assert file_system.shown()[b"f"] == before
    assert await file_system.read_file(b"f") == b"content"
    if is_open:
        await file_system.write(handle, len(b"content"), b" and more")
        file_system.close_handle(handle)
        await file_system.make_all_durable()
        assert await published(client, run) == {b"f": b"content and more"}
