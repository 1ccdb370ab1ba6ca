"""The storage service without its wire: one method per call of the .proto, for any thread.

A method takes the caller and the request and returns the response or raises a CloudAIError. All of them
block, on the database or the chunk store; `rpc` runs them in worker threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Literal, TypeVar

from google.protobuf.message import Message

from cloudai_master import changes, listings, managed_levels, rearrangements
from cloudai_master.authorization import Caller, find_open_run, find_run, find_user
from cloudai_master.chunk_messages import SentChunk
from cloudai_master.chunk_ownership import (
    check_digest,
    record_block_digests,
    record_chunks,
    stored_lengths,
)
from cloudai_master.chunk_store import ChunkStore
from cloudai_master.commits import append_file, check_batch, commit_nodes, has_effect, inline_chunks
from cloudai_master.database import Database, Transaction
from cloudai_master.file_reader import FileReader
from cloudai_master.repeats import MutatingRequest, answer_once, forget_old_requests
from cloudai_master.tokens import Tokens
from cloudai_model.chunks import block_digests_of, digest_of
from cloudai_model.errors import DigestMismatch, InvalidRequest, SizeMismatch
from cloudai_model.limits import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    COMMIT_NODES_MAX,
    FIND_MISSING_DIGESTS_MAX,
    INLINE_BYTES_MAX,
)
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import names_pb2 as names

VERSION: Final = version("cloudai-fs")

RequestT = TypeVar("RequestT", bound=MutatingRequest)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True)
class Watched:
    """What a watch stream is about."""

    kind: Literal["run", "user"]
    key: int
    task: str = ""
    task_id: str = ""
    """Not empty: of a user, this run of this task alone."""


class StorageService:
    """Both services of the .proto. The .proto's comments say what each call does; here only what is ours."""

    def __init__(self, database: Database, store: ChunkStore, tokens: Tokens) -> None:
        self._database = database
        self._store = store
        self._tokens = tokens
        self._reader = FileReader(database, store)

    def _once(
        self,
        carry_out: Callable[[Transaction, Caller, RequestT], ResponseT],
        caller: Caller,
        request: RequestT,
        response_type: type[ResponseT],
    ) -> ResponseT:
        """Carries the call out in one transaction, or gives the answer of the first time."""
        with self._database.write() as transaction:
            return answer_once(
                transaction,
                caller,
                request,
                response_type,
                lambda: carry_out(transaction, caller, request),
            )

    # Who is there, and the managed levels.

    def get_capabilities(
        self, caller: Caller, _: names.GetCapabilitiesRequest
    ) -> names.GetCapabilitiesResponse:
        return names.GetCapabilitiesResponse(
            version=VERSION,
            chunk_bytes_max=CHUNK_BYTES_MAX,
            inline_bytes_max=INLINE_BYTES_MAX,
            commit_nodes_max=COMMIT_NODES_MAX,
            user=caller.user,
            admin=caller.admin,
            task_id=caller.task_id,
            expires_at_ns=caller.expires_at_ns,
            now_ns=time.time_ns(),
            keeps_xattrs=True,
        )

    def get_usage(self, caller: Caller, request: names.GetUsageRequest) -> names.GetUsageResponse:
        with self._database.read() as connection:
            user = find_user(connection, caller, request.user)
        space = self._store.space()
        return names.GetUsageResponse(
            used_bytes=user.used_bytes,
            store_free_bytes=space.free_bytes,
            store_size_bytes=space.size_bytes,
        )

    def list_users(self, caller: Caller, _: names.ListUsersRequest) -> names.ListUsersResponse:
        with self._database.read() as connection:
            return managed_levels.list_users(connection, caller)

    def list_tasks(self, caller: Caller, request: names.ListTasksRequest) -> names.ListTasksResponse:
        with self._database.read() as connection:
            return managed_levels.list_tasks(connection, caller, request)

    def list_runs(self, caller: Caller, request: names.ListRunsRequest) -> names.ListRunsResponse:
        with self._database.read() as connection:
            return managed_levels.list_runs(connection, caller, request)

    def create_task(self, caller: Caller, request: names.CreateTaskRequest) -> names.CreateTaskResponse:
        return self._once(managed_levels.create_task, caller, request, names.CreateTaskResponse)

    def remove_task(self, caller: Caller, request: names.RemoveTaskRequest) -> names.RemoveTaskResponse:
        return self._once(managed_levels.remove_task, caller, request, names.RemoveTaskResponse)

    def create_run(self, caller: Caller, request: names.CreateRunRequest) -> names.CreateRunResponse:
        return self._once(managed_levels.create_run, caller, request, names.CreateRunResponse)

    def remove_run(self, caller: Caller, request: names.RemoveRunRequest) -> names.RemoveRunResponse:
        response = self._once(managed_levels.remove_run, caller, request, names.RemoveRunResponse)
        self._reader.forget_run(request.task_id)
        return response

    def seal_run(self, caller: Caller, request: names.SealRunRequest) -> names.SealRunResponse:
        return self._once(managed_levels.seal_run, caller, request, names.SealRunResponse)

    def create_run_token(
        self, caller: Caller, request: names.CreateRunTokenRequest
    ) -> names.CreateRunTokenResponse:
        """Raises NotFound, PermissionRefused for a token of a run, InvalidRequest for one that is valid for no time."""
        token, expires_at_ns = self._tokens.create_for_run(
            caller, request.task_id, valid_seconds=request.valid_seconds
        )
        return names.CreateRunTokenResponse(token=token, expires_at_ns=expires_at_ns)

    # Inside a run.

    def list_tree(self, caller: Caller, request: names.ListTreeRequest) -> names.ListTreeResponse:
        with self._database.read() as connection:
            return listings.list_tree(connection, caller, request)

    def get_manifest(self, caller: Caller, request: names.GetManifestRequest) -> names.GetManifestResponse:
        with self._database.read() as connection:
            return listings.get_manifest(connection, caller, request)

    def commit_nodes(self, caller: Caller, request: names.CommitNodesRequest) -> names.CommitNodesResponse:
        """The data that rides in the batch is on disk, with one sync, before the transaction begins."""
        check_batch(request)
        inline = inline_chunks(request)
        lengths = {digest: len(data) for digest, data in inline.items()}
        with self._database.read() as connection:
            run = find_run(connection, caller, request.task_id)
            stored = stored_lengths(connection, run.user_key, inline)
        # A sealed run may still be asked for the answer of an earlier call, but takes no data.
        if run.sealed_at_ns is not None:
            lengths = {}
        else:
            self._store_missing(run.user, inline, stored)
        with self._database.write() as transaction:
            if lengths:
                record_chunks(transaction, run.user_key, lengths)
            return answer_once(
                transaction,
                caller,
                request,
                names.CommitNodesResponse,
                lambda: commit_nodes(transaction, caller, request, lengths),
                is_final=has_effect,
            )

    def append_file(self, caller: Caller, request: names.AppendFileRequest) -> names.AppendFileResponse:
        return self._once(append_file, caller, request, names.AppendFileResponse)

    def link(self, caller: Caller, request: names.LinkRequest) -> names.LinkResponse:
        return self._once(rearrangements.link, caller, request, names.LinkResponse)

    def rename(self, caller: Caller, request: names.RenameRequest) -> names.RenameResponse:
        return self._once(rearrangements.rename, caller, request, names.RenameResponse)

    def remove(self, caller: Caller, request: names.RemoveRequest) -> names.RemoveResponse:
        return self._once(rearrangements.remove, caller, request, names.RemoveResponse)

    def remove_nodes(self, caller: Caller, request: names.RemoveNodesRequest) -> names.RemoveNodesResponse:
        return self._once(rearrangements.remove_nodes, caller, request, names.RemoveNodesResponse)

    # Chunks.

    def find_missing_chunks(
        self, caller: Caller, request: chunks.FindMissingChunksRequest
    ) -> chunks.FindMissingChunksResponse:
        if len(request.digests) > FIND_MISSING_DIGESTS_MAX:
            raise InvalidRequest("too many digests in one call", count=len(request.digests))
        for digest in request.digests:
            check_digest(digest)
        with self._database.read() as connection:
            run = find_run(connection, caller, request.task_id)
            stored = stored_lengths(connection, run.user_key, request.digests)
        missing = dict.fromkeys(digest for digest in request.digests if digest not in stored)
        return chunks.FindMissingChunksResponse(missing_digests=missing)

    def put_chunk(
        self, caller: Caller, request: chunks.PutChunkRequest | SentChunk
    ) -> chunks.PutChunkResponse:
        """On disk first, then known to the database: a crash in between leaves an orphan, never a promise."""
        data = request.data
        if not 0 < len(data) <= CHUNK_BYTES_MAX:
            raise SizeMismatch("a chunk is 1 byte to 4 MiB", size_bytes=len(data))
        check_digest(request.digest)
        if digest_of(data) != request.digest:
            raise DigestMismatch(size_bytes=len(data))
        block_digests = block_digests_of(data) if len(data) > BLOCK_BYTES else b""
        with self._database.read() as connection:
            run = find_open_run(connection, caller, request.task_id)
            stored = stored_lengths(connection, run.user_key, [request.digest])
        self._store_missing(run.user, {request.digest: data}, stored)
        with self._database.write() as transaction:
            record_chunks(transaction, run.user_key, {request.digest: len(data)})
            if block_digests:
                record_block_digests(transaction, run.user_key, request.digest, block_digests)
        return chunks.PutChunkResponse()

    def _store_missing(
        self, user: str, sent: Mapping[bytes, bytes | memoryview], stored: Mapping[bytes, int]
    ) -> None:
        """Puts those that are not there yet, whatever the database says: a lost one is healed."""
        missing = {
            digest: data
            for digest, data in sent.items()
            if digest not in stored or not self._store.has(user, digest, len(data))
        }
        if missing:
            self._store.put(user, missing)

    def read_chunk(self, caller: Caller, request: chunks.ReadChunkRequest) -> bytes:
        """The response encoded: it is long, and made without a copy."""
        return self._reader.read_chunk(caller, request)

    def read_chunk_at_once(self, caller: Caller, request: chunks.ReadChunkRequest) -> bytes | None:
        """The same, never blocking: None when it is not in memory, all of it."""
        return self._reader.read_chunk_at_once(caller, request)

    def read_files(self, caller: Caller, request: chunks.ReadFilesRequest) -> chunks.ReadFilesResponse:
        return self._reader.read_files(caller, request)

    # Watching.

    def find_watched(self, caller: Caller, request: names.WatchRequest) -> Watched:
        """What the request watches. Raises NotFound, InvalidRequest."""
        with self._database.read() as connection:
            if request.WhichOneof("scope") == "task_id":
                return Watched("run", find_run(connection, caller, request.task_id).run_key)
            if request.WhichOneof("scope") == "user":
                user_key = find_user(connection, caller, request.user).user_key
                task = find_run(connection, caller, caller.task_id).task if caller.task_id else ""
                return Watched("user", user_key, task, caller.task_id)
        raise InvalidRequest("watch a run or a user")

    def read_changes(self, watched: Watched, after_revision: int) -> names.WatchResponse:
        """The next batch of what changed, at once; without changes when there are none.

        Raises NotFound once a run is removed and that has been told.
        """
        with self._database.read() as connection:
            if watched.kind == "run":
                return changes.read_run_changes(connection, watched.key, after_revision)
            response = changes.read_user_changes(connection, watched.key, after_revision)
        if not watched.task_id:
            return response
        # A token of one run hears of that run and its task alone.
        return names.WatchResponse(
            changes=[
                change
                for change in response.changes
                if watched.task_id == change.run_changed.task_id or watched.task == change.task_changed.name
            ],
            revision=response.revision,
            reload=response.reload,
        )

    # Housekeeping.

    def forget_old(self) -> None:
        """Drops change logs, remembered answers and run tokens that are over their age; called once an hour."""
        with self._database.write() as transaction:
            changes.forget_old_changes(transaction)
            forget_old_requests(transaction)
        self._tokens.forget_expired()
