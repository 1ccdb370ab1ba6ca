"""Sends the chunks of staged files: read, hash, ask which of them the master lacks, put.

A few workers serve all files of the mount. The files that have chunks to send take turns by their rank, one
chunk at a time where ranks are equal; short ones have workers of their own, so that a log's last second never
stands behind a checkpoint of 10 GiB. What arrived has arrived: after a failure the next attempt goes on there.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.layout import Segment
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.staged_file import StagedFile
from cloudai_model.errors import CloudAIError, InternalError, MasterUnavailable
from cloudai_model.limits import MIB

# 4 in flight fill the wire: 0.5-0.85 GB/s.
CHUNKS_IN_FLIGHT_MAX: Final = 4

COPIES_IN_FLIGHT: Final = 3
"""Of each: the bytes, the message, and what gRPC sends."""
SHORT_SENDINGS_MAX: Final = 2
"""More of them for what is short as a whole: a log's last second, a small file."""

SHORT_BYTES_MAX: Final = MIB
"""What counts as short: a tenth of a second at 10 MB/s."""

PUTS_MAX: Final = CHUNKS_IN_FLIGHT_MAX + SHORT_SENDINGS_MAX

ASKED_WITH_DATA_MAX: Final = 3
"""Chunks of one file that a worker asks for in one call, after the first; all of them are in memory meanwhile:
4 x 3 x 4 MiB. A call costs both ends about 0.5 ms of CPU, as much as hashing 4 MiB."""

ASKED_AT_ONCE_MAX: Final = 16
"""The same where the master had what was asked for last, as of a checkpoint of which little has changed: their
bytes are let go, and what is missing after all is read again."""

RAISED_AFTER_PUTS: Final = 16
"""Chunks that arrived before one more is sent at once again: a deadline that they missed together costs a minute,
on a line where fewer of them keep it."""

HASH_THREADS_MAX: Final = 2
"""One thread hashes 6.8 GB/s; two keep a slow read of the staging disk from stopping the other."""

Rank: TypeAlias = tuple[int, int]
"""Lower goes first."""

FIRST: Final = 0
"""The first part of the rank of what somebody waits for."""


class Sending:
    """The segments of one staged file that are to be sent. `on_end` is called once, with the first failure."""

    def __init__(
        self,
        task_id: str,
        staged: StagedFile,
        segments: Iterable[Segment],
        rank: Callable[[], Rank],
        on_end: Callable[[CloudAIError | None], None],
    ) -> None:
        self.task_id = task_id
        self.staged = staged
        self.rank = rank
        self._on_end = on_end
        self._waiting = deque(segments)
        self._busy_count = 0
        self._has_begun = False
        self.expects_missing = True  # of what comes next: as the last answer was
        self._failure: CloudAIError | None = None
        self.is_short = sum(segment.length_bytes for segment in self._waiting) <= SHORT_BYTES_MAX

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[Segment]:
        """The next of its segments: one at first, so that nothing is held up, then a few."""
        count_max = 1 if not self._has_begun else self._count_max
        count = min(len(self._waiting), count_max)
        self._has_begun = True
        self._busy_count += 1
        return [self._waiting.popleft() for _ in range(count)]

    @property
    def _count_max(self) -> int:
        return ASKED_WITH_DATA_MAX if self.expects_missing else ASKED_AT_ONCE_MAX

    @property
    def is_short_and_waited_for(self) -> bool:
        """Whether it is short and somebody waits for it: then it shares the line with what is on it, whatever that is.

        Its workers bound how many there are.
        """
        return self.is_short and self.rank()[0] == FIRST

    def fail(self, error: CloudAIError) -> None:
        """What has not begun is given up."""
        self._failure = self._failure or error
        self._waiting.clear()

    def give_back(self) -> None:
        """What was taken last by one worker has been dealt with."""
        self._busy_count -= 1
        if not self._busy_count and not self._waiting:
            self._on_end(self._failure)


