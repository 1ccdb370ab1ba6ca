from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudai_master.authorization import Run, find_run
from cloudai_master.chunk_places import (
    NEIGHBOURS,
    SLAB_CHUNKS,
    ChunkPlace,
    ChunkPlaces,
    FileGeneration,
    locate_only_chunks,
)
from cloudai_model.chunks import digest_of
from cloudai_model.errors import InvalidRequest, IsADirectory, NotFound
from cloudai_model.limits import READ_FILES_MAX
from cloudai_proto.storage.v1 import types_pb2 as types
from support.local_storage import CALLER, LocalStorage, counted_queries
from support.storage_requests import directory_commit, file_commit, manifest_commit


@pytest.fixture
def run(storage: LocalStorage) -> Run:
    with storage.database.read() as connection:
        return find_run(connection, CALLER, storage.run.task_id)


@pytest.fixture
def places(storage: LocalStorage) -> ChunkPlaces:
    return ChunkPlaces(storage.database)


def place_of(data: bytes) -> ChunkPlace:
    return ChunkPlace(digest_of(data), len(data))


def long_file(storage: LocalStorage) -> types.Node:
    """Of a slab and two more chunks, which are the numbers 0, 1, 2, ... in turn and not all of one length."""
    storage.put(*(b"%d" % number for number in range(20)))
    return storage.commit(manifest_commit(b"long", [b"%d" % (i % 20) for i in range(SLAB_CHUNKS + 2)]))


def test_chunks_of_a_slab_are_one_look_at_the_database(
    storage: LocalStorage, run: Run, places: ChunkPlaces
) -> None:
    node = long_file(storage)
    assert places.located_lately(run, node.node_id, 1, 3) is None
    assert places.locate(run, node.node_id, 1, 3) == place_of(b"3")
    with counted_queries() as queries:
        for index in (0, 12, SLAB_CHUNKS - 1):
            expected = place_of(b"%d" % (index % 20))
            assert places.locate(run, node.node_id, 1, index) == expected
            assert places.located_lately(run, node.node_id, 1, index) == expected
        assert queries == []
        assert places.locate(run, node.node_id, 1, SLAB_CHUNKS + 1) == place_of(b"17")
        assert queries != []


def test_chunk_that_is_not_there_is_not_found(storage: LocalStorage, run: Run, places: ChunkPlaces) -> None:
    node = long_file(storage)
    for chunk_index in (SLAB_CHUNKS + 2, 2 * SLAB_CHUNKS, 2**32 - 1):
        for _ in range(2):
            with pytest.raises(NotFound):
                places.locate(run, node.node_id, 1, chunk_index)
            assert places.located_lately(run, node.node_id, 1, chunk_index) is None
    for generation in (0, 2):
        with pytest.raises(NotFound):
            places.locate(run, node.node_id, generation, 0)
    with pytest.raises(NotFound):
        places.locate(run, 1 << 40, 1, 0)
    directory = storage.commit(directory_commit(b"d"))
    with pytest.raises(IsADirectory):
        places.locate(run, directory.node_id, 0, 0)


def test_generations_are_remembered_apart(storage: LocalStorage, run: Run, places: ChunkPlaces) -> None:
    node = storage.commit_file(b"f", b"one")
    places.locate(run, node.node_id, 1, 0)
    storage.append(node, b"two")
    storage.commit_file(b"f", b"three", node=node.node_id)
    with pytest.raises(NotFound):
        places.locate(run, node.node_id, 1, 1)
    assert places.locate(run, node.node_id, 2, 1) == place_of(b"two")
    assert places.locate(run, node.node_id, 3, 0) == place_of(b"three")
    assert places.locate(run, node.node_id, 1, 0) == place_of(b"one")


