from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections import defaultdict
from itertools import count
from pathlib import Path

import pytest

from cloudai_master.chunk_store import READ_BYTES
from cloudai_master.damage import FILES_NAMED_MAX, DamagedChunk, DamagedFile
from cloudai_master.scrub import (
    FORGOTTEN,
    UNREACHABLE_IN_A_ROW_MAX,
    Looked,
    Pace,
    Position,
    find_forgotten,
    scrub,
    stored_amount,
)
from cloudai_master.scrub_report import Interrupts
from cloudai_model.chunks import digest_of
from cloudai_model.errors import InternalError
from cloudai_proto.storage.v1 import names_pb2 as names
from support.local_storage import OTHER_CALLER, LocalStorage
from support.master_process import PROGRAM, MasterProcess
from support.storage_requests import (
    OTHER_USER,
    USER,
    commit_one,
    file_commit,
    make_run,
    manifest_commit,
    put,
    read_file,
    request_id,
)
from support.terminal import TerminalProgram

NO_PACE = Pace(0)
SECONDS_MAX = 20


def damaged_in(storage: LocalStorage) -> list[DamagedChunk]:
    """What a pass over everything finds."""
    looked = list(scrub(storage.database, storage.store, NO_PACE, Position()))
    return [one.damaged for one in looked if one.damaged is not None]


def test_what_is_whole_is_left_alone(storage: LocalStorage, caplog: pytest.LogCaptureFixture) -> None:
    data = [secrets.token_bytes(size) for size in (1, READ_BYTES, 3 * READ_BYTES + 5)]
    node = storage.commit_file(b"f", *data)
    looked = list(scrub(storage.database, storage.store, NO_PACE, Position()))
    assert sorted(one.length_bytes for one in looked) == [len(chunk) for chunk in data]
    assert [one.damaged for one in looked] == [None] * 3
    assert stored_amount(storage.database) == (3, sum(map(len, data)))
    assert [storage.read(node, index).data for index in range(3)] == data
    assert caplog.records == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flipped", "its bytes are not those of its digest"),
        ("gone", "the chunk's file is gone"),
        ("short", "the chunk's file has another length"),
        ("long", "the chunk's file has another length"),
    ],
)
def test_damaged_chunk_is_named_with_its_files_set_aside_and_healed_by_the_next_writer(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture, damage: str, reason: str
) -> None:
    data = b"the content"
    storage.commit_file(b"whole", b"whole")
    node = storage.commit_file(b"dir/file", b"before", data)
    copy = storage.commit(file_commit(b"copy", data))
    path = storage.chunk_path(data)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": b"The content", "short": b"the", "long": data + b"more"}[damage])
    top = f"user-123/task/{storage.run.name}"
    (found,) = damaged_in(storage)
    expected = {
        DamagedFile(path=f"{top}/copy", node_id=copy.node_id, chunk_index=0, is_current=True),
        DamagedFile(path=f"{top}/dir/file", node_id=node.node_id, chunk_index=1, is_current=True),
    }
    assert (found.user, found.digest, found.reason) == (USER, digest_of(data), reason)
    assert (set(found.files), found.file_count) == (expected, 2)
    (record,) = caplog.records
    assert (record.levelname, f"{top}/dir/file, node {node.node_id}, chunk 1" in record.message) == (
        "ERROR",
        True,
    )
    assert "content" not in record.message
    # It is reported until it is healed, which the next writer does, being asked for it.
    (missing,) = find_forgotten(storage.database)
    assert (missing.digest, missing.reason, missing.file_count) == (digest_of(data), FORGOTTEN, 2)
    assert damaged_in(storage) == []
    storage.put(data)
    assert (damaged_in(storage), find_forgotten(storage.database)) == ([], [])
    assert storage.read(node, 1, verify=True).data == data