class ChunkSender:
    """The way of chunks from the staged files of a mount to its master."""

    def __init__(self, client: MasterClient, reader: ChunkReader, nursery: trio.Nursery) -> None:
        self._client = client
        self._reader = reader
        self._nursery = nursery
        self._hash_threads = trio.CapacityLimiter(HASH_THREADS_MAX)
        self._short_hash_threads = trio.CapacityLimiter(1)  # a log's second waits for no read of a slow disk
        self._lanes = (
            _Lane(workers_max=CHUNKS_IN_FLIGHT_MAX),
            _Lane(workers_max=SHORT_SENDINGS_MAX),
        )
        self._turns = itertools.count()
        # Halved when chunks do not arrive: four in flight share a line, and each has the same deadline.
        self._puts = trio.CapacityLimiter(PUTS_MAX)
        self._arrived_count = 0
        self.sent_bytes = 0

    def start(self, sending: Sending) -> None:
        """Sends the segments that have not changed meanwhile, in its turn. There must be some."""
        self._put(sending)

    def reorder(self) -> None:
        """The ranks have changed."""
        for lane in self._lanes:
            waiting = [(sending.rank(), turn, sending) for _, turn, sending in lane.waiting]
            heapq.heapify(waiting)
            lane.waiting = waiting

    def _put(self, sending: Sending) -> None:
        waiting = self._lanes[sending.is_short].waiting
        heapq.heappush(waiting, (sending.rank(), next(self._turns), sending))
        # A short one may be served by any worker, a long one leaves the workers of the short ones alone.
        for number, lane in enumerate(self._lanes):
            if lane.worker_count < lane.workers_max and (sending.is_short or number == 0):
                lane.worker_count += 1
                self._nursery.start_soon(keep_running, "the sending of chunks", self._work, number)
                return

    def _next(self, number: int) -> Sending | None:
        """Whose turn it is: of all for the workers of lane 0, of the short ones for those of lane 1."""
        lanes = [lane for lane in self._lanes[number:] if lane.waiting]
        if not lanes:
            return None
        lane = min(lanes, key=lambda lane: lane.waiting[0])
        return heapq.heappop(lane.waiting)[2]

    async def _work(self, number: int) -> None:
        while (sending := self._next(number)) is not None:
            if not sending.is_waiting:
                continue  # it has failed
            segments = sending.take()
            if sending.is_waiting:
                self._put(sending)
            try:
                await self._send(sending, segments)
            except CloudAIError as error:
                sending.fail(error)
            except OSError as error:
                sending.fail(InternalError(f"staged bytes cannot be read: {error.strerror}"))
            except Exception:
                sending.fail(InternalError("see the mount's log"))
                raise
            finally:
                sending.give_back()
        self._lanes[number].worker_count -= 1

    async def _send(self, sending: Sending, segments: Sequence[Segment]) -> None:
        hash_threads = self._short_hash_threads if sending.is_short else self._hash_threads
        keeps_data = len(segments) <= ASKED_WITH_DATA_MAX
        made: list[tuple[Segment, bytes, bytes]] = []
        for segment in segments:
            data, digest = await sending.staged.read_with_digest(
                segment.start_bytes, segment.length_bytes, hash_threads
            )
            if digest:  # else it is another segment now
                made.append((segment, digest, data if keeps_data else b""))
        if not made:
            return
        missing = await self._client.find_missing_chunks(
            sending.task_id, list(dict.fromkeys(digest for _, digest, _ in made))
        )
        sending.expects_missing = bool(missing)
        made.reverse()
        while made:
            segment, digest, data = made.pop()
            if digest in missing:
                if not data:
                    data, digest_now = await sending.staged.read_with_digest(
                        segment.start_bytes, segment.length_bytes, hash_threads
                    )
                    if digest_now != digest:
                        continue  # written to meanwhile: it is another segment now
                if sending.is_short_and_waited_for:
                    await self._client.put_chunk(sending.task_id, digest, data)
                else:
                    await self._put_chunk(sending.task_id, digest, data)
                missing.discard(digest)
                self.sent_bytes += len(data)
            if data:
                self._reader.keep_written(digest, data)
            sending.staged.layout.note_stored(segment, digest)

    async def _put_chunk(self, task_id: str, digest: bytes, data: bytes) -> None:
        async with self._puts:
            try:
                await self._client.put_chunk(task_id, digest, data)
            except MasterUnavailable:
                self._puts.total_tokens = max(1, self._puts.total_tokens // 2)
                self._arrived_count = 0
                raise
        self._arrived_count += 1
        if self._arrived_count % RAISED_AFTER_PUTS == 0:
            self._puts.total_tokens = min(PUTS_MAX, self._puts.total_tokens + 1)


class _Lane:
    """Those who wait for a worker, and how many workers there are that serve them first."""

    def __init__(self, *, workers_max: int) -> None:
        self.workers_max = workers_max
        self.worker_count = 0
        self.waiting: list[tuple[Rank, int, Sending]] = []
