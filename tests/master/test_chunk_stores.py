"""The suite that every ChunkStore passes, and what the one on disk promises beyond it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cloudai_master.chunk_store import READ_BYTES, ChunkStore, ChunkUnreachable, StoredChunk
from cloudai_master.disk_chunk_store import SYNC_EACH_MAX, DiskChunkStore
from cloudai_model.chunks import digest_of
from cloudai_model.errors import ChunkDamaged, CloudAIError, InternalError, InvalidName
from cloudai_model.limits import CHUNK_BYTES_MAX
from fakes.memory_chunk_store import MemoryChunkStore
from support.direct_writes import note_direct_writes
from support.other_kinds import OTHER_KINDS, put_in_place

DATA = b"0123456789"
DIGEST = digest_of(DATA)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ChunkStore:
    return DiskChunkStore(tmp_path) if request.param == "disk" else MemoryChunkStore()


def test_put_chunk_is_read_back_in_ranges(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    assert store.read("user-123", DIGEST, 0, 10) == DATA
    assert store.read("user-123", DIGEST, 3, 4) == b"3456"
    assert store.has("user-123", DIGEST, 10)


def test_what_is_in_memory_is_read_at_once(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    assert store.read_at_once("user-123", DIGEST, 0, 10) == DATA
    assert store.read_at_once("user-123", DIGEST, 3, 4) == b"3456"


def test_what_is_not_there_is_nothing_to_be_read_at_once(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    assert store.read_at_once("user-456", DIGEST, 0, 10) is None
    assert store.read_at_once("user-123", digest_of(b""), 0, 1) is None
    assert store.read_at_once("user-123", DIGEST, 5, 6) is None


def test_large_batch_is_read_back(store: ChunkStore) -> None:
    batch = {digest_of(b"%d" % i): b"%d" % i for i in range(SYNC_EACH_MAX * 4)}
    store.put("user-123", batch)
    assert {digest: store.read("user-123", digest, 0, len(data)) for digest, data in batch.items()} == batch
    assert {chunk.digest for chunk in store.list("user-123")} == set(batch)


def test_chunk_of_another_owner_is_not_there(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    assert not store.has("user-456", DIGEST, 10)
    assert list(store.list("user-456")) == []
    store.put("user-456", {digest_of(b"theirs"): b"theirs"})
    with pytest.raises(ChunkUnreachable):
        store.read("user-456", DIGEST, 0, 10)


@pytest.mark.parametrize("size_bytes", [1, READ_BYTES - 1, READ_BYTES, 2 * READ_BYTES + 1])
def test_whole_chunk_is_read_past_the_cache(store: ChunkStore, size_bytes: int) -> None:
    data = b"0123456789" * (size_bytes // 10) + b"x" * (size_bytes % 10)
    store.put("user-123", {digest_of(data): data})
    assert b"".join(store.read_past_cache("user-123", digest_of(data))) == data


def test_whole_chunk_is_written_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(CHUNK_BYTES_MAX)
    store = DiskChunkStore(tmp_path)
    is_direct = note_direct_writes(monkeypatch)

    store.put("user-123", {digest_of(data): data})

    assert is_direct
    assert all(is_direct)


def test_chunk_that_is_gone_is_damage_past_the_cache_too(store: ChunkStore) -> None:
    store.put("user-123", {digest_of(b"another"): b"another"})
    with pytest.raises(ChunkUnreachable):
        list(store.read_past_cache("user-123", DIGEST))


def test_read_beyond_the_end_is_damage(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    with pytest.raises(ChunkDamaged):
        store.read("user-123", DIGEST, 5, 6)
    assert not store.has("user-123", DIGEST, 11)


def test_put_again_heals(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: b"dam"})
    store.put("user-123", {DIGEST: DATA})
    assert store.read("user-123", DIGEST, 0, 10) == DATA


def test_deleted_chunk_is_gone(store: ChunkStore) -> None:
    store.put("user-123", {DIGEST: DATA})
    assert list(store.list("user-123")) == [StoredChunk(DIGEST, 10)]
    store.delete("user-123", DIGEST)
    store.delete("user-123", DIGEST)
    assert list(store.list("user-123")) == []


def test_space_is_told(store: ChunkStore) -> None:
    assert 0 < store.space().free_bytes <= store.space().size_bytes


def test_owner_is_a_folder_of_the_store(tmp_path: Path) -> None:
    DiskChunkStore(tmp_path).put("Zoë 王", {DIGEST: DATA})
    name = DIGEST.hex()
    assert (tmp_path / "chunks" / "Zoë 王" / name[:2] / name).read_bytes() == DATA


@pytest.mark.parametrize("owner", ["..", "a/b", "", ".hidden"])
def test_owner_that_would_leave_the_store_is_refused(tmp_path: Path, owner: str) -> None:
    with pytest.raises(InvalidName):
        DiskChunkStore(tmp_path).put(owner, {DIGEST: DATA})


@pytest.mark.parametrize("refuses", ["open", "readv"])
def test_file_system_that_cannot_pass_by_the_cache_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    store = DiskChunkStore(tmp_path)
    store.put("user-123", {DIGEST: DATA})
    real_open, real_readv = os.open, os.readv

    def refusing_open(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return real_open(path, flags, *rest)

    def refusing_readv(descriptor: int, buffers: list[bytearray]) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return real_readv(descriptor, buffers)

    monkeypatch.setattr(os, refuses, refusing_open if refuses == "open" else refusing_readv)
    assert b"".join(store.read_past_cache("user-123", DIGEST)) == DATA


def errors_of_reading(store: ChunkStore) -> list[CloudAIError]:
    """What both ways to read the chunk raise."""
    with pytest.raises(CloudAIError) as read:
        store.read("user-123", DIGEST, 0, 10)
    with pytest.raises(CloudAIError) as past_cache:
        list(store.read_past_cache("user-123", DIGEST))
    return [read.value, past_cache.value]


@pytest.mark.parametrize("call", ["open", "read"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EIO, ChunkUnreachable),
        (errno.EUCLEAN, ChunkUnreachable),
        (errno.EMFILE, InternalError),
        (errno.ENFILE, InternalError),
        (errno.EACCES, InternalError),
        (errno.ENOMEM, InternalError),
        (errno.ESTALE, InternalError),
    ],
)
def test_what_the_disk_cannot_read_is_damage_and_no_other_failure_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[CloudAIError]
) -> None:
    store = DiskChunkStore(tmp_path)
    store.put("user-123", {DIGEST: DATA})

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        for name in ["open"] if call == "open" else ["pread", "readv"]:
            patch.setattr(os, name, fail)
        errors = errors_of_reading(store)
    assert [type(error) for error in errors] == [expected] * 2
    assert [error.fields for error in errors] == [{"errno": code}] * 2


@pytest.mark.parametrize("is_there", [False, True])
def test_chunk_that_is_gone_with_the_folder_of_its_user_is_no_damage(tmp_path: Path, is_there: bool) -> None:
    store = DiskChunkStore(tmp_path)
    store.put("user-123", {DIGEST: DATA})
    (tmp_path / "chunks").rename(tmp_path / "away")
    if is_there:
        (tmp_path / "chunks").mkdir()
    assert [type(error) for error in errors_of_reading(store)] == [InternalError] * 2


def test_store_beside_a_running_master_leaves_its_half_written_files(tmp_path: Path) -> None:
    DiskChunkStore(tmp_path).put("user-123", {DIGEST: DATA})
    half = tmp_path / "incoming" / "half"
    half.write_bytes(b"0123")
    assert DiskChunkStore.beside(tmp_path).read("user-123", DIGEST, 0, 10) == DATA
    assert half.read_bytes() == b"0123"


def test_half_written_files_are_cleared_at_the_start(tmp_path: Path) -> None:
    DiskChunkStore(tmp_path).put("user-123", {DIGEST: DATA})
    (tmp_path / "incoming" / "half").write_bytes(b"0123")
    store = DiskChunkStore(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert store.read("user-123", DIGEST, 0, 10) == DATA


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_file_in_the_place_of_a_chunk_is_damage_and_holds_up_nobody(
    tmp_path: Path, kind: str
) -> None:
    store = DiskChunkStore(tmp_path)
    store.put("user-123", {DIGEST: DATA})
    (path,) = (tmp_path / "chunks" / "user-123").glob("??/*")
    put_in_place(path, kind)
    assert store.read_at_once("user-123", DIGEST, 0, len(DATA)) is None
    with pytest.raises(ChunkDamaged):
        store.read("user-123", DIGEST, 0, len(DATA))
    with pytest.raises(ChunkDamaged):
        list(store.read_past_cache("user-123", DIGEST))
