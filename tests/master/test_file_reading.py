"""ReadChunk and ReadFiles of the service: ranges, blocks, damage, and what they ask of database and disk."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_master.chunk_ownership import stored_lengths
from cloudai_master.file_reader import AT_ONCE_ANSWER_BYTES_MAX, AT_ONCE_BYTES_MAX, read_chunk_bytes_max
from cloudai_master.schema import chunk_blocks
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.errors import (
    ChunkDamaged,
    CloudAIError,
    InvalidRequest,
    MasterUnavailable,
    MissingChunks,
    NoSpace,
    NotFound,
)
from cloudai_model.limits import BLOCK_BYTES, CHUNK_BYTES_MAX, READ_FILES_BYTES_MAX, READ_FILES_MAX
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import types_pb2 as types
from support.local_storage import CALLER, OTHER_CALLER, LocalStorage, counted_queries
from support.storage_requests import directory_commit, file_commit, manifest_commit

Refused = Callable[[], None]

TEN = b"0123456789"
LONG = secrets.token_bytes(3 * BLOCK_BYTES + 100)


def recorded_blocks(storage: LocalStorage) -> int:
    with storage.database.read() as connection:
        return connection.execute(select(func.count()).select_from(chunk_blocks)).scalar_one()


def forget_blocks(storage: LocalStorage) -> None:
    """As an earlier version left it."""
    with storage.database.write() as transaction:
        transaction.connection.execute(delete(chunk_blocks))


def is_recorded(storage: LocalStorage, data: bytes) -> bool:
    with storage.database.read() as connection:
        return bool(stored_lengths(connection, 1, [digest_of(data)]))


# Ranges.


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes", "data"),
    [(0, 0, TEN), (3, 4, b"3456"), (7, 0, b"789"), (9, 1, b"9")],
)
@pytest.mark.parametrize("verify", [False, True])
def test_range_of_a_chunk_is_read(
    storage: LocalStorage, offset_bytes: int, length_bytes: int, data: bytes, verify: bool
) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    fields = {"offset_bytes": offset_bytes, "length_bytes": length_bytes, "verify": verify}
    assert storage.read(node, **fields).data == data


@pytest.mark.parametrize(("offset_bytes", "length_bytes"), [(10, 0), (10, 1), (5, 6), (2**32 - 1, 2**32 - 1)])
@pytest.mark.parametrize("verify", [False, True])
def test_range_outside_the_chunk_is_refused(
    storage: LocalStorage, offset_bytes: int, length_bytes: int, verify: bool
) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    storage.read(node)
    fields = {"offset_bytes": offset_bytes, "length_bytes": length_bytes, "verify": verify}
    assert storage.read_at_once(node, **fields) is None
    with pytest.raises(InvalidRequest):
        storage.read(node, **fields)


def test_range_costs_its_bytes_of_the_disk(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    node = storage.commit_file(b"f", LONG)
    read: list[int] = []
    pread = os.pread

    def noted(descriptor: int, length_bytes: int, offset_bytes: int) -> bytes:
        read.append(length_bytes)
        return pread(descriptor, length_bytes, offset_bytes)

    monkeypatch.setattr(os, "pread", noted)
    found = storage.read(node, offset_bytes=BLOCK_BYTES, length_bytes=4096, with_block_digests=True)
    assert found == (LONG[BLOCK_BYTES : BLOCK_BYTES + 4096], block_digests_of(LONG))
    assert read == [4096]


# What a read asks the database.


def test_second_read_of_a_file_asks_the_database_nothing(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", LONG, b"other chunk")
    storage.read(node, with_block_digests=True)
    with counted_queries() as queries:
        assert storage.read(node).data == LONG
        assert storage.read(node, 1).data == b"other chunk"
        assert storage.read(node, with_block_digests=True).block_digests == block_digests_of(LONG)
    assert queries == []


def test_block_digests_of_the_chunks_around_come_with_one_query(storage: LocalStorage) -> None:
    data = [bytes([index]) * (BLOCK_BYTES + 1) for index in range(8)]
    node = storage.commit_file(b"f", *data)
    storage.read(node, 3)
    with counted_queries() as queries:
        for index in (3, 0, 7):
            found = storage.read(node, index, length_bytes=1, with_block_digests=True)
            assert found.block_digests == block_digests_of(data[index])
    assert len(queries) == 1


def test_removed_run_is_refused_at_once_by_the_master_that_removed_it(storage: LocalStorage) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    storage.read(node)
    storage.remove_run((b"f", node))
    assert storage.read_at_once(node) is None
    with pytest.raises(NotFound):
        storage.read(node)


def test_somebody_else_is_refused_as_if_it_were_not_there(storage: LocalStorage) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    storage.read(node)
    request = storage.read_request(node)
    absent = storage.read_request(node)
    absent.task_id = "no-such-run"

    def refusal(call: Any, asked: chunks.ReadChunkRequest) -> str:
        with pytest.raises(NotFound) as caught:
            call(OTHER_CALLER, asked)
        return str(caught.value)

    expected = refusal(storage.service.read_chunk, absent).replace("no-such-run", storage.run.task_id)
    assert refusal(storage.service.read_chunk, request) == expected
    assert refusal(storage.service.read_chunk_at_once, request) == expected


# Answers at once, for the event loop.


def test_what_was_read_before_is_answered_at_once(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", LONG)
    fields = {"offset_bytes": 100, "length_bytes": 4096, "with_block_digests": True}
    assert storage.read_at_once(node, **fields) is None
    expected = storage.read(node, **fields)
    with counted_queries() as queries:
        assert storage.read_at_once(node, **fields) == expected
    assert queries == []


def test_what_takes_long_is_not_answered_at_once(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = storage.commit_file(b"f", secrets.token_bytes(AT_ONCE_BYTES_MAX + 1))
    storage.read(node)
    assert storage.read_at_once(node, length_bytes=AT_ONCE_BYTES_MAX) is not None
    assert storage.read_at_once(node) is None
    assert storage.read_at_once(node, length_bytes=1, verify=True) is None
    assert storage.read_at_once(node, length_bytes=1, with_block_digests=True) is None

    def would_wait(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "not in memory")

    monkeypatch.setattr(os, "preadv", would_wait)
    assert storage.read_at_once(node, length_bytes=1) is None


def test_longest_answer_at_once_is_as_long_as_it_says(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", secrets.token_bytes(CHUNK_BYTES_MAX))
    request = storage.read_request(node, length_bytes=AT_ONCE_BYTES_MAX, with_block_digests=True)
    storage.service.read_chunk(CALLER, request)
    answer = storage.service.read_chunk_at_once(CALLER, request)
    assert answer is not None
    assert AT_ONCE_ANSWER_BYTES_MAX - 5 < len(answer) <= AT_ONCE_ANSWER_BYTES_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"length_bytes": 1},
        {"length_bytes": 1, "with_block_digests": True},
        {"length_bytes": CHUNK_BYTES_MAX, "with_block_digests": True},
    ],
)
def test_answer_is_not_longer_than_its_request_lets_expect(
    storage: LocalStorage, fields: dict[str, Any]
) -> None:
    node = storage.commit_file(b"f", secrets.token_bytes(CHUNK_BYTES_MAX))
    request = storage.read_request(node, **fields)
    expected_bytes = read_chunk_bytes_max(request)
    assert expected_bytes - 10 <= len(storage.service.read_chunk(CALLER, request)) <= expected_bytes


def test_request_that_reads_the_whole_chunk_lets_expect_as_much() -> None:
    assert read_chunk_bytes_max(chunks.ReadChunkRequest(length_bytes=1, verify=True)) > CHUNK_BYTES_MAX
    assert read_chunk_bytes_max(chunks.ReadChunkRequest(length_bytes=2**32 - 1)) < CHUNK_BYTES_MAX + 100


def test_what_is_wrong_is_left_to_the_read_that_may_wait(storage: LocalStorage) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    storage.read(node)
    assert storage.read_at_once(node, 1) is None
    storage.chunk_path(TEN).write_bytes(b"short")
    assert storage.read_at_once(node) is None
    storage.chunk_path(TEN).unlink()
    assert storage.read_at_once(node) is None


# Block digests.


@pytest.mark.parametrize("size_bytes", [1, BLOCK_BYTES])
def test_chunk_of_one_block_has_its_own_digest_for_it(storage: LocalStorage, size_bytes: int) -> None:
    data = bytes(size_bytes)
    node = storage.commit_file(b"f", data)
    assert storage.read(node, with_block_digests=True) == (data, digest_of(data))
    assert recorded_blocks(storage) == 0


@pytest.mark.parametrize("size_bytes", [BLOCK_BYTES + 1, 2 * BLOCK_BYTES, CHUNK_BYTES_MAX])
def test_block_digests_are_recorded_when_a_chunk_is_put(storage: LocalStorage, size_bytes: int) -> None:
    data = secrets.token_bytes(size_bytes)
    node = storage.commit_file(b"f", data)
    assert recorded_blocks(storage) == 1
    storage.put(data)
    assert storage.read(node, with_block_digests=True) == (data, block_digests_of(data))
    assert storage.read(node).block_digests == b""


def test_block_digests_of_a_chunk_from_earlier_are_made_once(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", LONG)
    forget_blocks(storage)
    found = storage.read(node, length_bytes=1, with_block_digests=True)
    assert found == (LONG[:1], block_digests_of(LONG))
    assert recorded_blocks(storage) == 1
    storage.read(node, length_bytes=1, with_block_digests=True)
    assert recorded_blocks(storage) == 1


def test_putting_a_chunk_from_earlier_again_records_its_blocks(storage: LocalStorage) -> None:
    storage.commit_file(b"f", LONG)
    forget_blocks(storage)
    storage.put(LONG)
    assert recorded_blocks(storage) == 1


def test_block_digests_are_never_made_of_damaged_bytes(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", LONG)
    forget_blocks(storage)
    storage.damage(LONG)
    with pytest.raises(ChunkDamaged):
        storage.read(node, length_bytes=1, with_block_digests=True)
    assert recorded_blocks(storage) == 0
    assert not is_recorded(storage, LONG)


def test_chunk_that_is_forgotten_loses_its_blocks_and_gets_them_back(storage: LocalStorage) -> None:
    node = storage.commit_file(b"f", LONG)
    storage.damage(LONG)
    with pytest.raises(ChunkDamaged):
        storage.read(node, verify=True)
    assert recorded_blocks(storage) == 0
    storage.put(LONG)
    assert recorded_blocks(storage) == 1
    assert storage.read(node, verify=True, with_block_digests=True) == (LONG, block_digests_of(LONG))


# Damage.


def test_damaged_chunk_is_sent_as_it_is_unless_verify_is_asked_for(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    node = storage.commit(file_commit(b"dir/file", TEN))
    storage.damage(TEN)
    assert storage.read(node).data == b"1123456789"
    assert storage.read_at_once(node) == (b"1123456789", b"")
    assert caplog.records == []
    with pytest.raises(ChunkDamaged) as caught:
        storage.read(node, offset_bytes=5, length_bytes=1, verify=True)
    assert caught.value.fields == {"node_id": node.node_id, "chunk_index": 0}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message.endswith(
        f": user-123/task/{storage.run.name}/dir/file, node {node.node_id}, chunk 0"
    )
    assert "123456789" not in record.message


@pytest.mark.parametrize("damage", ["flipped", "gone", "short"])
def test_chunk_found_damaged_counts_as_missing_until_it_is_put_again(
    storage: LocalStorage, damage: str
) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    if damage == "gone":
        storage.chunk_path(TEN).unlink()
    else:
        storage.chunk_path(TEN).write_bytes(b"1123456789" if damage == "flipped" else b"short")
    with pytest.raises(ChunkDamaged):
        storage.read(node, verify=damage == "flipped")
    assert not is_recorded(storage, TEN)
    with pytest.raises(MissingChunks):
        storage.commit(manifest_commit(b"copy", [TEN]))
    storage.put(TEN)
    assert storage.read(node, verify=True).data == TEN
    storage.commit(manifest_commit(b"copy", [TEN]))


@pytest.fixture(params=[NoSpace, MasterUnavailable])
def refused(
    request: pytest.FixtureRequest, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Makes the database full or busy for who writes, from when it is called."""

    def refuse() -> None:
        raise request.param("as the test wants it")

    return lambda: monkeypatch.setattr(storage.database, "write", refuse)


