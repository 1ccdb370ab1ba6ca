"""A network between a mount and its master that fails as a test wants: a TCP proxy on the loopback.

What is cut is reset at both ends. What swallows takes bytes and passes none on, so that its connections never
work again: `restore` resets them, as a router does that has forgotten them. Faults of one call know it by the size
of its request, HTTP/2's frames being readable from outside where its headers are not: the mount is quiet but for
that call.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Final, TypeVar

from support.http2_frames import Frame, FrameWalker
from support.mount_process import wait_until

PIECE_BYTES: Final = 64 * 1024
BUFFER_BYTES: Final = 256 * 1024
"""What a network holds on its way to the master. The loopback's own buffers would be many seconds of a slow one."""
CONNECTIONS_MAX: Final = 64
"""A mount has one; those beyond are a client that does not let go, and are reset."""
ACT_SECONDS_MAX: Final = 10.0
CONNECT_SECONDS_MAX: Final = 5.0

_RESET: Final = struct.pack("ii", 1, 0)

T = TypeVar("T")


class Way(Enum):
    """The two directions of a connection."""

    TO_MASTER = "to the master"
    TO_MOUNT = "to the mount"


class Act(Enum):
    """What a fault does to the connection that it meets, at the byte that it meets."""

    CUT = "cut"
    SWALLOW_TO_MASTER = "swallow what goes to the master"
    SWALLOW_TO_MOUNT = "swallow what goes to the mount"
    SWALLOW_ALL = "swallow what goes either way"


