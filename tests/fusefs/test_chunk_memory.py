"""The one budget of memory, against a list of what was used when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudai_fusefs.chunk_memory import ENTRY_BYTES, ChunkMemory, Key
from cloudai_model.limits import KIB

KEYS: list[Key] = [b"a", b"b", (b"a", 0), (b"a", 1), (b"b", 0)]


class ListedMemory:
    """The same, simply: what was used last stands last."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.kept: dict[Key, bytes] = {}

    @property
    def used_bytes(self) -> int:
        return sum(len(data) + ENTRY_BYTES for data in self.kept.values())

    def get(self, key: Key) -> bytes | None:
        data = self.kept.pop(key, None)
        if data is not None:
            self.kept[key] = data
        return data

    def put(self, key: Key, data: bytes) -> None:
        if len(data) + ENTRY_BYTES > self._bytes_max:
            return
        self.kept.pop(key, None)
        self.kept[key] = data
        while self.used_bytes > self._bytes_max:
            del self.kept[next(iter(self.kept))]


STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "drop"]), st.sampled_from(KEYS), st.integers(0, 1200)),
    max_size=60,
)


@given(steps=STEPS, bytes_max=st.sampled_from([0, 1, ENTRY_BYTES, 1000, 3000, 10_000]))
def test_least_recently_used_goes_first_and_the_budget_is_never_exceeded(
    steps: list[tuple[str, Key, int]], bytes_max: int
) -> None:
    memory, listed = ChunkMemory(bytes_max), ListedMemory(bytes_max)
    for what, key, length in steps:
        data = repr(key).encode() * (1 + length // 300)
        if what == "put":
            memory.put(key, data)
            listed.put(key, data)
        elif what == "get":
            assert memory.get(key) == listed.get(key)
        else:
            memory.drop(key)
            listed.kept.pop(key, None)
        assert memory.used_bytes == listed.used_bytes <= bytes_max
        assert [key in memory for key in KEYS] == [key in listed.kept for key in KEYS]


def test_memory_of_nothing_keeps_nothing() -> None:
    memory = ChunkMemory(0)
    memory.put(b"digest", b"")
    memory.drop(b"digest")
    assert (memory.get(b"digest"), b"digest" in memory, memory.used_bytes) == (None, False, 0)


def test_what_is_over_the_whole_budget_pushes_nothing_out() -> None:
    memory = ChunkMemory(KIB)
    memory.put(b"small", b"s")
    memory.put(b"large", bytes(KIB))
    assert memory.get(b"small") == b"s"
    assert memory.get(b"large") is None


def test_tiny_chunks_are_bounded_too() -> None:
    memory = ChunkMemory(10 * ENTRY_BYTES)
    for number in range(100):
        memory.put(b"%d" % number, b"")
    assert sum(b"%d" % number in memory for number in range(100)) == 10


def test_what_was_asked_whether_it_is_there_is_not_used_by_that() -> None:
    memory = ChunkMemory(2 * ENTRY_BYTES + 2)
    memory.put(b"old", b"1")
    memory.put(b"new", b"2")
    assert b"old" in memory
    memory.put(b"newest", b"3")
    assert [key in memory for key in (b"old", b"new", b"newest")] == [False, True, True]
