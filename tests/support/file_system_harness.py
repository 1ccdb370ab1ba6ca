"""The parts of one mount over any MasterClient, composed as `cloudai_fusefs.mount` does, without a kernel.

A program's calls by path take the place of the kernel's requests: each looks its path up, is bounded as a
handler is, and lets go at once of what nothing refers to any more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import trio

from cloudai_fusefs.chunk_memory import ChunkMemory
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.extended_attributes import ExtendedAttributes
from cloudai_fusefs.managed_changes import ManagedChanges
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.mount_control import NAMES_DEFAULT, MountConfig
from cloudai_fusefs.mount_measures import MountMeasures
from cloudai_fusefs.namespace import AttributeChange, Namespace, Owner
from cloudai_fusefs.node import FILE, SYMLINK, Node
from cloudai_fusefs.open_directories import OpenDirectories
from cloudai_fusefs.open_files import OpenFiles
from cloudai_fusefs.range_reader import RangeReader
from cloudai_fusefs.rearrangements import Rearrangements
from cloudai_fusefs.request_counters import RequestCounters
from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.running_mount import RunningMount
from cloudai_fusefs.sealed_cache import SealedCache
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.tree_memory import TreeMemory
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader
from cloudai_fusefs.warmup import Warmup
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.limits import MIB
from cloudai_proto.storage.v1 import types_pb2 as types

OWNER = Owner(1000, 1000)
MEMORY_BYTES_MAX = 64 * MIB
READ_BYTES = 1 * MIB

P = ParamSpec("P")
R = TypeVar("R")


class Shown(NamedTuple):
    """A name as the mount shows it. `content` is a symlink's target; of files and directories it is empty."""

    kind: types.NodeKind
    mode: int
    size_bytes: int
    mtime_ns: int
    content: bytes
    xattrs: Mapping[bytes, bytes]
    link_count: int