def test_chunk_without_a_file_of_earlier_content_and_without_a_name_say_so(storage: LocalStorage) -> None:
    storage.put(b"orphan")
    replaced = storage.commit_file(b"f", b"old")
    storage.commit_file(b"", b"new", node=replaced.node_id)
    removed = storage.commit_file(b"removed", b"removed")
    storage.remove((b"removed", removed))
    for data in (b"orphan", b"old", b"removed"):
        storage.damage(data)
    texts = {found.digest: str(found) for found in damaged_in(storage)}
    assert texts[digest_of(b"orphan")].endswith(": no file refers to it")
    assert texts[digest_of(b"old")].endswith(f"/f, node {replaced.node_id}, chunk 0 of an earlier content")
    assert texts[digest_of(b"removed")].endswith(
        f"/(node {removed.node_id}), node {removed.node_id}, chunk 0"
    )


def test_files_of_removed_runs_are_not_missed(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", b"data")
    storage.remove_run((b"f", node))
    storage.damage(b"data")
    (found,) = damaged_in(storage)
    assert (found.files, find_forgotten(storage.database)) == ((), [])


def test_chunk_of_many_files_names_the_first_and_counts_the_rest(storage: LocalStorage) -> None:
    for index in range(FILES_NAMED_MAX + 3):
        storage.commit(file_commit(b"f%d" % index, b"same"))
    storage.damage(b"same")
    (found,) = damaged_in(storage)
    assert (len(found.files), found.file_count) == (FILES_NAMED_MAX, FILES_NAMED_MAX + 3)
    assert str(found).endswith(", and 3 more")


def test_users_are_looked_at_apart(storage: LocalStorage) -> None:
    """The same bytes, stored by two users, damaged for one."""
    storage.commit_file(b"f", b"same")
    request = names.CreateRunRequest(request_id=request_id(), user=OTHER_USER, task="task")
    theirs = storage.service.create_run(OTHER_CALLER, request).run
    commit = names.CommitNodesRequest(
        request_id=request_id(), task_id=theirs.task_id, commits=[file_commit(b"theirs", b"same")]
    )
    storage.service.commit_nodes(OTHER_CALLER, commit)
    storage.damage(b"same")
    (found,) = damaged_in(storage)
    assert (found.user, found.file_count) == (USER, 1)


def test_pass_goes_on_after_a_position(storage: LocalStorage) -> None:
    data = [b"%d" % index for index in range(600)]
    for start in range(0, 600, 100):
        storage.commit_batch([(b"f" + chunk, chunk) for chunk in data[start : start + 100]])
    everything = list(scrub(storage.database, storage.store, NO_PACE, Position()))
    assert {one.position.digest for one in everything} == set(map(digest_of, data))
    rest = list(scrub(storage.database, storage.store, NO_PACE, everything[399].position))
    assert rest == everything[400:]


def test_chunk_that_is_healed_between_two_looks_is_not_set_aside(storage: LocalStorage) -> None:
    data = bytes(READ_BYTES + 1)
    storage.commit_file(b"f", data)
    storage.damage(data)

    def heal(_: float) -> None:
        storage.chunk_path(data).write_bytes(data)

    assert [one.damaged for one in scrub(storage.database, storage.store, Pace(1, heal), Position())] == [
        None
    ]


# What is no damage.


def pass_that_fails(storage: LocalStorage) -> list[Looked]:
    """What it has looked at until the store or the scrub raises InternalError."""
    looked: list[Looked] = []
    with pytest.raises(InternalError):
        looked.extend(scrub(storage.database, storage.store, NO_PACE, Position()))
    return looked


def store_chunks(storage: LocalStorage, count: int) -> list[bytes]:
    """So many chunks of one file, in the order of a pass."""
    data = sorted((b"%d" % index for index in range(count)), key=digest_of)
    storage.commit_file(b"f", *data)
    return data


def test_process_without_a_free_descriptor_sets_nothing_aside(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store_chunks(storage, 3)

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert pass_that_fails(storage) == []
    assert (stored_amount(storage.database).chunk_count, caplog.records) == (3, [])
    assert damaged_in(storage) == []


def test_store_whose_disk_is_not_there_loses_nothing(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    store_chunks(storage, 3)
    chunks_folder = storage.data_dir.path / "chunks"
    chunks_folder.rename(storage.data_dir.path / "away")
    assert pass_that_fails(storage) == []
    chunks_folder.mkdir()
    assert pass_that_fails(storage) == []
    chunks_folder.rmdir()
    (storage.data_dir.path / "away").rename(chunks_folder)
    assert (stored_amount(storage.database).chunk_count, caplog.records) == (3, [])
    assert damaged_in(storage) == []


@pytest.mark.parametrize("failure", ["gone", "unreadable"])
def test_more_chunks_in_a_row_than_get_lost_one_by_one_end_the_pass(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    data = store_chunks(storage, UNREACHABLE_IN_A_ROW_MAX + 4)
    lost = data[2:-1]
    if failure == "gone":
        for chunk in lost:
            storage.chunk_path(chunk).unlink()
    else:
        paths, real_open = {str(storage.chunk_path(chunk)) for chunk in lost}, os.open

        def failing_open(path: str, *rest: int) -> int:
            if str(path) in paths:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real_open(path, *rest)

        monkeypatch.setattr(os, "open", failing_open)
    looked = pass_that_fails(storage)
    assert [one.position.digest for one in looked] == list(map(digest_of, data[:2]))
    assert (stored_amount(storage.database).chunk_count, caplog.records) == (len(data), [])


@pytest.mark.parametrize("is_last", [False, True])
def test_as_many_chunks_in_a_row_as_may_get_lost_are_set_aside_in_their_order(
    storage: LocalStorage, is_last: bool
) -> None:
    data = store_chunks(storage, UNREACHABLE_IN_A_ROW_MAX + 2)
    lost = data[2:] if is_last else data[1:-1]
    for chunk in lost:
        storage.chunk_path(chunk).unlink()
    looked = list(scrub(storage.database, storage.store, NO_PACE, Position()))
    assert [one.position.digest for one in looked] == list(map(digest_of, data))
    assert [one.damaged.digest for one in looked if one.damaged] == list(map(digest_of, lost))
    assert stored_amount(storage.database).chunk_count == 2


def test_folder_that_was_lost_does_not_end_the_pass(storage: LocalStorage) -> None:
    folders: defaultdict[int, list[bytes]] = defaultdict(list)
    for number in count():
        data = b"%d" % number
        folders[digest_of(data)[0]].append(data)
        if len(lost := folders[digest_of(data)[0]]) > UNREACHABLE_IN_A_ROW_MAX + 1:
            break
    neighbours = [data for folder in folders.values() if folder is not lost for data in folder[:1]]
    for start in range(0, len(lost) + len(neighbours), 100):
        storage.put(*(lost + neighbours)[start : start + 100])
    shutil.rmtree(storage.chunk_path(lost[0]).parent)
    found = [one.digest for one in damaged_in(storage)]
    assert found == sorted(map(digest_of, lost))


def test_lost_chunks_that_are_not_in_a_row_are_set_aside_however_many(storage: LocalStorage) -> None:
    data = store_chunks(storage, 2 * UNREACHABLE_IN_A_ROW_MAX + 4)
    for chunk in data[::2]:
        storage.chunk_path(chunk).unlink()
    assert [one.digest for one in damaged_in(storage)] == list(map(digest_of, data[::2]))


def test_chunk_that_is_back_when_its_neighbour_was_read_is_not_set_aside(storage: LocalStorage) -> None:
    lost, neighbour = sorted((bytes(10), bytes(11)), key=digest_of)
    storage.commit_file(b"f", lost, neighbour)
    storage.chunk_path(lost).unlink()

    def heal(_: float) -> None:
        storage.chunk_path(lost).write_bytes(lost)

    looked = scrub(storage.database, storage.store, Pace(1, heal), Position())
    assert [one.damaged for one in looked] == [None, None]


def test_rate_is_kept_and_idle_time_is_not_made_up_for() -> None:
    now_seconds = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_seconds[0] += seconds

    pace = Pace(1000, sleep, lambda: now_seconds[0])
    pace.keep(500)
    now_seconds[0] += 0.25
    pace.keep(500)
    now_seconds[0] += 60
    pace.keep(500)
    assert slept == [0.5, 0.5, 0.5]
    Pace(0, sleep, lambda: now_seconds[0]).keep(1 << 40)
    assert len(slept) == 3


# The command.


async def test_command_reports_damage_beside_a_running_master(master: MasterProcess) -> None:
    data = [secrets.token_bytes(1000) for _ in range(3)]
    async with master.connect(master.make_token(USER)) as client:
        run = await make_run(client, USER)
        await put(client, run, *data)
        node = await commit_one(client, run, manifest_commit(b"dir/f", data))
        done = master.run("scrub")
        assert (done.stdout, done.stderr) == ("3 chunks, 0.0 MiB: 0 damaged or missing\n", "")
        name = digest_of(data[1]).hex()
        path = master.data_dir / "chunks" / USER / name[:2] / name
        path.write_bytes(data[0])
        half = master.data_dir / "incoming" / "half"
        half.write_bytes(b"")
        for attempt in range(2):
            done = master.run("scrub", "--json", check=False)
            report = json.loads(done.stdout)
            (damaged,) = report.pop("damaged")
            assert done.returncode == 1
            assert report == {
                "complete": True,
                "chunks": 3 - attempt,
                "bytes": 1000 * (3 - attempt),
            }
            assert (damaged["user"], damaged["digest"], damaged["file_count"]) == (USER, name, 1)
            assert damaged["files"] == [
                {
                    "path": f"{USER}/{run.task}/{run.name}/dir/f",
                    "node_id": node.node_id,
                    "chunk_index": 1,
                    "is_current": True,
                }
            ]
        assert half.exists()
        assert await client.find_missing_chunks(run.task_id, [digest_of(data[1])]) == {digest_of(data[1])}
        await put(client, run, data[1])
        assert await read_file(client, run, node) == b"".join(data)
    assert master.run("scrub").returncode == 0


def test_command_refuses_what_is_no_data_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(PROGRAM), "scrub", "--data-dir", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cloudai-master: there is no master's data in {tmp_path / 'nothing'}\n"
    assert not (tmp_path / "nothing").exists()


async def make_chunk(master: MasterProcess) -> None:
    async with master.connect(master.make_token(USER)) as client:
        run = await make_run(client, USER)
        await put(client, run, secrets.token_bytes(2 * READ_BYTES))


async def test_command_shows_a_bar_on_a_terminal_and_ctrl_c_ends_it(master: MasterProcess) -> None:
    await make_chunk(master)
    # So slowly that it ends by the key alone.
    arguments = ("scrub", "--data-dir", master.data_dir, "--bytes-per-second", "1")
    with TerminalProgram(PROGRAM, *map(str, arguments)) as program:
        program.wait_for_text("0/1.0 MiB")
        program.press(b"\x03")
        assert program.wait_end() == 130
        assert "interrupted after 0 chunks, 0.0 MiB: 0 damaged or missing" in program.text
        assert "Traceback" not in program.text


async def test_command_ends_on_a_terminal_with_its_report_alone(master: MasterProcess) -> None:
    await make_chunk(master)
    with TerminalProgram(PROGRAM, "scrub", "--data-dir", str(master.data_dir)) as program:
        assert program.wait_end() == 0
        assert program.text.split("\n")[-2].strip() == "1 chunks, 1.0 MiB: 0 damaged or missing"


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_what_is_done() -> None:
    """In the middle of SQLAlchemy it left a trace on the terminal."""
    interrupts = Interrupts()
    with interrupts.held_back():
        interrupts.check()
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            interrupts.sleep(SECONDS_MAX)


def test_ctrl_c_that_is_pressed_twice_does_not_wait() -> None:
    with Interrupts().held_back():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_ctrl_c_means_what_it_did_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts().held_back():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
