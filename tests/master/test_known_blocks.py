from __future__ import annotations

import secrets

import pytest

from cloudai_master.chunk_places import ChunkPlace
from cloudai_master.known_blocks import ENTRY_BYTES, KnownBlocks
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.limits import BLOCK_BYTES
from support.local_storage import LocalStorage, counted_queries

USER_KEY = 1
LONG = [secrets.token_bytes(BLOCK_BYTES + 1) for _ in range(4)]


def place_of(data: bytes) -> ChunkPlace:
    return ChunkPlace(digest_of(data), len(data))


PLACES = [place_of(data) for data in LONG]


@pytest.fixture
def known(storage: LocalStorage) -> KnownBlocks:
    storage.put(*LONG)
    return KnownBlocks(storage.database)


def test_neighbours_come_with_the_first_look(known: KnownBlocks) -> None:
    assert known.found_lately(USER_KEY, PLACES[0]) is None
    assert known.find(USER_KEY, PLACES[0], PLACES[:3]) == block_digests_of(LONG[0])
    with counted_queries() as queries:
        for place, data in zip(PLACES[:3], LONG[:3], strict=True):
            assert known.find(USER_KEY, place, []) == block_digests_of(data)
            assert known.found_lately(USER_KEY, place) == block_digests_of(data)
    assert queries == []
    assert known.found_lately(USER_KEY, PLACES[3]) is None


def test_chunk_of_one_block_needs_no_look(known: KnownBlocks) -> None:
    small = place_of(b"x" * BLOCK_BYTES)
    with counted_queries() as queries:
        assert known.find(USER_KEY, small, []) == small.digest
        assert known.found_lately(USER_KEY, small) == small.digest
    assert queries == []


def test_what_is_not_recorded_is_looked_for_again(storage: LocalStorage, known: KnownBlocks) -> None:
    later = secrets.token_bytes(BLOCK_BYTES + 1)
    assert known.find(USER_KEY, place_of(later), []) is None
    storage.put(later)
    assert known.find(USER_KEY, place_of(later), []) == block_digests_of(later)


def test_chunk_of_another_user_is_not_found(known: KnownBlocks) -> None:
    known.find(USER_KEY, PLACES[0], [])
    assert known.find(USER_KEY + 1, PLACES[0], []) is None
    assert known.found_lately(USER_KEY + 1, PLACES[0]) is None


def test_memory_is_bounded(storage: LocalStorage) -> None:
    storage.put(*LONG)
    known = KnownBlocks(storage.database, bytes_max=2 * (ENTRY_BYTES + 64))
    for place in PLACES:
        known.find(USER_KEY, place, [])
    remembered = [known.found_lately(USER_KEY, place) is not None for place in PLACES]
    assert remembered == [False, False, True, True]