def test_damage_is_named_and_told_while_the_database_takes_no_writes(
    storage: LocalStorage, refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    gone, good = storage.commit(file_commit(b"gone", b"gone")), storage.commit(file_commit(b"good", b"good"))
    storage.chunk_path(b"gone").unlink()
    refused()
    with pytest.raises(ChunkDamaged) as caught:
        storage.read(gone)
    assert caught.value.fields == {"node_id": gone.node_id, "chunk_index": 0}
    damaged, whole = read_files(storage, *versions_of([gone, good]))
    assert (type(damaged), whole) == (ChunkDamaged, b"good")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2
    assert f"/gone, node {gone.node_id}, chunk 0" in caplog.records[0].message
    assert f"chunk {digest_of(b'gone').hex()} is not set aside" in caplog.records[1].message
    assert is_recorded(storage, b"gone")


# Many small files.


def read_files(storage: LocalStorage, *versions: tuple[int, int]) -> list[bytes | CloudAIError]:
    request = chunks.ReadFilesRequest(task_id=storage.run.task_id)
    for node_id, generation in versions:
        request.files.add(node_id=node_id, generation=generation)
    return [
        error_from_detail(file.error) if file.HasField("error") else file.data
        for file in storage.service.read_files(CALLER, request).files
    ]


def versions_of(nodes: Sequence[types.Node]) -> list[tuple[int, int]]:
    return [(node.node_id, node.generation) for node in nodes]


def test_files_are_read_in_the_order_of_the_request(storage: LocalStorage) -> None:
    nodes = [storage.commit(file_commit(b"f%d" % index, b"%d" % index)) for index in range(9)]
    versions = versions_of(nodes)
    assert read_files(storage, *reversed(versions)) == [b"%d" % index for index in reversed(range(9))]
    assert read_files(storage, versions[3], versions[3]) == [b"3", b"3"]
    assert read_files(storage) == []


def test_most_files_of_one_call_are_two_queries(storage: LocalStorage) -> None:
    nodes = [storage.commit(file_commit(b"f%d" % index, b"%d" % index)) for index in range(READ_FILES_MAX)]
    with counted_queries() as queries:
        assert len(read_files(storage, *versions_of(nodes))) == READ_FILES_MAX
    assert len(queries) == 2
    with pytest.raises(InvalidRequest):
        read_files(storage, *versions_of(nodes), (1, 1))


def test_answer_ends_before_it_is_too_long_but_not_before_the_first_file(storage: LocalStorage) -> None:
    third = READ_FILES_BYTES_MAX // 3
    data = [bytes([index]) * third for index in range(4)]
    nodes = [storage.commit_file(b"f%d" % index, chunk) for index, chunk in enumerate(data)]
    assert read_files(storage, *versions_of(nodes)) == data[:3]
    full = storage.commit_file(b"full", bytes(CHUNK_BYTES_MAX))
    assert read_files(storage, *versions_of([full, nodes[0]])) == [bytes(CHUNK_BYTES_MAX)]
    assert read_files(storage, *versions_of([nodes[0], full, nodes[1]])) == data[:1]


def test_file_that_cannot_be_read_is_an_error_in_its_place(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    good, gone, directory = (
        storage.commit(file_commit(b"good", b"good")),
        storage.commit(file_commit(b"gone", b"gone")),
        storage.commit(directory_commit(b"d")),
    )
    long = storage.commit_file(b"long", b"1", b"2")
    storage.chunk_path(b"gone").unlink()
    found = read_files(storage, (gone.node_id, 1), (1 << 40, 1), *versions_of([long, directory, good]))
    assert [type(one).__name__ for one in found[:-1]] == [
        "ChunkDamaged",
        "NotFound",
        "InvalidRequest",
        "IsADirectory",
    ]
    assert found[-1] == b"good"
    assert [record.message.split("/")[-1].split(",")[0] for record in caplog.records] == ["gone"]
    assert not is_recorded(storage, b"gone")


def test_files_of_a_run_that_is_not_ours_are_not_found(storage: LocalStorage) -> None:
    node = storage.commit(file_commit(b"f", TEN))
    request = chunks.ReadFilesRequest(task_id=storage.run.task_id)
    request.files.add(node_id=node.node_id, generation=1)
    with pytest.raises(NotFound):
        storage.service.read_files(OTHER_CALLER, request)
