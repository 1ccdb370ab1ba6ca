"""The command line's end of the control socket. Synchronous, for one thread."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cloudai_daemon.control_protocol import (
    RESPONSE_BYTES_MAX,
    Json,
    RemoteError,
    StatusReport,
    encode_line,
)
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.mount_control import (
    CachedIf,
    MountInspection,
    RunPlace,
    RunStatus,
    UncachedFile,
    WarmupProgress,
    WarmupReport,
)
from cloudai_model.errors import InternalError

# Answers that need no master come in milliseconds; one that asks the master has its own deadlines there.
CALL_SECONDS_DEFAULT: Final = 60.0
SIGN_OF_LIFE_SECONDS_MAX: Final = 10.0
"""Of a daemon that is busy on a loaded machine; one that was stopped gives none."""
_CONNECT_SECONDS_MAX: Final = 5.0
_READ_BYTES: Final = 64 * 1024


class DaemonUnreachable(Exception):
    """The mount daemon does not answer: gone, or not ours to ask. What was asked may have been done."""

    def __init__(self, mount_point: Path, cause: str) -> None:
        super().__init__(f"{mount_point}: the mount daemon does not answer: {cause}")
        self.mount_point = mount_point


class ControlClient:
    """One connection to one mount daemon. Several requests may be under way at once.

    Every method raises RemoteError for an error that the daemon answers, DaemonUnreachable for none.
    """

    def __init__(self, entry: RegistryEntry) -> None:
        self.entry = entry
        self._next_id = 0
        self._buffered = bytearray()
        self._answers: dict[int, Json] = {}
        self._progress: dict[int, Json] = {}  # the latest of each request that tells some
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_CONNECT_SECONDS_MAX)
        try:
            self._socket.connect(str(entry.control_socket))
        except OSError as error:
            self._socket.close()
            raise self._unreachable(error) from error

    @classmethod
    def of_living(cls, entry: RegistryEntry) -> Self:
        """The same of a daemon that has just answered something: one that was stopped takes connections too, and
        whoever asked it would wait for as long as the answer may take.
        """
        client = cls(entry)
        try:
            client._require_sign_of_life()
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is still under way is cancelled by the daemon."""
        self._socket.close()

    def status(self, path: str = "", timeout_seconds: float = CALL_SECONDS_DEFAULT) -> StatusReport:
        return StatusReport.from_json(self.call("status", {"path": path}, timeout_seconds))

    def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        return RunPlace(**self.call("create_run", {"task": task, "name": name, "task_id": task_id}))

    def list_runs(self, path: str = "") -> list[RunStatus]:
        return [RunStatus(**fields) for fields in self.call("list_runs", {"path": path})]

    def create_run_token(self, path: str, *, valid_seconds: int) -> str:
        return str(self.call("create_run_token", {"path": path, "valid_seconds": valid_seconds}))

    def inspect(self, timeout_seconds: float) -> MountInspection:
        answer = self.call("inspect", {}, timeout_seconds)
        # A daemon of another version may say more.
        known = {field.name for field in fields(MountInspection)}
        return MountInspection(**{name: value for name, value in answer.items() if name in known})

    def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        """Takes as long as it takes; interrupted, closing the connection ends it at the mount."""
        report = self.follow(
            "warmup",
            {"paths": list(paths), "cached_if": str(cached_if)},
            lambda progress: note_progress(WarmupProgress(**progress)),
        )
        return WarmupReport(**{**report, "failed": [UncachedFile(**file) for file in report["failed"]]})

    def follow(self, method: str, params: Mapping[str, Json], note_progress: Callable[[Json], None]) -> Json:
        """As `call`, of a request that tells how far it is: DaemonUnreachable when it falls silent."""
        request_id = self.send(method, params)

        def has_come() -> bool:
            return request_id in self._answers or request_id in self._progress

        while request_id not in self._answers:
            if not self._receive_until(has_come, CALL_SECONDS_DEFAULT):
                raise self._unreachable(TimeoutError(f"silent for {CALL_SECONDS_DEFAULT:.0f} s"))
            progress = self._progress.pop(request_id, None)
            if progress is not None:
                note_progress(progress)
        return self.take(request_id)

    def next_progress(self, request_id: int, timeout_seconds: float) -> Json:
        """What was told last of a request, waiting at most the given time for it or for the answer; None:
        neither has come, or the answer has.
        """
        self._receive_until(
            lambda: request_id in self._answers or request_id in self._progress, timeout_seconds
        )
        return self._progress.pop(request_id, None)

    def call(
        self, method: str, params: Mapping[str, Json], timeout_seconds: float = CALL_SECONDS_DEFAULT
    ) -> Json:
        """The result of one request."""
        request_id = self.send(method, params)
        if not self.poll(request_id, timeout_seconds):
            raise self._unreachable(TimeoutError(f"no answer within {timeout_seconds:.0f} s"))
        return self.take(request_id)

    def send(self, method: str, params: Mapping[str, Json]) -> int:
        """Asks without waiting; the id to poll and take the answer by."""
        self._next_id += 1
        line = encode_line({"id": self._next_id, "method": method, "params": dict(params)})
        try:
            self._socket.settimeout(CALL_SECONDS_DEFAULT)
            self._socket.sendall(line)
        except OSError as error:
            raise self._unreachable(error) from error
        return self._next_id

    def poll(self, request_id: int, timeout_seconds: float) -> bool:
        """Whether the answer is there, waiting at most the given time for it."""
        return self._receive_until(lambda: request_id in self._answers, timeout_seconds)

    def _receive_until(self, has_come: Callable[[], bool], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while not has_come():
            remaining_seconds = deadline - time.monotonic()
            if remaining_seconds <= 0:
                return False
            self._receive(remaining_seconds)
        return True

    def take(self, request_id: int) -> Json:
        """The result that poll found."""
        answer = self._answers.pop(request_id)
        if "error" not in answer:
            return answer.get("result")
        error = answer["error"]
        raise RemoteError(reason=str(error.get("reason")), message=str(error.get("message")))

    def _receive(self, timeout_seconds: float) -> None:
        self._socket.settimeout(timeout_seconds)
        try:
            received = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise self._unreachable(error) from error
        if not received:
            raise self._unreachable(ConnectionResetError("it closed the connection"))
        self._buffered += received
        *lines, rest = self._buffered.split(b"\n")
        if len(rest) > RESPONSE_BYTES_MAX:
            raise self._unreachable(ValueError("its answer is too long"))
        self._buffered = bytearray(rest)
        for line in lines:
            self._keep(json.loads(line))

    def _keep(self, answer: Json) -> None:
        if answer.get("id") is None:
            # Only a line that the daemon could not read is answered so: a fault of one of the two ends.
            raise RemoteError(reason=InternalError.reason, message=str(answer.get("error")))
        if "progress" in answer:
            self._progress[answer["id"]] = answer["progress"]
        else:
            self._answers[answer["id"]] = answer

    def _require_sign_of_life(self) -> None:
        """Whatever is answered: an older daemon does not know the word."""
        request_id = self.send("ping", {})
        if not self.poll(request_id, SIGN_OF_LIFE_SECONDS_MAX):
            raise self._unreachable(TimeoutError(f"silent for {SIGN_OF_LIFE_SECONDS_MAX:.0f} s"))
        del self._answers[request_id]

    def _unreachable(self, error: Exception) -> DaemonUnreachable:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return DaemonUnreachable(self.entry.mount_point, cause)
