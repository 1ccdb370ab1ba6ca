"""The master as a process: what it refuses to start on, what it survives, what it leaves."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_master.rpc import CALLS_MAX
from cloudai_model.chunks import digest_of
from cloudai_model.errors import ChunkDamaged, MasterUnavailable, NoSpace
from cloudai_proto.storage.v1 import names_pb2 as names
from support.master_process import PROGRAM, MasterProcess
from support.storage_requests import (
    append,
    commit_one,
    file_commit,
    make_run,
    manifest_commit,
    put,
    read_file,
    tree_of,
)

SECONDS_MAX = 20


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A master that is expected to give up at once."""
    return subprocess.run(
        [str(PROGRAM), "serve", *arguments], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )


def test_second_master_on_a_data_directory_is_refused(master: MasterProcess) -> None:
    done = serve("--data-dir", str(master.data_dir), "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert done.stderr == f"cloudai-master: another master is running on {master.data_dir}\n"


def test_master_serves_without_a_standard_error(tmp_path: Path) -> None:
    command = [str(PROGRAM), "serve", "--data-dir", str(tmp_path / "master"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on ")
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0


def test_taken_port_is_refused(master: MasterProcess, tmp_path: Path) -> None:
    done = serve("--data-dir", str(tmp_path / "second"), "--listen", master.address)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == f"cloudai-master: cannot listen on {master.address}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "0.0.0.0:0"),
        ("--listen", "[::]:0"),
        ("--listen", "example.org:7443"),
        ("--listen", "nowhere"),
        ("--listen", "127.0.0.1:99999"),
        ("--tls-cert", "cert.pem"),
    ],
)
def test_usage_is_refused_with_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = serve("--data-dir", str(tmp_path / "master"), *arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert not (tmp_path / "master").exists()


def test_data_directory_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = serve("--data-dir", str(tmp_path / "file" / "master"), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_data_directory_is_its_owners_alone(master: MasterProcess) -> None:
    for path in (master.data_dir, *master.data_dir.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_everything_acknowledged_survives_kill_9(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    chunk = secrets.token_bytes(1024 * 1024)
    async with master.connect(token) as client:
        run = await make_run(client, "user-123")
        await put(client, run, chunk)
        node = await commit_one(client, run, manifest_commit(b"model", [chunk]))
        log = await append(
            client, run, await commit_one(client, run, file_commit(b"log", b"one\n")), b"two\n"
        )
        await put(client, run, b"put and not committed")
        before = await tree_of(client, run)
        await trio.to_thread.run_sync(master.restart)
        with trio.fail_after(SECONDS_MAX):
            while True:
                try:
                    assert await tree_of(client, run) == before
                    break
                except MasterUnavailable:
                    await trio.sleep(0.05)
        assert await read_file(client, run, node) == chunk
        assert await read_file(client, run, log) == b"one\ntwo\n"
        assert await client.find_missing_chunks(run.task_id, [digest_of(b"put and not committed")]) == set()


async def test_master_that_is_gone_is_unavailable_at_once(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    async with master.connect(token) as client:
        run = await make_run(client, "user-123")
        async with client.watch(names.WatchRequest(task_id=run.task_id)) as messages:
            await anext(messages)
            master.kill()
            with trio.fail_after(5), pytest.raises(MasterUnavailable):
                async for _ in messages:
                    pass
        with trio.fail_after(5), pytest.raises(MasterUnavailable):
            await client.get_capabilities()
    master.start()


async def test_stopping_master_ends_watches_and_exits_0(master: MasterProcess) -> None:
    async with master.connect(master.make_token("user-123")) as client:
        run = await make_run(client, "user-123")
        async with client.watch(names.WatchRequest(task_id=run.task_id)) as messages:
            await anext(messages)
            with trio.fail_after(SECONDS_MAX):
                assert await trio.to_thread.run_sync(master.terminate) == 0
                with pytest.raises(MasterUnavailable):
                    async for _ in messages:
                        pass


@pytest.mark.parametrize("damage", ["gone", "short"])
async def test_damaged_chunk_is_an_error_and_a_line_that_names_the_file(
    master: MasterProcess, damage: str
) -> None:
    async with master.connect(master.make_token("user-123")) as client:
        run = await make_run(client, "user-123")
        node = await commit_one(client, run, file_commit(b"dir/file", b"the content"))
        (path,) = [path for path in (master.data_dir / "chunks").rglob("*") if path.is_file()]
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"the")
        with pytest.raises(ChunkDamaged):
            await client.read_chunk(run.task_id, node.node_id, 1, 0)
        # Sent again, it is whole again.
        await put(client, run, b"the content")
        assert await read_file(client, run, node) == b"the content"
    place = f"user-123/{run.task}/{run.name}/dir/file, node {node.node_id}, chunk 0"
    (line,) = [line for line in master.log_text().splitlines() if " ERROR " in line]
    assert line.endswith(place)
    assert "the content" not in master.log_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(mount_point)], check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


async def test_full_disk_is_no_space_and_what_was_acknowledged_stays(small_disk: Path) -> None:
    master = MasterProcess(small_disk / "master")
    master.log_path = small_disk.parent / "master.log"
    master.start()
    try:
        async with master.connect(master.make_token("user-123")) as client:
            run = await make_run(client, "user-123")
            stored: list[bytes] = []
            with pytest.raises(NoSpace):
                for _ in range(20):
                    chunk = secrets.token_bytes(1024 * 1024)
                    await put(client, run, chunk)
                    stored.append(chunk)
            assert stored
            with pytest.raises(NoSpace):
                # Small ones, until the last page of the disk is full and the database too.
                for index in range(20_000):
                    await commit_one(client, run, file_commit(b"f%d" % index, secrets.token_bytes(4096)))
            digests = [digest_of(chunk) for chunk in stored]
            assert await client.find_missing_chunks(run.task_id, digests) == set()
        await trio.to_thread.run_sync(master.restart)
        async with master.connect(master_token(master, small_disk)) as client:
            assert await client.find_missing_chunks(run.task_id, digests) == set()
            tree = await tree_of(client, run)
            for path, node in tree.items():
                if path:
                    assert len(await read_file(client, run, node)) == 4096
    finally:
        master.terminate()


def master_token(master: MasterProcess, disk: Path) -> str:
    """A further token, for which the full disk is made a little larger."""
    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    return master.make_token("user-123")


async def test_tls_with_a_given_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    master = MasterProcess(
        tmp_path / "master", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")
    )
    master.start()
    try:
        token = master.make_token("user-123")
        async with GrpcMasterClient(
            master.address,
            token_provider=lambda: token,
            insecure=False,
            root_certificates=authority.cert_pem.bytes(),
        ) as client:
            assert (await client.get_capabilities()).user == "user-123"
        for root_certificates in (trustme.CA().cert_pem.bytes(), None):
            async with GrpcMasterClient(
                master.address,
                token_provider=lambda: token,
                insecure=False,
                root_certificates=root_certificates,
            ) as stranger:
                with pytest.raises(MasterUnavailable):
                    await stranger.get_capabilities()
        async with master.connect(token) as plain:
            with pytest.raises(MasterUnavailable):
                await plain.get_capabilities()
    finally:
        assert master.terminate() == 0


def test_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage.pem").write_text("garbage")
    arguments = ("--tls-cert", str(tmp_path / "garbage.pem"), "--tls-key", str(tmp_path / "garbage.pem"))
    done = serve("--data-dir", str(tmp_path / "master"), "--listen", "127.0.0.1:0", *arguments)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


async def test_garbage_on_the_port_disturbs_nobody(master: MasterProcess) -> None:
    host, port = master.address.split(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        secrets.token_bytes(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    async with master.connect(master.make_token("user-123")) as client:
        assert await client.list_users() == ["user-123"]


def test_garbage_in_a_message_is_refused(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    with grpc.insecure_channel(master.address) as channel:
        call: Any = channel.unary_unary("/cloudai.storage.v1.Names/CommitNodes")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff garbage", metadata=(("authorization", f"Bearer {token}"),), timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        missing: Any = channel.unary_unary("/cloudai.storage.v1.Names/NoSuchCall")
        with pytest.raises(grpc.RpcError) as caught:
            missing(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_client_with_too_many_calls_keeps_nobody_out(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    async with master.connect(token) as client:
        run = await make_run(client, "user-123")
        request = names.WatchRequest(task_id=run.task_id)
        with grpc.insecure_channel(master.address) as channel:
            watch = channel.unary_stream(
                "/cloudai.storage.v1.Names/Watch", names.WatchRequest.SerializeToString, lambda data: data
            )
            metadata = (("authorization", f"Bearer {token}"),)
            greedy = [watch(request, metadata=metadata) for _ in range(CALLS_MAX + 10)]
            await trio.to_thread.run_sync(next, greedy[0])
            assert (await client.get_capabilities()).user == "user-123"
            for call in greedy:
                call.cancel()


def test_health_says_serving(master: MasterProcess) -> None:
    with grpc.insecure_channel(master.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "cloudai.storage.v1.Names", "cloudai.storage.v1.Chunks"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
