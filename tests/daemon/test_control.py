from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from cloudai_daemon.control_protocol import (
    REQUEST_BYTES_MAX,
    REQUESTS_IN_FLIGHT_MAX,
    STATUS_NAMES_MAX,
    RemoteError,
    StatusReport,
)
from cloudai_daemon.control_server import choose_socket_path, report_status, serve_control
from cloudai_fusefs.mount_control import (
    CachedIf,
    FileState,
    FileStatus,
    MountCounters,
    MountInspection,
    MountStatus,
    RunPlace,
    RunStatus,
    UncachedFile,
    UploadCounts,
    WarmupProgress,
    WarmupReport,
)
from cloudai_model.errors import InvalidRunName, NotFound, QuotaExceeded

ODD_PATH = "user-123/task/2026-11-20_15-04-05/caf\udce9\n"

STATUS = MountStatus(
    source="master.example:7443",
    user="user-123",
    connected=True,
    staged_bytes=30,
    pending=[
        FileStatus(path="a", state=FileState.UPLOADING, size_bytes=10, uploaded_bytes=4),
        FileStatus(
            path=ODD_PATH, state=FileState.FAILED, size_bytes=20, uploaded_bytes=0, reason="quota exceeded"
        ),
    ],
)


COUNTERS = MountCounters(memory_hits=3, request_counts={"read": 5}, failure_counts={"lookup ENOENT": 2})


class ScriptedControl:
    """MountControl that waits until it is told, and notes who was cancelled."""

    def __init__(self) -> None:
        self.durable = trio.Event()
        self.waiting = trio.Event()
        self.cancelled = trio.Event()
        self.counted_paths: list[str] = []
        self.is_ending = False

    def status(self, path: str = "") -> MountStatus:
        if path == "fault":
            raise ZeroDivisionError
        return replace(STATUS, source=path or STATUS.source)

    async def wait_durable(self, path: str = "") -> None:
        if path == "failed":
            raise QuotaExceeded(path=path)
        self.waiting.set()
        try:
            await self.durable.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def upload_counts(self, path: str = "") -> UploadCounts:
        self.counted_paths.append(path)
        return UploadCounts(connected=True, pending_count=2, pending_bytes=30, uploaded_bytes=4)

    async def drain(self, timeout_seconds: float | None = None) -> MountStatus:
        self.is_ending = True
        await self.durable.wait()
        return STATUS

    def resume(self) -> None:
        self.is_ending = False

    async def create_run(self, task: str, *, name: str = "", task_id: str = "") -> RunPlace:
        if name:
            raise InvalidRunName(name=name)
        return RunPlace(path=f"user-123/{task}/2026-11-20_15-04-05", task_id=task_id)

    async def list_runs(self, path: str = "") -> Sequence[RunStatus]:
        return [RunStatus(path="user-123/t/r", task_id="x", created_at_ns=1, sealed=True, exit_status=3)]

    async def seal_run(self, path: str, exit_status: int) -> None:
        raise NotFound(path=path)

    async def counters(self) -> MountCounters:
        return COUNTERS

    async def inspect(self) -> MountInspection:
        return MountInspection(version="1.2.3", cache_dir="/c", token_file="", master_failure="away")

    async def warmup(
        self,
        paths: Sequence[str],
        note_progress: Callable[[WarmupProgress], None],
        cached_if: CachedIf = CachedIf.LENGTH_MATCHES,
    ) -> WarmupReport:
        note_progress(WarmupProgress(files=len(paths), size_bytes=10, done_bytes=4))
        self.waiting.set()
        try:
            await self.durable.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return WarmupReport(
            files=len(paths),
            size_bytes=10,
            fetched_bytes=6,
            skipped_files=0,
            failed_files=1,
            failed=[UncachedFile(path=ODD_PATH, reason="damaged")],
        )


