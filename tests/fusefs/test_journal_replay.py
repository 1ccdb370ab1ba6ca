"""Random operations, outages and deaths of the mount: what was acknowledged is what the master has in the end.

A death takes everything in memory without a goodbye; the next mount has the state directory as it was at that
moment, and the master's tree. The reference is a dictionary.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudai_fusefs.extended_attributes import NoXattr
from cloudai_fusefs.node import DIRECTORY, FILE, SYMLINK
from cloudai_fusefs.wire_xattrs import xattrs_from_wire
from cloudai_model.errors import (
    AlreadyExists,
    CloudAIError,
    DirectoryNotEmpty,
    InvalidRequest,
    IsADirectory,
    MasterUnavailable,
    NotADirectory,
)
from cloudai_proto.storage.v1 import types_pb2 as types
from fakes.fake_master import FakeMaster, FakeMasterClient
from support.file_system_harness import FileSystemHarness, open_file_system
from support.loop_thread import LoopThread
from support.storage_requests import USER, make_run, read_file, tree_of

TIMEO_SECONDS = 2.0
FRESH_COUNT_MIN = 3

NAMES = st.sampled_from([b"a", b"b", b"c"])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    # Over what travels inside a commit.
    st.binary(min_size=1, max_size=4).map(lambda some: (some * 70_000)[:70_000]),
)
MODES = st.sampled_from([0o600, 0o644, 0o700, 0o755])
XATTR_NAMES = st.sampled_from([b"user.a", b"user.b"])
XATTR_VALUES = st.binary(max_size=3)
TIMES_NS = st.integers(1, 2_000_000_000_000_000_000)

Error = type[CloudAIError] | None


@dataclass(eq=False)
class Entry:
    """What a name stands for in the reference."""

    kind: types.NodeKind
    mode: int
    data: bytes = b""  # content, or a symlink's target
    mtime_ns: int | None = None  # where it was set, and nothing was written since
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Replay(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.mount_count = 0
        self.names: dict[bytes, Entry] = {}
        self.handles: dict[int, Entry] = {}
        # Operations since all was durable or died: on an empty tree there is little to be lost.
        self.fresh_count = 0
        self.loop = LoopThread()
        self.master = FakeMaster()
        self.observer = self.master.client(USER)
        self.run = self.loop.call(lambda: make_run(self.observer, USER))
        self.loop.call(self._start_mount)

    def teardown(self) -> None:
        try:
            self._all_is_durable()
        finally:
            self.loop.close()
            self.master.close()
            shutil.rmtree(self.directory)

    # --- the mount's life --------------------------------------------------------------------------------

    async def _start_mount(self) -> None:
        self.client: FakeMasterClient = self.master.client(USER)
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.fs: FileSystemHarness = await self.loop.nursery.start(self._serve_mount)

    async def _serve_mount(
        self, task_status: trio.TaskStatus[FileSystemHarness] = trio.TASK_STATUS_IGNORED
    ) -> None:
        state = self.directory / str(self.mount_count)
        with self.scope:
            async with open_file_system(
                self.client, self.run, state, timeo_seconds=TIMEO_SECONDS
            ) as file_system:
                task_status.started(file_system)
                await trio.sleep_forever()
        self.ended.set()

    @precondition(lambda self: self.fresh_count >= FRESH_COUNT_MIN)
    @rule(
        seconds=st.sampled_from([0.0, 0.05, 1.0]),
        checkpoint_count=st.integers(0, 12),
        is_away_afterwards=st.booleans(),
    )
    def die_in_an_upload(self, seconds: float, checkpoint_count: int, is_away_afterwards: bool) -> None:
        self._die(seconds, checkpoint_count, is_away_afterwards=is_away_afterwards)

    @precondition(lambda self: self.fresh_count >= FRESH_COUNT_MIN)
    @rule()
    def die_before_anything_is_sent(self) -> None:
        self._die(0, 0, is_away_afterwards=False)

    def _die(self, seconds: float, checkpoint_count: int, *, is_away_afterwards: bool) -> None:
        """A mount starts when its master is there, which may be away again before the tree is known."""

        async def die() -> None:
            self.loop.clock.jump(seconds)
            for _ in range(checkpoint_count):
                await trio.lowlevel.checkpoint()
            self.mount_count += 1
            self.fs.copy_state(self.directory / str(self.mount_count))
            self.client.is_revoked = True  # what was due already must not reach the master any more
            self.scope.cancel()
            await self.ended.wait()
            self.master.come_back()
            await self._start_mount()
            if is_away_afterwards:
                self.master.go_away()

        self.handles.clear()
        self.fresh_count = 0
        self.loop.call(die)

    @precondition(lambda self: self.fresh_count >= FRESH_COUNT_MIN)
    @rule(seconds=st.sampled_from([0.05, 1.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.call(lambda: trio.sleep(seconds))

    @rule(seconds=st.sampled_from([0.0, 0.3]))
    def let_answers_take(self, seconds: float) -> None:
        """What the master has carried out meanwhile, the mount does not know when it dies."""
        self.master.answer_latency_seconds = seconds

    @precondition(lambda self: self.fresh_count >= FRESH_COUNT_MIN and not self.master.is_away)
    @rule()
    def lose_the_master(self) -> None:
        self.loop.call_now(self.master.go_away)

    @precondition(lambda self: self.master.is_away)
    @rule()
    def find_the_master(self) -> None:
        self.master.come_back()

    # --- names -------------------------------------------------------------------------------------------

    @rule(data=st.data(), content=CONTENTS, mode=MODES, stays_open=st.booleans())
    def create(self, data: st.DataObject, content: bytes, mode: int, stays_open: bool) -> None:
        path = self._draw_place(data)
        entry = Entry(FILE, mode)

        async def create() -> None:
            handle = await self.fs.create(path, mode)
            self.handles[handle] = self.names[path] = entry
            await self.fs.write(handle, 0, content)
            entry.data = content

        if self._attempt(create, AlreadyExists if path in self.names else None) and not stays_open:
            self._close(max(self.handles))

    @rule(data=st.data(), mode=MODES)
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        path = self._draw_place(data)
        expected = AlreadyExists if path in self.names else None
        if self._attempt(lambda: self.fs.mkdir(path, mode), expected):
            self.names[path] = Entry(DIRECTORY, mode)

    @rule(data=st.data(), aim=st.sampled_from([b"a", b"../b", b"/nowhere"]))
    def symlink(self, data: st.DataObject, aim: bytes) -> None:
        path = self._draw_place(data)
        expected = AlreadyExists if path in self.names else None
        if self._attempt(lambda: self.fs.symlink(path, aim), expected):
            self.names[path] = Entry(SYMLINK, 0o777, aim)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        path = self._draw_existing(data)
        expected = IsADirectory if self.names[path].kind == DIRECTORY else None
        if self._attempt(lambda: self.fs.unlink(path), expected):
            del self.names[path]

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        path = self._draw_existing(data)
        expected: Error = None
        if self.names[path].kind != DIRECTORY:
            expected = NotADirectory
        elif self._below(path):
            expected = DirectoryNotEmpty
        if self._attempt(lambda: self.fs.rmdir(path), expected):
            del self.names[path]

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        old = self._draw_existing(data)
        new = self._draw_place(data)
        if not self._attempt(lambda: self.fs.rename(old, new), self._rename_error(old, new)):
            return
        if self.names.get(new) is self.names[old]:
            return  # two names of one file, or one: nothing is done (rename(2))
        self.names.pop(new, None)
        for path in [old, *self._below(old)]:
            self.names[new + path.removeprefix(old)] = self.names.pop(path)

    @precondition(lambda self: self._linkable())
    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self._linkable()))
        new = self._draw_place(data)
        if not self.master.is_away:
            self.loop.call(self._make_durable)  # which it is first, and that may take longer than a link may
        if self._attempt(lambda: self.fs.link(path, new), AlreadyExists if new in self.names else None):
            self.names[new] = self.names[path]

    def _rename_error(self, old: bytes, new: bytes) -> Error:
        node, replaced = self.names[old], self.names.get(new)
        if new.startswith(old + b"/"):
            return InvalidRequest
        if replaced is None or replaced is node:
            return None
        if replaced.kind == DIRECTORY and node.kind != DIRECTORY:
            return IsADirectory
        if node.kind == DIRECTORY and replaced.kind != DIRECTORY:
            return NotADirectory
        return DirectoryNotEmpty if self._below(new) else None

    @precondition(lambda self: self.names)
    @rule(data=st.data(), mode=MODES)
    def chmod(self, data: st.DataObject, mode: int) -> None:
        path = self._draw_existing(data)
        if self._attempt(lambda: self.fs.set_attributes(path, mode=mode)):
            self.names[path].mode = mode

    @precondition(lambda self: self.names)
    @rule(data=st.data(), mtime_ns=TIMES_NS)
    def utimens(self, data: st.DataObject, mtime_ns: int) -> None:
        path = self._draw_existing(data)
        if self._attempt(lambda: self.fs.set_attributes(path, mtime_ns=mtime_ns)):
            self.names[path].mtime_ns = mtime_ns

    @precondition(lambda self: self._bearers())
    @rule(data=st.data(), name=XATTR_NAMES, value=XATTR_VALUES)
    def set_xattr(self, data: st.DataObject, name: bytes, value: bytes) -> None:
        path = data.draw(st.sampled_from(self._bearers()))
        if self._attempt(lambda: self.fs.set_xattr(path, name, value)):
            self.names[path].xattrs[name] = value

    @precondition(lambda self: self._bearers())
    @rule(data=st.data(), name=XATTR_NAMES)
    def remove_xattr(self, data: st.DataObject, name: bytes) -> None:
        path = data.draw(st.sampled_from(self._bearers()))
        expected = None if name in self.names[path].xattrs else NoXattr
        if self._attempt(lambda: self.fs.remove_xattr(path, name), expected):
            del self.names[path].xattrs[name]

    # --- contents ----------------------------------------------------------------------------------------

    @precondition(lambda self: self._files())
    @rule(data=st.data(), flags=st.sampled_from([os.O_RDWR, os.O_WRONLY | os.O_TRUNC]))
    def open(self, data: st.DataObject, flags: int) -> None:
        path = data.draw(st.sampled_from(self._files()))
        entry = self.names[path]

        async def open_it() -> None:
            self.handles[await self.fs.open(path, flags)] = entry

        if self._attempt(open_it) and flags & os.O_TRUNC:
            entry.data, entry.mtime_ns = b"", None

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), offset_bytes=st.integers(0, 100), content=CONTENTS)
    def write(self, data: st.DataObject, offset_bytes: int, content: bytes) -> None:
        handle = data.draw(st.sampled_from(sorted(self.handles)))
        entry = self.handles[handle]
        if self._attempt(lambda: self.fs.write(handle, offset_bytes, content)):
            before = entry.data.ljust(offset_bytes, b"\0") if content else entry.data
            entry.data = before[:offset_bytes] + content + before[offset_bytes + len(content) :]
            entry.mtime_ns = None

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self._close(data.draw(st.sampled_from(sorted(self.handles))))

    @precondition(lambda self: self._files())
    @rule(data=st.data(), size_bytes=st.integers(0, 100))
    def truncate(self, data: st.DataObject, size_bytes: int) -> None:
        path = data.draw(st.sampled_from(self._files()))
        entry = self.names[path]
        if self._attempt(lambda: self.fs.truncate(path, size_bytes)):
            entry.data = entry.data[:size_bytes].ljust(size_bytes, b"\0")
            entry.mtime_ns = None

    @precondition(lambda self: self._files())
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self._files()))
        contents: list[bytes] = []

        async def read_it() -> None:
            contents.append(await self.fs.read_file(path))

        if self._attempt(read_it):
            assert contents == [self.names[path].data]

    # --- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def mount_shows_the_reference(self) -> None:
        self.loop.call_now(self._compare_shown)

    def _compare_shown(self) -> None:
        if self.fs.tree.is_loaded:
            shown = {path: (shown.kind, shown.mode, shown.xattrs) for path, shown in self.fs.shown().items()}
            assert shown == {
                path: (entry.kind, entry.mode, entry.xattrs) for path, entry in self.names.items()
            }

    @precondition(lambda self: self.fresh_count >= FRESH_COUNT_MIN)
    @rule()
    def wait_until_durable(self) -> None:
        self._all_is_durable()

    def _all_is_durable(self) -> None:
        self.fresh_count = 0
        self.master.come_back()
        for handle in list(self.handles):
            self._close(handle)
        self.loop.call(self._make_durable)
        self.loop.call(self._compare)

    async def _make_durable(self) -> None:
        with trio.fail_after(120):
            await self.fs.make_all_durable()

    async def _compare(self) -> None:
        tree = await tree_of(self.observer, self.run)
        del tree[b""]
        assert {path: (node.kind, node.attributes.mode) for path, node in tree.items()} == {
            path: (entry.kind, entry.mode) for path, entry in self.names.items()
        }
        for path, entry in self.names.items():
            node = tree[path]
            assert xattrs_from_wire(node.xattrs) == entry.xattrs
            if entry.kind == FILE:
                assert await read_file(self.observer, self.run, node) == entry.data
                assert node.size_bytes == len(entry.data)
                assert entry.mtime_ns in (None, node.attributes.mtime_ns)
            elif entry.kind == SYMLINK:
                assert node.symlink_target == entry.data

    # --- drawing -----------------------------------------------------------------------------------------

    def _draw_place(self, data: st.DataObject) -> bytes:
        directories = [path + b"/" for path, entry in self.names.items() if entry.kind == DIRECTORY]
        shallow = [path for path in directories if path.count(b"/") < 3]
        parent = data.draw(st.sampled_from([b"", *sorted(shallow)]))
        return parent + data.draw(NAMES)

    def _draw_existing(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(sorted(self.names)))

    def _files(self) -> list[bytes]:
        return sorted(path for path, entry in self.names.items() if entry.kind == FILE)

    def _linkable(self) -> list[bytes]:
        return sorted(path for path, entry in self.names.items() if entry.kind != DIRECTORY)

    def _bearers(self) -> list[bytes]:
        """What may have extended attributes."""
        return sorted(path for path, entry in self.names.items() if entry.kind != SYMLINK)

    def _below(self, path: bytes) -> list[bytes]:
        return [below for below in self.names if below.startswith(path + b"/")]

    def _close(self, handle: int) -> None:
        self.loop.call_now(lambda: self.fs.close_handle(handle))
        del self.handles[handle]

    def _attempt(self, act: Callable[[], Awaitable[None]], expected: Error = None) -> bool:
        """Whether the operation was done. It fails as expected, or because the master is away."""
        try:
            self.loop.call(act)
        except (MasterUnavailable, trio.TooSlowError):
            assert self.master.is_away
            return False
        except CloudAIError as error:
            if expected is None or not isinstance(error, expected):
                raise
            return False
        assert expected is None
        self.fresh_count += 1
        return True


TestJournalReplay = Replay.TestCase
TestJournalReplay.settings = settings(
    max_examples=int(os.environ.get("REPLAY_EXAMPLES", "60")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
