"""The reading calls of a master and nothing else, for tests that hold its answers back and spoil them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import trio

from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.wire_chunks import ChunkAnswer, ChunkData
from cloudai_model.chunks import Chunk, Manifest, block_digests_of, digest_of
from cloudai_model.errors import NotFound
from cloudai_model.limits import READ_FILES_BYTES_MAX

SpoilRange = Callable[[ChunkData], ChunkData]
SpoilFiles = Callable[[list[bytes | None]], list[bytes | None]]


class RangeCall(NamedTuple):
    """One call of read_range."""

    chunk_index: int
    offset_bytes: int
    length_bytes: int
    with_block_digests: bool


class FilesOnlyMaster:
    """Holds one file, as its chunks, per node id. Answers of any call wait for the gate."""

    def __init__(self) -> None:
        self.files: dict[int, list[bytes]] = {}
        self.calls: Counter[tuple[str, int, int]] = Counter()
        """Of read_chunk, by task id, node id and chunk index."""
        self.verified: list[bool] = []
        """Of each call of read_chunk, whether the master was to verify."""
        self.range_calls: list[RangeCall] = []
        self.batch_calls: list[list[int]] = []
        """Of read_files: the node ids."""
        self.gate = trio.Event()
        self.gate.set()
        self.errors: list[Exception] = []  # raised one per call before any answer
        self.range_errors: list[Exception] = []  # the same, of read_range alone
        self.batch_errors: list[Exception] = []  # the same, of read_files alone
        self.refused_task_id = ""
        self.refused_node_ids: set[int] = set()  # by read_chunk alone
        self.damage_count = 0  # answers of read_chunk still to be damaged
        self.spoil_range: SpoilRange | None = None
        self.spoil_files: SpoilFiles | None = None
        self.in_flight = 0
        self.in_flight_most = 0
        self._called = trio.Event()

    @property
    def client(self) -> MasterClient:
        return cast(MasterClient, self)

    def add_file(self, parts: list[bytes], *, node_id: int = 1, task_id: str = "run-1") -> FileContent:
        self.files[node_id] = parts
        return FileContent(
            task_id=task_id,
            node_id=node_id,
            generation=1,
            manifest=Manifest(Chunk(len(part), digest_of(part)) for part in parts),
            label="user-123/task/run/file",
        )

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        self.calls[task_id, node_id, chunk_index] += 1
        self.verified.append(verify)
        await self._arrive(task_id, [])
        if node_id in self.refused_node_ids:
            raise NotFound(node_id=node_id)
        data = self.files[node_id][chunk_index]
        if self.damage_count:
            self.damage_count -= 1
            data = b"X" + data[1:]
        return ChunkAnswer(memoryview(data), digest_of(data), block_digests_of(data))

    async def read_range(
        self,
        task_id: str,
        node_id: int,
        generation: int,
        chunk_index: int,
        offset_bytes: int,
        length_bytes: int,
        *,
        with_block_digests: bool,
    ) -> ChunkData:
        self.range_calls.append(RangeCall(chunk_index, offset_bytes, length_bytes, with_block_digests))
        await self._arrive(task_id, self.range_errors)
        chunk = self.files[node_id][chunk_index]
        # In a message of its own, as on the wire.
        data = memoryview(bytes(chunk[offset_bytes : offset_bytes + length_bytes]))
        answer = ChunkData(data, block_digests_of(chunk) if with_block_digests else b"")
        return answer if self.spoil_range is None else self.spoil_range(answer)

    async def read_files(self, task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        self.batch_calls.append([node_id for node_id, _ in files])
        await self._arrive(task_id, self.batch_errors)
        answers: list[bytes | None] = []
        room_bytes = READ_FILES_BYTES_MAX
        for node_id, _ in files:
            parts = self.files.get(node_id, [])
            if len(parts) != 1:
                answers.append(None)
                continue
            room_bytes -= len(parts[0])
            if room_bytes < 0 and answers:
                break
            answers.append(parts[0])
        return answers if self.spoil_files is None else self.spoil_files(answers)

    async def wait_called(self, count: int) -> None:
        """Returns once that many calls have come; raises trio.TooSlowError after five seconds."""
        with trio.fail_after(5):
            while self.calls.total() + len(self.range_calls) + len(self.batch_calls) < count:
                await self._called.wait()

    async def _arrive(self, task_id: str, errors: list[Exception]) -> None:
        self._called.set()
        self._called = trio.Event()
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            await self.gate.wait()
            await trio.lowlevel.checkpoint()
        finally:
            self.in_flight -= 1
        if task_id == self.refused_task_id:
            raise NotFound(task_id=task_id)
        for waiting in (self.errors, errors):
            if waiting:
                raise waiting.pop(0)
