"""Many clients read from one master at once: every byte is right, each gets its turn, the memory is bounded."""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import AsyncExitStack, ExitStack

import trio

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_master.file_reader import AT_ONCE_BYTES_MAX
from cloudai_master.rpc import ANSWERS_BYTES_MAX
from cloudai_model.limits import CHUNK_BYTES_MAX, MIB
from cloudai_proto.storage.v1 import chunks_pb2 as chunks
from cloudai_proto.storage.v1 import types_pb2 as types
from support.master_process import MasterProcess
from support.resident_memory import ResidentMemory
from support.silent_reader import SilentReader
from support.storage_requests import commit_one, make_run, manifest_commit, put

CLIENTS = 16
CALLS_AT_ONCE = 4
READS = 1500
SECONDS_MAX = 60

# What it may cost to have read many files, whatever the number of clients: pools, caches, fragments.
UNSHARED_BYTES_MAX = 100 * MIB


async def store_file(client: GrpcMasterClient, data: list[bytes]) -> tuple[types.Run, types.Node]:
    run = await make_run(client, "user-123")
    await put(client, run, *data)
    return run, await commit_one(client, run, manifest_commit(b"f", data))


async def read_all_the_time(
    client: GrpcMasterClient,
    place: tuple[types.Run, types.Node],
    data: list[bytes],
    turns: Counter[int],
    me: int,
) -> None:
    """Whole chunks and ranges in turn, until READS were done by all together."""
    run, node = place
    for step in range(me, 10 * READS):
        index = step % len(data)
        if step % 2:
            found = (await client.read_chunk(run.task_id, node.node_id, 1, index)).data
            assert found == data[index]
        else:
            offset_bytes = step * 4096 % (len(data[index]) - 4096)
            part = await client.read_range(
                run.task_id, node.node_id, 1, index, offset_bytes, 4096, with_block_digests=step % 4 == 0
            )
            assert part.data == data[index][offset_bytes : offset_bytes + 4096]
        turns[me] += 1
        if turns.total() >= READS:
            return


async def test_sixteen_clients_read_at_once(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    data = [secrets.token_bytes(MIB) for _ in range(7)]
    turns: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(master.connect(token)) for _ in range(CLIENTS)]
        place = await store_file(clients[0], data)
        memory = ResidentMemory(master.pid)
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for me, client in enumerate(clients):
                    for _ in range(CALLS_AT_ONCE):
                        nursery.start_soon(read_all_the_time, client, place, data, turns, me)
    assert len(turns) == CLIENTS
    assert max(turns.values()) <= 3 * min(turns.values()), turns
    assert memory.grown_bytes() < CLIENTS * 8 * MIB + UNSHARED_BYTES_MAX


async def test_sixteen_clients_that_want_full_chunks_share_the_memory(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    data = [secrets.token_bytes(CHUNK_BYTES_MAX) for _ in range(2)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(master.connect(token)) for _ in range(CLIENTS)]
        run, node = await store_file(clients[0], data)
        memory = ResidentMemory(master.pid)

        async def read(client: GrpcMasterClient, index: int) -> None:
            assert (await client.read_chunk(run.task_id, node.node_id, 1, index)).data == data[index]

        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for step in range(8):
                    for client in clients:
                        nursery.start_soon(read, client, step % 2)
    assert memory.grown_bytes() < CLIENTS * 8 * MIB + UNSHARED_BYTES_MAX


async def test_clients_that_take_nothing_leave_room_for_others(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    data = [secrets.token_bytes(CHUNK_BYTES_MAX)]
    async with master.connect(token) as client:
        run, node = await store_file(client, data)
        request = chunks.ReadChunkRequest(task_id=run.task_id, node_id=node.node_id, generation=1)
        memory = ResidentMemory(master.pid)
        with trio.fail_after(SECONDS_MAX):
            # The second time shows that what they held was given back when they were gone.
            for _ in range(2):
                with ExitStack() as stack:
                    for _ in range(8):
                        silent = stack.enter_context(SilentReader(master.address, token))
                        for _ in range(50):
                            silent.ask(request)
                    # Their connections are ended after half a minute: not what is waited for here.
                    with trio.fail_after(10):
                        for _ in range(10):
                            assert (await client.read_chunk(run.task_id, node.node_id, 1, 0)).data == data[0]
    # gRPC holds what it sends a second time.
    assert memory.grown_bytes() < 2 * ANSWERS_BYTES_MAX + UNSHARED_BYTES_MAX


async def test_short_answers_that_nobody_takes_are_no_burden(master: MasterProcess) -> None:
    """They come from the memory, at once, and are not counted."""
    token = master.make_token("user-123")
    data = [secrets.token_bytes(CHUNK_BYTES_MAX)]
    async with master.connect(token) as client:
        run, node = await store_file(client, data)
        await client.read_range(
            run.task_id, node.node_id, 1, 0, 0, AT_ONCE_BYTES_MAX, with_block_digests=True
        )
        request = chunks.ReadChunkRequest(
            task_id=run.task_id,
            node_id=node.node_id,
            generation=1,
            length_bytes=AT_ONCE_BYTES_MAX,
            with_block_digests=True,
        )
        memory = ResidentMemory(master.pid)
        with trio.fail_after(SECONDS_MAX), ExitStack() as stack:
            for _ in range(16):
                silent = stack.enter_context(SilentReader(master.address, token))
                for _ in range(50):
                    silent.ask(request)
            for _ in range(10):
                assert (await client.read_chunk(run.task_id, node.node_id, 1, 0)).data == data[0]
            # 800 answers, which gRPC holds a second time: 103 MiB; of twice the length they were 210 MiB.
            assert memory.grown_bytes() < 160 * MIB
