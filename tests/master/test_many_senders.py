"""Many clients begin long messages and never end them: the memory is bounded, and others are served beside them."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

import grpc
import pytest
import trio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_master.intake import CHUNK_REQUEST_BYTES_MAX, CHUNKS_BYTES_MAX, UNASKED_BYTES_MAX
from cloudai_master.rpc import CALLS_MAX, CALLS_PER_CONNECTION_MAX, CALLS_WAITING_MAX
from cloudai_model.limits import CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX, MIB
from support.half_sender import HalfSender, push_all
from support.master_process import MasterProcess
from support.resident_memory import ResidentMemory
from support.storage_requests import commit_one, make_run, manifest_commit, put

CONNECTIONS = 64
SECONDS_MAX = 120

PUT_CHUNK = "/cloudai.storage.v1.Chunks/PutChunk"
READ_CHUNK = "/cloudai.storage.v1.Chunks/ReadChunk"
COMMIT_NODES = "/cloudai.storage.v1.Names/CommitNodes"
WATCH = "/cloudai.storage.v1.Names/Watch"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

# Connections, calls and what is made for each of them.
OVERHEAD_BYTES_MAX = 100 * MIB

UNASKED_IN_ALL_BYTES_MAX = (CALLS_MAX + CALLS_WAITING_MAX) * UNASKED_BYTES_MAX

# What one user may have asked for: a third of the room, each of whose messages may be four times as long as it says.
ONE_USERS_CHUNKS_BYTES_MAX = CHUNKS_BYTES_MAX // 3 // CHUNK_REQUEST_BYTES_MAX * MESSAGE_BYTES_MAX


async def work_beside(master: MasterProcess, senders: list[HalfSender]) -> None:
    """While they send as much as they can, another user stores a file and reads it."""
    async with master.connect(master.make_token("user-456")) as once:
        client = RetryingMasterClient(once, timeo_seconds=SECONDS_MAX)
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: trio.to_thread.run_sync(
                        lambda: push_all(senders, idle_seconds=2, seconds_max=SECONDS_MAX)
                    )
                )
                run = await make_run(client, "user-456")
                for number in range(5):
                    data = [secrets.token_bytes(CHUNK_BYTES_MAX), secrets.token_bytes(1000)]
                    await put(client, run, *data)
                    node = await commit_one(client, run, manifest_commit(b"f%d" % number, data))
                    for index, expected in enumerate(data):
                        found = await client.read_chunk(run.task_id, node.node_id, 1, index)
                        assert found.data == expected


@pytest.mark.parametrize("path", [PUT_CHUNK, COMMIT_NODES, READ_CHUNK, WATCH, HEALTH, REFLECTION])
async def test_strangers_fill_no_memory_and_hold_up_nobody(master: MasterProcess, path: str) -> None:
    memory = ResidentMemory(master.pid)
    with ExitStack() as stack:
        senders = [
            stack.enter_context(
                HalfSender(
                    master.address,
                    "no token of this master",
                    path,
                    calls=CALLS_PER_CONNECTION_MAX // 8,
                    message_bytes=MESSAGE_BYTES_MAX - MIB,
                )
            )
            for _ in range(CONNECTIONS)
        ]
        await work_beside(master, senders)

    assert memory.grown_bytes() < UNASKED_IN_ALL_BYTES_MAX + OVERHEAD_BYTES_MAX


async def test_one_user_has_a_part_of_the_memory_and_leaves_the_rest(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    memory = ResidentMemory(master.pid)
    # The second time shows that what they held was given back when they were gone.
    for _ in range(2):
        with ExitStack() as stack:
            senders = [
                stack.enter_context(
                    HalfSender(
                        master.address, token, PUT_CHUNK, calls=8, message_bytes=MESSAGE_BYTES_MAX - MIB
                    )
                )
                for _ in range(CONNECTIONS)
            ]
            await work_beside(master, senders)

    limit_bytes = ONE_USERS_CHUNKS_BYTES_MAX + UNASKED_IN_ALL_BYTES_MAX + OVERHEAD_BYTES_MAX
    assert ONE_USERS_CHUNKS_BYTES_MAX // 2 < memory.grown_bytes() < limit_bytes


def test_reflection_answers_and_ends(master: MasterProcess) -> None:
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")] * 2
    with grpc.insecure_channel(master.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = list(stub.ServerReflectionInfo(iter(requests), timeout=5))

    names = [[service.name for service in answer.list_services_response.service] for answer in answers]
    assert (
        names
        == [
            [
                "cloudai.storage.v1.Chunks",
                "cloudai.storage.v1.Names",
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
            ]
        ]
        * 2
    )