_SWALLOWED_WAYS: Final = {
    Act.SWALLOW_TO_MASTER: frozenset({Way.TO_MASTER}),
    Act.SWALLOW_TO_MOUNT: frozenset({Way.TO_MOUNT}),
    Act.SWALLOW_ALL: frozenset(Way),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Happens once: after `after_bytes` of one way.

    With `request_bytes_min` only the bytes of calls count whose request has carried so many by then: to the master
    those of the rest of the request, to the mount those of its answer.
    """

    way: Way
    act: Act
    after_bytes: int
    request_bytes_min: int = 0


class NetworkProxy:
    """Listens on a port of its own from `start` on, or as a context; used from the test's threads."""

    def __init__(self, master_address: str) -> None:
        host, port = master_address.rsplit(":", 1)
        self._master = host, int(port)
        self.address = "127.0.0.1:0"
        self.passed_bytes: Counter[Way] = Counter()
        """What arrived at the other end's socket, since the beginning."""
        self.connection_count = 0
        """Connections that were accepted, since the beginning."""
        self._fault: Fault | None = None
        self._left_bytes = 0
        self._delay_seconds = 0.0
        self._bytes_per_second = 0
        self._swallowed_ways: frozenset[Way] = frozenset()
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network proxy")

    def __enter__(self) -> NetworkProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- faults ------------------------------------------------------------------------------------------

    def arm(self, fault: Fault) -> None:
        """It happens to the first connection that meets it, in place of one that was armed before."""

        def take() -> None:
            self._fault = fault
            self._left_bytes = fault.after_bytes

        self._now(take)

    def wait_for_fault(self, *, seconds_max: float = 20.0) -> None:
        """Returns when the armed fault has happened."""
        wait_until(lambda: self._fault is None, "the fault", seconds_max=seconds_max)

    @property
    def is_armed(self) -> bool:
        """Whether a fault has yet to happen."""
        return self._fault is not None

    def cut(self) -> None:
        """Resets all connections; new ones are taken."""
        self._now(self._cut_all)

    def refuse(self) -> None:
        """Resets all connections and takes no new ones, until `restore`."""
        self._do(self._stop_listening())
        self._now(self._cut_all)

    def swallow(self, *ways: Way) -> None:
        """What goes these ways arrives nowhere, on present and new connections, until `restore`."""

        def take() -> None:
            self._swallowed_ways = frozenset(ways)
            for link in self._links:
                link.swallowed_ways |= self._swallowed_ways

        self._now(take)

    def restore(self) -> None:
        """All is well again: connections that have swallowed something are reset, new ones are taken."""

        def reset_lossy_links() -> None:
            self._fault = None
            self._swallowed_ways = frozenset()
            for link in list(self._links):
                if link.swallowed_ways:
                    link.reset()

        self._now(reset_lossy_links)
        self._do(self._listen())

    def slow_down(self, *, delay_seconds: float = 0.0, bytes_per_second: int = 0) -> None:
        """Holds each piece of at most 64 KiB, and passes no more than so many bytes a second each way (0: all)."""

        def take() -> None:
            self._delay_seconds = delay_seconds
            self._bytes_per_second = bytes_per_second

        self._now(take)

    # --- the loop's side ---------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._listener is None:
            host, port = self.address.rsplit(":", 1)
            self._listener = socket.create_server((host, int(port)))
            self._listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES
            )  # handed on to connections
            self._listener.setblocking(False)
            self.address = f"{host}:{self._listener.getsockname()[1]}"
            # Not asyncio's server, which loses a connection that comes while it is closed.
            self._loop.add_reader(self._listener, self._take_connection, self._listener)

    def _take_connection(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):
            taken, _ = listener.accept()
            task = self._loop.create_task(self._serve(taken))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _close(self) -> None:
        await self._stop_listening()
        self._cut_all()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=ACT_SECONDS_MAX)

    def _cut_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _serve(self, taken: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=taken, limit=PIECE_BYTES)
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                master = await asyncio.open_connection(*self._master, limit=PIECE_BYTES)
        except OSError:
            _reset(writer)  # the master is away; a timeout is one, too
            return
        link = _Link(writer, master[1], self._swallowed_ways)
        if self._listener is None or len(self._links) >= CONNECTIONS_MAX:
            link.reset()
            return
        self.connection_count += 1
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pass_on(link, Way.TO_MASTER, reader, master[1]),
                self._pass_on(link, Way.TO_MOUNT, master[0], writer),
            )
        finally:
            self._links.discard(link)
            link.reset()

    async def _pass_on(
        self, link: _Link, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        frames = FrameWalker(has_preface=way is Way.TO_MASTER)
        try:
            while piece := await reader.read(PIECE_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                if self._bytes_per_second:
                    await asyncio.sleep(len(piece) / self._bytes_per_second)
                place = self._place_of_fault(link, way, frames.walk(piece))
                if way not in link.swallowed_ways:
                    passed = piece if place is None else piece[:place]
                    writer.write(passed)
                    self.passed_bytes[way] += len(passed)
                if place is not None and not self._carry_out(link, way):
                    writer.write(piece[place:])
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            link.end()

    def _place_of_fault(self, link: _Link, way: Way, frames: list[Frame]) -> int | None:
        """At which byte of the piece the armed fault happens; None: not in this one."""
        place = None
        for frame in frames:
            length_bytes = frame.stop - frame.start
            if way is Way.TO_MASTER and frame.is_data:
                link.request_bytes[frame.stream_id] += length_bytes
            fault = self._fault
            if place is None and fault is not None and fault.way is way and self._counts(link, frame, fault):
                if self._left_bytes < length_bytes:
                    place = frame.start + self._left_bytes
                self._left_bytes -= length_bytes
        return place

    @staticmethod
    def _counts(link: _Link, frame: Frame, fault: Fault) -> bool:
        if not fault.request_bytes_min:
            return True
        return frame.is_of_call and link.request_bytes[frame.stream_id] >= fault.request_bytes_min

    def _carry_out(self, link: _Link, way: Way) -> bool:
        """Whether the rest of the piece is lost."""
        assert self._fault is not None
        act, self._fault = self._fault.act, None
        if act is Act.CUT:
            link.reset()
            return True
        link.swallowed_ways |= _SWALLOWED_WAYS[act]
        return way in link.swallowed_ways

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ACT_SECONDS_MAX)

    def _now(self, work: Callable[[], None]) -> None:
        """Between two steps of the loop."""
        done: Future[None] = Future()

        def run() -> None:
            work()
            done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(ACT_SECONDS_MAX)


class _Link:
    """One connection of the mount and its other half."""

    def __init__(
        self,
        to_mount: asyncio.StreamWriter,
        to_master: asyncio.StreamWriter,
        swallowed_ways: frozenset[Way],
    ) -> None:
        self._writers = {Way.TO_MOUNT: to_mount, Way.TO_MASTER: to_master}
        self.swallowed_ways = swallowed_ways
        self.request_bytes: Counter[int] = Counter()
        """By stream: a number for each call that the connection has carried."""

    def end(self) -> None:
        """One end has given up. That is said to the other, unless it is swallowed with the rest."""
        for way, writer in self._writers.items():
            if way not in self.swallowed_ways:
                _reset(writer)

    def reset(self) -> None:
        """Ends it at both ends."""
        for writer in self._writers.values():
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
