"""The runs at the master that volumes are, as the token of a call may see and change them.

Each call has a connection of its own, in a trio loop of its own: calls are rare, and each brings its token. Blocks
until the call's deadline, at most CALL_SECONDS_MAX, from any thread. Raises VolumeFailed; what was cut off may have
been done, and the same call finds it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import trio
from google.rpc import code_pb2 as codes

from cloudai_daemon.csi.call_deadline import CallDeadline
from cloudai_daemon.csi.errors import VolumeFailed
from cloudai_daemon.csi.volume_ids import may_be_of, task_id_of
from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_model.errors import (
    AlreadyExists,
    CloudAIError,
    MasterUnavailable,
    NotFound,
    PermissionRefused,
    RunSealed,
)
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

CALL_SECONDS_MAX: Final = 15.0
"""For the few calls to the master that one of these makes; less where its caller gives up before (CallDeadline)."""

_ATTEMPT_SECONDS_MAX: Final = 5.0

T = TypeVar("T")


def task_id_of_name(name: str) -> str:
    """Of the run that a volume of this name is: the same for the same name, whoever asks."""
    return hashlib.blake2b(name.encode(), digest_size=12, person=b"cloudai-csi").hexdigest()


def path_of(run: types.Run) -> str:
    return f"{run.user}/{run.task}/{run.name}"


class VolumeRuns:
    """Of one master."""

    def __init__(self, address: str, *, insecure: bool, ca_file: Path | None) -> None:
        self._address = address
        self._insecure = insecure
        self._ca_file = ca_file

    def create(self, token: str, name: str, task: str, deadline: CallDeadline) -> types.Run:
        """The open run of a volume's name, made if it is new. Raises ALREADY_EXISTS for another task, of somebody
        else's, or when it was sealed.
        """
        return self._ask(token, lambda client: _create(client, task_id_of_name(name), task), deadline)

    def find(
        self, token: str, volume_id: str, deadline: CallDeadline, user: str = "", task: str = ""
    ) -> types.Run:
        """Raises NOT_FOUND. Without a user it is looked for among the token's own."""
        return self._ask(token, lambda client: _find(client, volume_id, user, task), deadline)

    def seal(self, token: str, volume_id: str, deadline: CallDeadline) -> None:
        """Exit status 0: what became of containers is not told to drivers. Nothing to do for one that is sealed, or
        is not there. Raises PERMISSION_DENIED for one that is another user's than the token.
        """
        self._ask(token, lambda client: _seal(client, volume_id), deadline)

    def require_to_see(self, token: str, volume_id: str, deadline: CallDeadline) -> None:
        """What `seal` raises of a token, and nothing is changed."""
        self._ask(token, lambda client: _require_to_see(client, volume_id), deadline)

    def _ask(self, token: str, ask: Callable[[GrpcMasterClient], Awaitable[T]], deadline: CallDeadline) -> T:
        seconds_max = deadline.left(CALL_SECONDS_MAX)

        async def call() -> T:
            with trio.move_on_after(seconds_max):
                async with self._client(token) as client:
                    return await ask(client)
            raise MasterUnavailable(timeout_seconds=round(seconds_max, 1))

        try:
            return trio.run(call)
        except MasterUnavailable as error:
            raise VolumeFailed(
                codes.DEADLINE_EXCEEDED if deadline.is_over else codes.UNAVAILABLE,
                f"the master {self._address} is away, or not to be reached from here: {error}",
            ) from error
        except CloudAIError as error:
            raise VolumeFailed.of(error) from error
        except OSError as error:
            raise VolumeFailed(codes.INTERNAL, f"{error.filename}: {error.strerror}") from error

    def _client(self, token: str) -> GrpcMasterClient:
        return GrpcMasterClient(
            self._address,
            token_provider=lambda: token,
            insecure=self._insecure,
            root_certificates=self._ca_file.read_bytes() if self._ca_file is not None else None,
            call_deadline_seconds=_ATTEMPT_SECONDS_MAX,
        )


async def _create(client: GrpcMasterClient, task_id: str, task: str) -> types.Run:
    user = (await client.get_capabilities()).user
    request = names.CreateRunRequest(
        request_id=secrets.token_bytes(16), user=user, task=task, task_id=task_id
    )
    try:
        return await client.create_run(request)
    except AlreadyExists:
        pass
    with suppress(NotFound):
        run = await _find(client, task_id, user, task)
        if not run.sealed:
            return run
        raise VolumeFailed(codes.ALREADY_EXISTS, f"the run of this volume is sealed: {path_of(run)}")
    raise VolumeFailed(
        codes.ALREADY_EXISTS, "there is a volume of this name with another task, or of another user"
    )


async def _find(client: GrpcMasterClient, volume_id: str, user: str, task: str) -> types.Run:
    user = user or (await client.get_capabilities()).user
    runs, _ = await client.list_runs(user, task)
    for run in runs:
        if run.task_id == task_id_of(volume_id):
            return run
    raise NotFound("no run of this id can be seen with this token", volume_id=volume_id)


async def _seal(client: GrpcMasterClient, volume_id: str) -> None:
    request = names.SealRunRequest(
        request_id=secrets.token_bytes(16), task_id=task_id_of(volume_id), exit_status=0
    )
    try:
        await client.seal_run(request)
    except RunSealed:
        pass
    except NotFound:
        await _require_to_see(client, volume_id)


async def _require_to_see(client: GrpcMasterClient, volume_id: str) -> None:
    """Raises PermissionRefused where the volume's run, if there is one, may be hidden from the token."""
    caller = await client.get_capabilities()
    if caller.task_id:
        raise PermissionRefused("the token is good for one run alone", task_id=caller.task_id)
    if not caller.admin and not may_be_of(volume_id, caller.user):
        raise PermissionRefused("the volume is another user's than the token", token_user=caller.user)
