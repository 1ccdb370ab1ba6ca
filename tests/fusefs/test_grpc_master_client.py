"""What the client promises when nobody answers. Its calls are held to tests/contract."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.errors import InternalError, MasterUnavailable, MissingChunks
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        yield f"{host}:{port}"


@pytest.fixture
def closed_address() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    return f"{host}:{port}"


def client_of(address: str, deadline_seconds: float = 30) -> GrpcMasterClient:
    return GrpcMasterClient(
        address, token_provider=lambda: "token", insecure=True, call_deadline_seconds=deadline_seconds
    )


async def test_call_that_is_not_answered_ends_with_its_deadline(silent_address: str) -> None:
    async with client_of(silent_address, 0.3) as client:
        with trio.fail_after(5), pytest.raises(MasterUnavailable):
            await client.list_users()


async def test_cancelled_call_returns_at_once(silent_address: str) -> None:
    async with client_of(silent_address) as client:
        with trio.move_on_after(0.1) as scope:
            await client.list_users()
        assert scope.cancelled_caught


async def test_cancelled_watch_returns_at_once(silent_address: str) -> None:
    async with client_of(silent_address) as client:
        with trio.fail_after(5), trio.move_on_after(0.1) as scope:
            async with client.watch(names.WatchRequest(user="user-123")) as messages:
                await anext(messages)
        assert scope.cancelled_caught


async def test_watch_without_news_lets_its_thread_sleep(silent_address: str) -> None:
    async with client_of(silent_address) as client, trio.open_nursery() as nursery:

        async def follow() -> None:
            async with client.watch(names.WatchRequest(user="user-123")) as messages:
                await anext(messages)

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked(0.2)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "watch"]
        before = sleep_count(thread)
        await trio.sleep(1)
        assert sleep_count(thread) - before < 5
        nursery.cancel_scope.cancel()


def sleep_count(thread: threading.Thread) -> int:
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


async def test_master_that_is_not_there_is_unavailable_at_once(closed_address: str) -> None:
    async with client_of(closed_address) as client:
        with trio.fail_after(5), pytest.raises(MasterUnavailable):
            await client.get_capabilities()
        with trio.fail_after(5), pytest.raises(MasterUnavailable):
            async with client.watch(names.WatchRequest(user="user-123")) as messages:
                await anext(messages)


async def test_call_under_way_ends_when_the_client_is_closed(silent_address: str) -> None:
    client = client_of(silent_address)

    async def call() -> None:
        with pytest.raises(MasterUnavailable):
            await client.list_users()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await client.aclose()
    with pytest.raises(MasterUnavailable):
        await client.list_users()


async def test_token_is_in_no_error(silent_address: str) -> None:
    async with GrpcMasterClient(
        silent_address, token_provider=lambda: "very-secret", insecure=True, call_deadline_seconds=0.2
    ) as client:
        with pytest.raises(MasterUnavailable) as caught:
            await client.list_users()
    assert "very-secret" not in repr(caught.value) + str(caught.value)


def test_error_of_the_wire_is_the_class_the_master_raised() -> None:
    detail = types.ErrorDetail(
        reason="MISSING_CHUNKS", message="chunks are missing: missing_count=1", missing_digests=[b"d" * 32]
    )
    error = error_from_detail(detail)
    assert isinstance(error, MissingChunks)
    assert error.digests == (b"d" * 32,)
    assert str(error) == "chunks are missing: missing_count=1"
    assert isinstance(error_from_detail(types.ErrorDetail(reason="OF_THE_FUTURE")), InternalError)