class FileSystemHarness:
    """One mount, seen from inside one run. Made by `open_file_system`."""

    def __init__(
        self,
        client: MasterClient,
        run: types.Run,
        directory: Path,
        nursery: trio.Nursery,
        *,
        timeo_seconds: float,
        cache_bytes_max: int,
        memory_bytes_max: int,
    ) -> None:
        self.state_dir = directory / "state"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        cache_dir = directory / "cache"
        self._user = run.user
        self._task_id = run.task_id
        self._timeo_seconds = timeo_seconds
        self.client = RetryingMasterClient(client, timeo_seconds=timeo_seconds)
        disk_cache = DiskChunkCache(
            cache_dir, scope="test", bytes_max=cache_bytes_max, nursery=nursery, free_bytes_min=0
        )
        sealed_cache = SealedCache(cache_dir, scope="test", bytes_max=cache_bytes_max, nursery=nursery)
        memory = ChunkMemory(memory_bytes_max)
        write_behind = WriteBehind(disk_cache, nursery)
        self.reader = ChunkReader(self.client, memory, disk_cache, write_behind, nursery)
        range_reader = RangeReader(self.client, self.reader, memory, disk_cache, write_behind, nursery)
        self._locks: dict[Node, trio.Lock] = {}
        self.told: list[Invalidation] = []
        """What the kernel would have been told."""
        self.uploader = Uploader(self.client, self.reader, self.told.extend, nursery)
        self.staging = self.uploader.staging = Staging(self.state_dir, self.reader, self.uploader.note_change)
        self.managed = ManagedTree()
        self.sync = TreeSync(self.client, self.managed, self.staging, sealed_cache, self.told.extend, nursery)
        self.namespace = Namespace(
            self.client, self.managed, self.sync, self.staging, self.uploader, read_only=False
        )
        self.extended_attributes = ExtendedAttributes(self.namespace, self.staging)
        self.managed_changes = ManagedChanges(self.client, self.managed, self.sync, self.namespace)
        self.rearrangements = Rearrangements(self.client, self.namespace, self.staging, self.uploader)
        self.files = OpenFiles(
            self.client,
            self.reader,
            range_reader,
            sealed_cache,
            self.staging,
            self.uploader,
            read_only=False,
            writes_pass_pages=True,
            timeo_seconds=timeo_seconds,
        )
        self.directories = OpenDirectories(self.namespace)
        self.asked_back: list[Node] = []
        """What the kernel would have been asked to give back."""
        self.tree_memory = TreeMemory(
            self.managed, self.sync, self.asked_back.extend, self.files.note_let_go, names_max=NAMES_DEFAULT
        )
        warmup = Warmup(self.reader.fetcher, disk_cache, self.managed, self.namespace, self.sync, self.files)
        measures = MountMeasures(
            self.client,
            self.reader.counters,
            memory,
            disk_cache,
            self.files,
            self.directories,
            self.managed,
            self.sync,
            self.tree_memory,
            self.uploader,
            RequestCounters(),
        )
        self.control = RunningMount(
            MountConfig(source="test", mount_point=directory, state_dir=self.state_dir, cache_dir=cache_dir),
            run.user,
            self.client,
            self.managed,
            self.managed_changes,
            self.sync,
            self.uploader,
            warmup,
            measures,
        )

    async def start(self) -> None:
        """The run is known, and what an earlier mount left is on its way."""
        self.managed.take_users([self._user])
        await self.sync.load_user(self.managed.root.users[self._user])
        await self.sync.recover_runs()

    def close(self) -> None:
        """Closes journal and staged files; everything stays for the next mount."""
        for tree in self.managed.runs.values():
            for node in tree.nodes.values():
                if node.staged is not None:
                    node.staged.close()
        self.staging.close()

    def copy_state(self, directory: Path) -> None:
        """What a mount killed now would leave on the state disk, in another directory. Nothing runs meanwhile."""
        shutil.copytree(self.state_dir, directory / "state")

    @property
    def tree(self) -> RunTree:
        return self.managed.runs[self._task_id]

    # --- looking -----------------------------------------------------------------------------------------

    async def find(self, path: bytes) -> Node:
        """What the path stands for; b"" is the run's root. Raises NotFound."""
        node = self.tree.root
        for name in path.split(b"/") if path else ():
            found = await self._bounded(self.namespace.lookup, node, name)
            assert isinstance(found, Node)
            node = found
        return node

    def shown(self) -> dict[bytes, Shown]:
        """All names of the run with what the mount shows of them, once the run is loaded."""

        def walk(directory: Node, prefix: bytes) -> Iterator[tuple[bytes, Shown]]:
            for name, node in (directory.children or {}).items():
                yield prefix + name, self.shown_as(node)
                yield from walk(node, prefix + name + b"/")

        return dict(walk(self.tree.root, b""))

    @staticmethod
    def shown_as(node: Node) -> Shown:
        return Shown(
            kind=node.kind,
            mode=node.mode,
            size_bytes=node.size_bytes,
            mtime_ns=node.mtime_ns,
            content=node.symlink_target if node.kind == SYMLINK else b"",
            xattrs=dict(node.xattrs),
            link_count=node.link_count,
        )

    # --- contents ----------------------------------------------------------------------------------------

    async def create(self, path: bytes, mode: int = 0o644) -> int:
        """A handle of a new file."""
        parent, name = await self._parent_of(path)
        async with self._holding(parent):
            node = await self._bounded(self.namespace.make_file, parent, name, mode, OWNER)
        return self.files.open_new(node, os.O_RDWR).handle

    async def open(self, path: bytes, flags: int = os.O_RDWR) -> int:
        opened = await self._bounded(self.files.open, await self.find(path), flags)
        return opened.handle

    async def write(self, handle: int, offset_bytes: int, data: bytes) -> None:
        if not self.files.write_at_once(handle, offset_bytes, data):
            await self._bounded(self.files.write, handle, offset_bytes, data)

    async def append(self, handle: int, data: bytes) -> None:
        await self.write(handle, self.files.node_of(handle).size_bytes, data)

    async def read(self, handle: int) -> bytes:
        """The whole file."""
        parts: list[bytes] = []
        while part := await self._bounded(self.files.read, handle, sum(map(len, parts)), READ_BYTES):
            parts.append(bytes(part))
        return b"".join(parts)

    async def read_at(self, handle: int, offset_bytes: int, length_bytes: int) -> bytes:
        """One read, as the kernel asks for it."""
        return bytes(await self._bounded(self.files.read, handle, offset_bytes, length_bytes))

    async def fsync(self, handle: int) -> None:
        await self._bounded(self.files.fsync, self.files.node_of(handle))

    def close_handle(self, handle: int) -> None:
        """close(2) of the only descriptor."""
        self._forget(self.files.release(handle))

    async def write_file(self, path: bytes, data: bytes, mode: int = 0o644) -> None:
        """A new file with these bytes, closed."""
        handle = await self.create(path, mode)
        try:
            await self.write(handle, 0, data)
        finally:
            self.close_handle(handle)

    async def read_file(self, path: bytes) -> bytes:
        handle = await self.open(path, os.O_RDONLY)
        try:
            return await self.read(handle)
        finally:
            self.close_handle(handle)

    async def shown_contents(self) -> dict[bytes, bytes]:
        """The files that the mount shows, with what is read from them."""
        await self.namespace.load(self.tree.root)
        return {
            path: await self.read_file(path) for path, shown in self.shown().items() if shown.kind == FILE
        }

    async def truncate(self, path: bytes, size_bytes: int) -> None:
        await self._bounded(self.files.truncate, await self.find(path), size_bytes)

    # --- names -------------------------------------------------------------------------------------------

    async def mkdir(self, path: bytes, mode: int = 0o755) -> None:
        parent, name = await self._parent_of(path)
        async with self._holding(parent):
            await self._bounded(self.namespace.make_directory, parent, name, mode, OWNER)

    async def symlink(self, path: bytes, target: bytes) -> None:
        parent, name = await self._parent_of(path)
        async with self._holding(parent):
            await self._bounded(self.namespace.make_symlink, parent, name, target, OWNER)

    async def link(self, path: bytes, new_path: bytes) -> None:
        node = await self.find(path)
        parent, name = await self._parent_of(new_path)
        async with self._holding(parent):
            await self._bounded(self.rearrangements.link, node, parent, name)

    async def unlink(self, path: bytes) -> None:
        parent, name = await self._parent_of(path)
        node = self.rearrangements.unlink_at_once(parent, name)
        if node is None:
            node = await self._bounded(self.rearrangements.unlink, parent, name)
        self._forget(node)

    async def rmdir(self, path: bytes) -> None:
        parent, name = await self._parent_of(path)
        node = await self.find(path)
        async with self._holding(node):
            await self._bounded(self.rearrangements.rmdir, parent, name)
        self._forget(node)

    async def rename(self, old_path: bytes, new_path: bytes) -> None:
        old_parent, old_name = await self._parent_of(old_path)
        new_parent, new_name = await self._parent_of(new_path)
        rename = self.rearrangements.rename

        async def call() -> None:
            await rename(old_parent, old_name, new_parent, new_name, no_replace=False)

        async with self._holding(new_parent):
            replaced = (new_parent.children or {}).get(new_name)
            is_removed = replaced is not None and replaced.is_directory
            async with self._holding(replaced) if replaced is not None and is_removed else nullcontext():
                await self._bounded(call)
        if replaced is not None:
            self._forget(replaced)

    async def set_attributes(
        self, path: bytes, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        change = AttributeChange(mode=mode, mtime_ns=mtime_ns)
        await self._bounded(self.namespace.set_attributes, await self.find(path), change)

    async def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        await self._bounded(self.extended_attributes.set, await self.find(path), name, value)

    async def remove_xattr(self, path: bytes, name: bytes) -> None:
        await self._bounded(self.extended_attributes.remove, await self.find(path), name)

    # --- durability --------------------------------------------------------------------------------------

    async def make_all_durable(self) -> None:
        """As `cloudai wait`: returns when nothing is pending, raises what needs a person."""
        await self.control.wait_durable()

    async def _parent_of(self, path: bytes) -> tuple[Node, bytes]:
        parent, _, name = path.rpartition(b"/")
        return await self.find(parent), name

    async def _bounded(self, call: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        with trio.fail_after(self._timeo_seconds + 1):
            return await call(*args, **kwargs)

    @asynccontextmanager
    async def _holding(self, directory: Node) -> AsyncIterator[None]:
        """As the kernel does: nobody makes a name in a directory that is being removed, or replaced by another."""
        lock = self._locks.setdefault(directory, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not (lock.locked() or lock.statistics().tasks_waiting):
                self._locks.pop(directory, None)

    def _forget(self, node: Node) -> None:
        if node.tree.forget_if_unused(node):
            self.managed.forget_inode(node)


@asynccontextmanager
async def open_file_system(
    client: MasterClient,
    run: types.Run,
    directory: Path,
    *,
    timeo_seconds: float = 120.0,
    cache_bytes_max: int = MEMORY_BYTES_MAX,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
) -> AsyncIterator[FileSystemHarness]:
    """A mount with its state and cache below the directory. It ends without a goodbye, as kill -9 would."""
    with ExitStack() as at_end:
        async with trio.open_nursery() as nursery:
            file_system = FileSystemHarness(
                client,
                run,
                directory,
                nursery,
                timeo_seconds=timeo_seconds,
                cache_bytes_max=cache_bytes_max,
                memory_bytes_max=memory_bytes_max,
            )
            at_end.callback(file_system.close)
            try:
                await file_system.start()
                yield file_system
            finally:
                nursery.cancel_scope.cancel()
