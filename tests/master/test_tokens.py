from __future__ import annotations

import base64
import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio

from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_master.data_dir import DataDir
from cloudai_master.tokens import (
    CHECKED_SECONDS,
    NS_PER_SECOND,
    RUN_TOKEN_KEPT_SECONDS,
    Tokens,
    load_key,
)
from cloudai_model.errors import InvalidName, NotFound, Unauthenticated
from cloudai_proto.storage.v1 import names_pb2 as names
from support.local_storage import LocalStorage
from support.master_process import MasterProcess
from support.storage_requests import USER, commit_one, file_commit, make_run

DAY_SECONDS = 86_400


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    data_dir = DataDir(tmp_path)
    database = data_dir.open_database()
    yield Tokens(database, load_key(data_dir.key_path))
    database.close()


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_made_token_speaks_for_its_user(tokens: Tokens) -> None:
    caller = tokens.check(tokens.create("user-123", valid_seconds=DAY_SECONDS, admin=True))
    assert (caller.user, caller.admin, caller.task_id) == ("user-123", True, "")


def test_tokens_that_were_made_with_a_revoked_one_are_refused(storage: LocalStorage) -> None:
    tokens, checking_anew = (Tokens(storage.database, b"k" * 32) for _ in range(2))
    parents = [tokens.create(USER, valid_seconds=DAY_SECONDS) for _ in range(2)]
    made = [
        tokens.create_for_run(tokens.check(parent), storage.run.task_id, valid_seconds=60)[0]
        for parent in parents
    ]

    tokens.revoke(claims_of(parents[0])["jti"])

    with pytest.raises(Unauthenticated, match="revoked"):
        checking_anew.check(made[0])
    assert checking_anew.check(made[1]).task_id == storage.run.task_id


def test_run_tokens_are_forgotten_a_while_after_they_expired(storage: LocalStorage) -> None:
    now_ns = time.time_ns()
    tokens = Tokens(storage.database, b"k" * 32, clock_ns=lambda: now_ns)
    parent = tokens.check(tokens.create(USER, valid_seconds=DAY_SECONDS))
    of_operators = tokens.list_all()
    tokens.create_for_run(parent, storage.run.task_id, valid_seconds=60)

    now_ns += (RUN_TOKEN_KEPT_SECONDS + 59) * NS_PER_SECOND
    tokens.forget_expired()
    assert len(tokens.list_all()) == len(of_operators) + 1
    now_ns += 2 * NS_PER_SECOND
    tokens.forget_expired()
    assert tokens.list_all() == of_operators