class Peer:
    """The other end of the socket, a line at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffered = b""

    async def send(self, message: object) -> None:
        await self.stream.send_all(json.dumps(message).encode() + b"\n")

    async def receive(self) -> Any:
        with trio.fail_after(5):
            while b"\n" not in self._buffered:
                received = await self.stream.receive_some()
                if not received:
                    return None
                self._buffered += received
        line, _, self._buffered = self._buffered.partition(b"\n")
        return json.loads(line)

    async def ask(self, method: str, **params: object) -> Any:
        await self.send({"id": 1, "method": method, "params": params})
        return await self.receive()


@pytest.fixture
def control() -> ScriptedControl:
    return ScriptedControl()


@pytest.fixture
async def peer(control: ScriptedControl, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Peer]:
    path = tmp_path / "state" / "control.sock"
    await nursery.start(serve_control, control, path)
    async with await trio.open_unix_socket(path) as stream:
        yield Peer(stream)


async def test_status_has_counts_and_failed_names_first(peer: Peer) -> None:
    answer = await peer.ask("status")
    assert answer["id"] == 1
    report = StatusReport.from_json(answer["result"])
    assert (report.pending_count, report.pending_bytes, report.uploaded_bytes, report.failed_count) == (
        2,
        30,
        4,
        1,
    )
    assert report.pending[0].path == ODD_PATH
    assert report.pending[0].reason == "quota exceeded"
    assert report.counters == COUNTERS


def test_status_of_an_older_mount_has_no_counts() -> None:
    fields = report_status(STATUS, COUNTERS).to_json()
    del fields["counters"]
    assert StatusReport.from_json(fields).counters == MountCounters()


def test_status_of_a_newer_mount_has_the_counts_that_are_known_here() -> None:
    fields = report_status(STATUS, MountCounters(memory_hits=7)).to_json()
    fields["counters"]["of_the_future"] = 1
    assert StatusReport.from_json(fields).counters == MountCounters(memory_hits=7)


def test_status_of_a_newer_mount_is_read_without_what_is_unknown_here() -> None:
    report = report_status(STATUS, COUNTERS)
    report = replace(report, file=report.pending[0])
    fields = report.to_json()
    for record in (fields, fields["file"], *fields["pending"]):
        record["of_the_future"] = 1
    assert StatusReport.from_json(fields) == report


async def test_warmup_tells_how_far_it_is_until_it_is_answered(peer: Peer, control: ScriptedControl) -> None:
    await peer.send({"id": 7, "method": "warmup", "params": {"paths": ["a", ODD_PATH]}})
    progress = await peer.receive()
    assert progress["id"] == 7
    assert WarmupProgress(**progress["progress"]) == WarmupProgress(files=2, size_bytes=10, done_bytes=4)
    await peer.send({"id": 8, "method": "status"})
    control.durable.set()
    answers: dict[int, Any] = {}
    while len(answers) < 2:
        line = await peer.receive()
        if "progress" not in line:
            answers[line["id"]] = line["result"]
    assert answers[7]["fetched_bytes"] == 6
    assert answers[7]["failed"] == [{"path": ODD_PATH, "reason": "damaged"}]


async def test_wait_costs_the_mount_nothing_while_nobody_watches(
    peer: Peer, control: ScriptedControl
) -> None:
    await peer.send({"id": 1, "method": "wait_durable", "params": {"path": ""}})
    await control.waiting.wait()
    await peer.send({"id": 2, "method": "inspect"})
    assert (await peer.receive())["id"] == 2
    control.durable.set()
    assert await peer.receive() == {"id": 1, "result": None}
    assert control.counted_paths == []


async def test_wait_tells_who_watches_how_far_it_is(peer: Peer, control: ScriptedControl) -> None:
    await peer.send({"id": 1, "method": "wait_durable", "params": {"path": "a", "progress": True}})
    line = await peer.receive()
    assert (line["id"], line["progress"]["pending_bytes"], line["progress"]["uploaded_bytes"]) == (1, 30, 4)
    control.durable.set()
    while "progress" in line:
        line = await peer.receive()
    assert line == {"id": 1, "result": None}
    assert set(control.counted_paths) == {"a"}


async def test_drain_answers_with_what_is_left(peer: Peer, control: ScriptedControl) -> None:
    control.durable.set()
    answer = await peer.ask("drain", timeout_seconds=0.5)
    assert [file["path"] for file in answer["result"]["pending"]] == [ODD_PATH, "a"]
    assert control.is_ending
    await peer.ask("resume")
    assert not control.is_ending


async def test_peer_that_leaves_a_warmup_ends_it(peer: Peer, control: ScriptedControl) -> None:
    await peer.send({"id": 1, "method": "warmup", "params": {"paths": [""]}})
    await control.waiting.wait()
    await peer.stream.aclose()
    with trio.fail_after(5):
        await control.cancelled.wait()


async def test_inspection_travels(peer: Peer) -> None:
    answer = await peer.ask("inspect")
    assert MountInspection(**answer["result"]).master_failure == "away"


async def test_run_is_created_and_listed(peer: Peer) -> None:
    created = await peer.ask("create_run", task="digits", task_id="abc")
    assert created["result"] == {"path": "user-123/digits/2026-11-20_15-04-05", "task_id": "abc"}
    listed = await peer.ask("list_runs", path="")
    assert listed["result"][0]["exit_status"] == 3


async def test_error_travels_as_reason_and_sentence(peer: Peer) -> None:
    answer = await peer.ask("create_run", task="digits", name="tomorrow")
    assert answer["error"]["reason"] == "INVALID_RUN_NAME"
    assert "tomorrow" in answer["error"]["message"]
    error = RemoteError(**answer["error"])
    assert error.is_a(InvalidRunName)
    assert not error.is_a(NotFound)


async def test_answers_come_as_they_are_ready(peer: Peer, control: ScriptedControl) -> None:
    await peer.send({"id": 1, "method": "wait_durable", "params": {"path": ""}})
    await peer.send({"id": 2, "method": "status"})
    assert (await peer.receive())["id"] == 2
    control.durable.set()
    assert await peer.receive() == {"id": 1, "result": None}


@pytest.mark.parametrize(
    "line",
    [b"hello", b"[]", b"null", b"{}", b'{"id":"x","method":"status"}', b'{"id":true,"method":"status"}',
     b'{"id":1,"method":"status","params":[]}', b"\xff\xfe", b"[" * 20000],
)  # fmt: skip
async def test_garbage_is_refused_and_the_connection_stays(peer: Peer, line: bytes) -> None:
    await peer.stream.send_all(line + b"\n")
    answer = await peer.receive()
    assert answer["id"] is None
    assert answer["error"]["reason"] == "INVALID_REQUEST"
    assert "result" in await peer.ask("status")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("shut_down", {}),
        ("__class__", {}),
        ("status", {"path": 1}),
        ("seal_run", {"path": "x"}),
        ("seal_run", {"path": "x", "exit_status": True}),
        ("seal_run", {"path": "x", "exit_status": "0"}),
        ("seal_run", {"path": "x", "exit_status": 2**31}),
        ("create_run", {"task": "\udcff"}),
        ("drain", {"timeout_seconds": -1}),
        ("drain", {"timeout_seconds": 10**400}),
        ("drain", {"timeout_seconds": float("nan")}),
        ("warmup", {}),
        ("warmup", {"paths": "x"}),
        ("warmup", {"paths": [1]}),
    ],
)
async def test_unknown_methods_and_parameters_are_refused(
    peer: Peer, method: str, params: dict[str, object]
) -> None:
    answer = await peer.ask(method, **params)
    assert answer["error"]["reason"] == "INVALID_REQUEST"


async def test_line_over_the_limit_ends_its_connection_alone(peer: Peer, tmp_path: Path) -> None:
    await peer.stream.send_all(b"x" * (REQUEST_BYTES_MAX + 1))
    answer = await peer.receive()
    assert answer["error"]["reason"] == "INVALID_REQUEST"
    assert await peer.receive() is None
    async with await trio.open_unix_socket(tmp_path / "state" / "control.sock") as stream:
        assert "result" in await Peer(stream).ask("status")


async def test_requests_over_the_limit_are_refused(peer: Peer) -> None:
    for request_id in range(1, REQUESTS_IN_FLIGHT_MAX + 2):
        await peer.send({"id": request_id, "method": "wait_durable"})
    answer = await peer.receive()
    assert answer["id"] == REQUESTS_IN_FLIGHT_MAX + 1
    assert "too many" in answer["error"]["message"]


async def test_vanished_peer_cancels_what_it_asked_for(peer: Peer, control: ScriptedControl) -> None:
    await peer.send({"id": 1, "method": "wait_durable", "params": {}})
    await control.waiting.wait()
    await peer.stream.aclose()
    with trio.fail_after(5):
        await control.cancelled.wait()


async def test_fault_in_an_answer_does_not_end_the_mount(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await peer.ask("status", path="fault")
    assert answer["error"]["reason"] == "INTERNAL"
    assert "control request status failed" in caplog.text
    assert "result" in await peer.ask("status")


async def test_socket_is_for_its_owner_and_goes_with_the_server(
    control: ScriptedControl, tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "state" / "control.sock"
    async with trio.open_nursery() as serving:
        await serving.start(serve_control, control, path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        serving.cancel_scope.cancel()
    assert not path.exists()


async def test_stale_socket_is_replaced(
    control: ScriptedControl, tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await nursery.start(serve_control, control, path)
    async with await trio.open_unix_socket(path) as stream:
        assert "result" in await Peer(stream).ask("status")


def test_long_state_dir_moves_the_socket_to_the_runtime_dir(tmp_path: Path) -> None:
    short, long = Path("/s"), Path("/" + "x" * 120)
    assert choose_socket_path(short, Path("/run/cloudai"), "mnt") == Path("/s/control.sock")
    assert choose_socket_path(long, Path("/run/cloudai"), "mnt") == Path("/run/cloudai/mnt.sock")


def test_status_of_a_long_backlog_is_cut_and_counted() -> None:
    file = FileStatus(path="x", state=FileState.STAGED, size_bytes=1, uploaded_bytes=0)
    report = report_status(replace(STATUS, pending=[file] * 5000), COUNTERS)
    assert report.pending_count == 5000
    assert report.pending_bytes == 5000
    assert len(report.pending) == STATUS_NAMES_MAX


def test_names_that_are_no_text_survive_the_socket() -> None:
    assert os.fsencode(json.loads(json.dumps(ODD_PATH))) == os.fsencode(ODD_PATH)