def test_neighbours_are_those_remembered_around_the_chunk(
    storage: LocalStorage, run: Run, places: ChunkPlaces
) -> None:
    node = long_file(storage)
    assert places.neighbours(run, node.node_id, 1, 0) == []
    places.locate(run, node.node_id, 1, 0)
    places.locate(run, node.node_id, 1, SLAB_CHUNKS)
    expected = [place_of(b"%d" % (i % 20)) for i in range(NEIGHBOURS, 2 * NEIGHBOURS)]
    assert places.neighbours(run, node.node_id, 1, NEIGHBOURS + 5) == expected
    assert places.neighbours(run, node.node_id, 1, SLAB_CHUNKS + 1) == [place_of(b"16"), place_of(b"17")]


def test_memory_is_bounded_and_what_was_asked_for_last_stays(storage: LocalStorage, run: Run) -> None:
    places = ChunkPlaces(storage.database, bytes_max=10_000)
    nodes = [storage.commit(file_commit(b"f%d" % index, b"data")) for index in range(100)]
    for node in nodes:
        places.locate(run, node.node_id, 1, 0)
    remembered = [places.located_lately(run, node.node_id, 1, 0) is not None for node in nodes]
    assert 5 < sum(remembered) < 20
    assert remembered == sorted(remembered)


def test_threads_ask_at_the_same_time(storage: LocalStorage, run: Run) -> None:
    # So small that they push each other's slabs out.
    places = ChunkPlaces(storage.database, bytes_max=2_000)
    nodes = [storage.commit(file_commit(b"f%d" % index, b"%d" % index)) for index in range(8)]

    def look(number: int) -> bool:
        return all(
            places.locate(run, nodes[(number + step) % 8].node_id, 1, 0)
            == place_of(b"%d" % ((number + step) % 8))
            for step in range(100)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(look, range(8)))


def test_only_chunks_of_files_of_now_are_one_query(storage: LocalStorage, run: Run) -> None:
    nodes = [storage.commit(file_commit(b"f%d" % index, b"%d" % index)) for index in range(30)]
    versions = [(node.node_id, 1) for node in reversed(nodes)]
    with storage.database.read() as connection, counted_queries() as queries:
        found = locate_only_chunks(connection, run, versions)
    assert found == [place_of(b"%d" % index) for index in reversed(range(30))]
    assert len(queries) == 1


def test_only_chunks_of_earlier_generations_are_found_in_three_queries(
    storage: LocalStorage, run: Run
) -> None:
    replaced = [
        storage.commit_file(b"r%d" % index, b"old %d" % index) for index in range(READ_FILES_MAX // 2)
    ]
    for node in replaced:
        storage.commit_file(b"", b"new", node=node.node_id)
    grown = [storage.commit_file(b"g%d" % index, b"%d" % index) for index in range(READ_FILES_MAX // 2)]
    for node in grown:
        storage.append(node, b"more")
    versions = [(node.node_id, 1) for node in replaced + grown]
    with storage.database.read() as connection, counted_queries() as queries:
        found = locate_only_chunks(connection, run, versions)
    expected = [place_of(b"old %d" % index) for index in range(READ_FILES_MAX // 2)]
    assert found == expected + [place_of(b"%d" % index) for index in range(READ_FILES_MAX // 2)]
    assert len(queries) == 3


def test_what_has_no_only_chunk_says_why(storage: LocalStorage, run: Run) -> None:
    file = storage.commit_file(b"f", b"one")
    grown = storage.append(file, b"two")
    storage.commit_file(b"", b"three", b"four", node=file.node_id)
    empty = storage.commit(file_commit(b"empty", b""))
    directory = storage.commit(directory_commit(b"d"))
    expected: dict[FileGeneration, type[Exception]] = {
        (file.node_id, 1): ChunkPlace,  # type: ignore[dict-item]
        (grown.node_id, 2): InvalidRequest,
        (file.node_id, 3): InvalidRequest,
        (file.node_id, 4): NotFound,
        (file.node_id, 0): NotFound,
        (empty.node_id, 1): InvalidRequest,
        (directory.node_id, 0): IsADirectory,
        (1 << 40, 1): NotFound,
    }
    with storage.database.read() as connection:
        found = locate_only_chunks(connection, run, list(expected))
        assert locate_only_chunks(connection, run, []) == []
    assert [type(place) for place in found] == list(expected.values())