def test_expired_token_is_refused_as_such(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    database = data_dir.open_database()
    long_ago = Tokens(database, load_key(data_dir.key_path), lambda: time.time_ns() - 2 * DAY_SECONDS * 10**9)
    token = long_ago.create("user-123", valid_seconds=DAY_SECONDS)
    with pytest.raises(Unauthenticated, match="expired"):
        Tokens(database, load_key(data_dir.key_path)).check(token)
    database.close()


def test_checked_token_is_refused_from_its_expiry_on(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    database = data_dir.open_database()
    now_ns = [time.time_ns()]
    tokens = Tokens(database, load_key(data_dir.key_path), lambda: now_ns[0])
    token = tokens.create("user-123", valid_seconds=DAY_SECONDS)
    tokens.check(token)
    now_ns[0] += DAY_SECONDS * 10**9
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.check(token)
    database.close()


def test_token_signed_with_another_key_is_refused(tokens: Tokens) -> None:
    claims = claims_of(tokens.create("user-123", valid_seconds=DAY_SECONDS))
    forged = jwt.encode(claims, b"k" * 32, algorithm="HS256")
    with pytest.raises(Unauthenticated, match="not one of this master's"):
        tokens.check(forged)


def test_token_without_a_signature_is_refused(tokens: Tokens) -> None:
    claims = claims_of(tokens.create("user-123", valid_seconds=DAY_SECONDS))
    forged = jwt.encode(claims, "", algorithm="none")
    with pytest.raises(Unauthenticated, match="not one of this master's"):
        tokens.check(forged)


def test_token_with_changed_claims_is_refused(tokens: Tokens) -> None:
    header, _, signature = tokens.create("user-123", valid_seconds=DAY_SECONDS).split(".")
    claims = {"iss": "cloudai-master", "sub": "user-456", "jti": "x", "exp": 1 << 40}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    with pytest.raises(Unauthenticated, match="not one of this master's"):
        tokens.check(f"{header}.{payload}.{signature}")


@pytest.mark.parametrize("garbage", ["<garbage>", "a.b.c", "ü" * 10, "\ud800", "x" * 5000])
def test_garbage_is_refused_and_not_quoted(tokens: Tokens, garbage: str) -> None:
    with pytest.raises(Unauthenticated, match="not one of this master's") as caught:
        tokens.check(garbage)
    assert garbage not in str(caught.value)


def test_missing_token_is_refused_as_such(tokens: Tokens) -> None:
    with pytest.raises(Unauthenticated, match="no token"):
        tokens.check("")


def test_token_of_another_data_directory_is_refused(tokens: Tokens, tmp_path: Path) -> None:
    elsewhere = DataDir(tmp_path / "elsewhere")
    database = elsewhere.open_database()
    theirs = Tokens(database, load_key(elsewhere.key_path)).create("user-123", valid_seconds=DAY_SECONDS)
    with pytest.raises(Unauthenticated):
        tokens.check(theirs)
    database.close()


def test_bad_user_and_unknown_run_get_no_token(tokens: Tokens) -> None:
    with pytest.raises(InvalidName):
        tokens.create("../user", valid_seconds=DAY_SECONDS)
    with pytest.raises(NotFound):
        tokens.create("user-123", valid_seconds=DAY_SECONDS, task_id="no-such-run")


def test_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    key = load_key(tmp_path / "token.key")
    assert len(key) == 32
    assert load_key(tmp_path / "token.key") == key
    assert stat.S_IMODE((tmp_path / "token.key").stat().st_mode) == 0o600


async def test_revoked_token_is_refused_within_a_second_and_ends_its_watches(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    async with master.connect(token) as client:
        run = await make_run(client, "user-123")
        async with client.watch(names.WatchRequest(task_id=run.task_id)) as messages:
            await anext(messages)
            (record,) = json.loads(master.run("token", "list", "--json").stdout)
            assert record["state"] == "valid"
            await trio.to_thread.run_sync(lambda: master.run("token", "revoke", record["id"]))
            revoked_at = trio.current_time()
            with trio.fail_after(10), pytest.raises(Unauthenticated, match="revoked"):
                while True:
                    await client.get_capabilities()
            assert trio.current_time() - revoked_at < CHECKED_SECONDS + 1
            with trio.fail_after(10), pytest.raises(Unauthenticated, match="revoked"):
                async for _ in messages:
                    pass
    assert token not in master.log_text()


async def test_reader_whose_token_is_revoked_is_refused_within_a_second(master: MasterProcess) -> None:
    token = master.make_token("user-123")
    (record,) = json.loads(master.run("token", "list", "--json").stdout)
    async with master.connect(token) as client:
        run = await make_run(client, "user-123")
        node = await commit_one(client, run, file_commit(b"f", b"data"))
        # Once it is remembered, a read asks the database nothing.
        for _ in range(3):
            assert bytes((await client.read_chunk(run.task_id, node.node_id, 1, 0)).data) == b"data"
        await trio.to_thread.run_sync(lambda: master.run("token", "revoke", record["id"]))
        revoked_at = trio.current_time()
        with trio.fail_after(10), pytest.raises(Unauthenticated, match="revoked"):
            while True:
                await client.read_chunk(run.task_id, node.node_id, 1, 0)
        assert trio.current_time() - revoked_at < CHECKED_SECONDS + 1


async def test_client_reads_its_token_again_when_it_is_refused(master: MasterProcess) -> None:
    good = master.make_token("user-123")
    offered = iter(["stale", good])
    async with GrpcMasterClient(
        master.address, token_provider=lambda: next(offered), insecure=True
    ) as client:
        assert (await client.get_capabilities()).user == "user-123"


async def test_call_without_a_token_is_refused_as_such(master: MasterProcess) -> None:
    async with master.connect("") as client:
        with pytest.raises(Unauthenticated, match="no token"):
            await client.list_users()


async def test_token_command_prints_a_new_token_alone(master: MasterProcess) -> None:
    async with master.connect(master.make_token("user-123")) as client:
        run = await make_run(client, "user-123")
    made = {}
    for options in ((), ("--admin",), ("--task-id", run.task_id)):
        create = ("token", "create", "--user", "user-123", "--days", "2", *options)
        printed = (await trio.to_thread.run_sync(lambda *words: master.run(*words), *create)).stdout
        token = printed.removesuffix("\n")
        assert not set(token) & set(" \n")
        claims = claims_of(token)
        assert claims["exp"] - claims["iat"] == 2 * DAY_SECONDS
        async with master.connect(token) as client:
            assert (await client.get_capabilities()).user == "user-123"
        made[options] = (claims["sub"], claims["admin"], claims["run"])

    assert made == {
        (): ("user-123", False, ""),
        ("--admin",): ("user-123", True, ""),
        ("--task-id", run.task_id): ("user-123", False, run.task_id),
    }


def test_token_commands_say_what_is_wrong_in_one_line(master: MasterProcess) -> None:
    for arguments in (
        ("token", "create", "--user", "a/b"),
        ("token", "create", "--user", "user-123", "--task-id", "missing"),
        ("token", "revoke", "missing"),
    ):
        done = master.run(*arguments, check=False)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("cloudai-master: ")
