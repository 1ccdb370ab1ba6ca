"""A master client with patience: a call that was not answered is made again, until `timeo` is over.

It may do so blindly: every mutating request carries its request id, every other call changes nothing.
All other errors are answers, and pass at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, ParamSpec, TypeVar

import trio
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.wire_chunks import ChunkAnswer, ChunkData
from cloudai_model.errors import CloudAIError, MasterUnavailable
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

RETRY_PAUSE_SECONDS_FIRST: Final = 0.2
RETRY_PAUSE_SECONDS_MAX: Final = 2.0
"""Pauses are drawn from [0, 0.2], [0, 0.2], [0, 0.4], ... [0, 2]: full jitter, so that the clients of a master that
comes back do not come back together; soon, since a kernel request waits."""

LAST_CHANCE_SECONDS: Final = 1.0
"""What one attempt is given when the master has been silent for all of timeo."""

WAIT_SECONDS_MIN: Final = 0.01
"""More than sums of times are rounded by: what is left of a patience passes."""

P = ParamSpec("P")
T = TypeVar("T")


class RetryingMasterClient:
    """A MasterClient that repeats each call of another on MasterUnavailable.

    Every call raises the last MasterUnavailable once `timeo_seconds` have passed since it began, or since the
    master fell silent and a short last chance after that; a call in flight is cancelled then and may have
    been carried out. Cancelled: the same. `get_capabilities`, which asks whether the master is there, and
    `watch`, whose reader must list anew when it broke, are not repeated.
    """

    def __init__(self, client: MasterClient, *, timeo_seconds: float) -> None:
        self._client = client
        self._timeo_seconds = timeo_seconds
        self._is_connected = False
        self._silent_since_seconds = math.inf  # on trio's clock; infinite: it answered last time
        self._answered_at_seconds = -math.inf
        self._hushed_until_seconds = -math.inf  # a last chance was given in vain just now

    @property
    def is_connected(self) -> bool:
        """Whether the last call, or message of a watch, was answered, be it by a refusal.

        False before the first.
        """
        return self._is_connected

    @property
    def answered_at_seconds(self) -> float:
        """When a call, or message of a watch, was last answered, by trio's clock; -inf: never."""
        return self._answered_at_seconds

    async def get_capabilities(self) -> names.GetCapabilitiesResponse:
        return await self.note_outcome(self._client.get_capabilities)

    async def get_usage(self, user: str) -> names.GetUsageResponse:
        return await self._repeat(self._client.get_usage, user)

    async def list_users(self) -> list[str]:
        return await self._repeat(self._client.list_users)

    async def list_tasks(self, user: str) -> names.ListTasksResponse:
        return await self._repeat(self._client.list_tasks, user)

    async def list_runs(self, user: str, task: str = "") -> tuple[list[types.Run], int]:
        return await self._repeat(self._client.list_runs, user, task)

    async def create_task(self, request: names.CreateTaskRequest) -> types.Task:
        return await self._repeat(self._client.create_task, request)

    async def remove_task(self, request: names.RemoveTaskRequest) -> None:
        await self._repeat(self._client.remove_task, request)

    async def create_run(self, request: names.CreateRunRequest) -> types.Run:
        return await self._repeat(self._client.create_run, request)

    async def remove_run(self, request: names.RemoveRunRequest) -> None:
        await self._repeat(self._client.remove_run, request)

    async def seal_run(self, request: names.SealRunRequest) -> types.Run:
        return await self._repeat(self._client.seal_run, request)

    async def create_run_token(self, request: names.CreateRunTokenRequest) -> names.CreateRunTokenResponse:
        return await self._repeat(self._client.create_run_token, request)

    async def list_tree(self, task_id: str, page_token: str = "") -> names.ListTreeResponse:
        return await self._repeat(self._client.list_tree, task_id, page_token)

    async def get_manifest(self, task_id: str, node_id: int, generation: int) -> list[types.Chunk]:
        return await self._repeat(self._client.get_manifest, task_id, node_id, generation)

    async def commit_nodes(self, request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        return await self._repeat(self._client.commit_nodes, request)

    async def append_file(self, request: names.AppendFileRequest) -> names.AppendFileResponse:
        return await self._repeat(self._client.append_file, request)

    async def link(self, request: names.LinkRequest) -> names.LinkResponse:
        return await self._repeat(self._client.link, request)

    async def rename(self, request: names.RenameRequest) -> names.RenameResponse:
        return await self._repeat(self._client.rename, request)

    async def remove(self, request: names.RemoveRequest) -> names.RemoveResponse:
        return await self._repeat(self._client.remove, request)

    async def remove_nodes(self, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        return await self._repeat(self._client.remove_nodes, request)

    def watch(
        self, request: names.WatchRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[names.WatchResponse]]:
        return self._watch(request)

    async def find_missing_chunks(self, task_id: str, digests: Sequence[bytes]) -> set[bytes]:
        return await self._repeat(self._client.find_missing_chunks, task_id, digests)

    async def put_chunk(self, task_id: str, digest: bytes, data: bytes | memoryview) -> None:
        await self._repeat(self._client.put_chunk, task_id, digest, data)

    async def read_chunk(
        self, task_id: str, node_id: int, generation: int, chunk_index: int, *, verify: bool = False
    ) -> ChunkAnswer:
        return await self._repeat(
            self._client.read_chunk, task_id, node_id, generation, chunk_index, verify=verify
        )

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
        return await self._repeat(
            self._client.read_range,
            task_id,
            node_id,
            generation,
            chunk_index,
            offset_bytes,
            length_bytes,
            with_block_digests=with_block_digests,
        )

    async def read_files(self, task_id: str, files: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return await self._repeat(self._client.read_files, task_id, files)

    @asynccontextmanager
    async def _watch(self, request: names.WatchRequest) -> AsyncIterator[AsyncIterator[names.WatchResponse]]:
        async with self._client.watch(request) as messages:
            yield _NotedMessages(self, messages)

    async def wait_out(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits for what comes once the master has answered the calls of others, as long as a call would be repeated.

        Raises MasterUnavailable, and what the wait raises. Cancelled: so is the wait.
        """
        while True:
            if self._patience_seconds() <= 0:
                # It may be back, while the others pause before they ask again.
                await self._repeat(self._client.get_capabilities)
            began_seconds = trio.current_time()
            patience_seconds = self._patience_seconds()
            is_long = patience_seconds > LAST_CHANCE_SECONDS
            wait_seconds = patience_seconds - LAST_CHANCE_SECONDS if is_long else patience_seconds
            with trio.move_on_after(max(wait_seconds, WAIT_SECONDS_MIN)):
                return await wait()
            if is_long and self._answered_at_seconds <= began_seconds:
                # Of a silence that began with this wait, the calls of others tell only when their own time is over.
                await self._ask_for_a_word(began_seconds)

    async def _ask_for_a_word(self, since_seconds: float) -> None:
        """Finds out whether the master is there, of which nothing has been heard since then."""
        with trio.move_on_after(LAST_CHANCE_SECONDS) as patience, suppress(CloudAIError):
            await self.note_outcome(self._client.get_capabilities)
        if patience.cancelled_caught:
            self._note_silence(since_seconds)
            self._hushed_until_seconds = trio.current_time() + LAST_CHANCE_SECONDS

    async def _repeat(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        last_error = MasterUnavailable("no answer in time", timeo_seconds=self._timeo_seconds)

        is_asking = False

        async def attempt_call() -> T:
            nonlocal last_error, is_asking
            is_asking = True
            try:
                return await self.note_outcome(call, *args, **kwargs)
            except MasterUnavailable as error:
                is_asking = False
                last_error = error
                raise

        # The scope is the bound, by trio's clock; tenacity's own stop conditions look at another one.
        began_seconds = trio.current_time()
        patience_seconds = self._patience_seconds()
        if patience_seconds <= 0 and began_seconds < self._hushed_until_seconds:
            raise last_error
        last_chance_seconds = min(LAST_CHANCE_SECONDS, self._timeo_seconds)
        with trio.move_on_after(max(patience_seconds, last_chance_seconds)):
            if patience_seconds <= 0:
                return await attempt_call()
            # The usual case first, without the machinery for the other.
            with suppress(MasterUnavailable):
                return await attempt_call()
            await trio.sleep(random.uniform(0, RETRY_PAUSE_SECONDS_FIRST))  # noqa: S311 - a jitter, no secret
            retrying = AsyncRetrying(
                sleep=trio.sleep,
                retry=retry_if_exception_type(MasterUnavailable),
                wait=wait_random_exponential(
                    multiplier=RETRY_PAUSE_SECONDS_FIRST, max=RETRY_PAUSE_SECONDS_MAX
                ),
            )
            return await retrying(attempt_call)
        self._note_silence(began_seconds)
        # One that says nothing costs each last chance its whole time: those who wait for one page come one after
        # another, and one chance is given to all of them.
        if is_asking:
            self._hushed_until_seconds = trio.current_time() + LAST_CHANCE_SECONDS
        raise last_error

    def _patience_seconds(self) -> float:
        """How long a call that begins now may be repeated.

        An outage is waited out once, not once for each call: the kernel may ask again and again for the
        same page. Once the master has been silent for timeo, a call is made once.
        """
        return self._timeo_seconds - max(0.0, trio.current_time() - self._silent_since_seconds)

    def _note_silence(self, since_seconds: float) -> None:
        self._is_connected = False
        since_seconds = max(since_seconds, self._answered_at_seconds)
        self._silent_since_seconds = min(self._silent_since_seconds, since_seconds)

    def _note_answer(self) -> None:
        self._is_connected = True
        self._answered_at_seconds = trio.current_time()
        self._silent_since_seconds = math.inf
        self._hushed_until_seconds = -math.inf

    async def note_outcome(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the call, made once, returns or raises, after which `is_connected` is known anew."""
        try:
            answer = await call(*args, **kwargs)
        except MasterUnavailable:
            self._note_silence(trio.current_time())
            raise
        except CloudAIError:
            self._note_answer()
            raise
        self._note_answer()
        return answer


class _NotedMessages:
    """The messages of a watch; each is an outcome like that of a call."""

    def __init__(self, client: RetryingMasterClient, messages: AsyncIterator[names.WatchResponse]) -> None:
        self._client = client
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[names.WatchResponse]:
        return self

    async def __anext__(self) -> names.WatchResponse:
        return await self._client.note_outcome(self._messages.__anext__)
