"""Chunks from the master, each compared with its digest before anybody gets it, and counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from cloudai_fusefs.file_content import FileContent
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.read_counters import ReadCounters
from cloudai_fusefs.wire_chunks import ChunkAnswer
from cloudai_model.chunks import digest_of
from cloudai_model.errors import ChunkDamaged

log = logging.getLogger(__name__)


class WantedFile(NamedTuple):
    """A generation of one chunk."""

    node_id: int
    generation: int
    digest: bytes


class VerifyingFetcher:
    """The way past memory and disk cache. One per mount."""

    def __init__(self, client: MasterClient, counters: ReadCounters) -> None:
        """The client is one that has its own patience: nothing is repeated here but damaged answers."""
        self._client = client
        self._counters = counters

    async def fetch_chunk(self, content: FileContent, index: int) -> ChunkAnswer:
        """The chunk; its blocks' digests are what the master says.

        Raises ChunkDamaged when what the master stores is not the chunk, and the client's errors.
        """
        length_bytes, digest = content.manifest.chunks[index]
        # Asked for once more when it arrives damaged: the wire may have done it, and if it was the disk, the
        # master finds that out and says so in its log.
        for verify in (False, True):
            try:
                answer = await self._client.read_chunk(
                    content.task_id, content.node_id, content.generation, index, verify=verify
                )
            except ChunkDamaged:
                answer = ChunkAnswer(memoryview(b""), b"")
            self._counters.fetched_chunks += 1
            self._counters.fetched_bytes += len(answer.data)
            if len(answer.data) == length_bytes and answer.digest == digest:
                return answer
            self._counters.damaged_chunks += 1
        log.error("chunk %d of %s is damaged at the master", index, content.label)
        raise ChunkDamaged(file=content.label, chunk_index=index, generation=content.generation)

    async def fetch_files(self, task_id: str, wanted: Sequence[WantedFile]) -> list[bytes | None]:
        """The files' bytes from one call, in their order; None for one that did not come, or not whole.

        The list may end early, as the answer may. Raises the client's errors.
        """
        answers = await self._client.read_files(task_id, [(file.node_id, file.generation) for file in wanted])
        found: list[bytes | None] = []
        for file, data in zip(wanted, answers, strict=False):
            if data is None or digest_of(data) != file.digest:
                found.append(None)
                continue
            self._counters.fetched_chunks += 1
            self._counters.fetched_bytes += len(data)
            found.append(data)
        self._counters.fetched_batches += bool(found)
        return found
