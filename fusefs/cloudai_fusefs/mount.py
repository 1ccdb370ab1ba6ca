"""The composition root of a mount: builds the parts, runs them, and takes them down in order."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from cloudai_fusefs.background import keep_running
from cloudai_fusefs.cache_file import require_private
from cloudai_fusefs.chunk_memory import ChunkMemory
from cloudai_fusefs.chunk_reader import ChunkReader
from cloudai_fusefs.clock_difference import CLOCK_ADVICE, describe_difference, find_ahead_seconds
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.extended_attributes import ExtendedAttributes
from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_fusefs.handler_patience import HANDLERS_MAX, HandlerPatience
from cloudai_fusefs.kernel_attributes import KernelAttributes
from cloudai_fusefs.kernel_knobs import shows_direct_writes, turn_up_knobs
from cloudai_fusefs.kernel_notifier import KernelNotifier
from cloudai_fusefs.kernel_references import KernelReferences
from cloudai_fusefs.kernel_requests import taking_requests
from cloudai_fusefs.late_answers import LateAnswers
from cloudai_fusefs.managed_changes import ManagedChanges
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.memory_shares import divide_memory
from cloudai_fusefs.mount_control import MountConfig, MountControl
from cloudai_fusefs.mount_measures import MountMeasures
from cloudai_fusefs.namespace import Inode, Namespace
from cloudai_fusefs.open_directories import OpenDirectories
from cloudai_fusefs.open_files import OpenFiles
from cloudai_fusefs.operations import Operations
from cloudai_fusefs.part_control import PartControl
from cloudai_fusefs.range_reader import RangeReader
from cloudai_fusefs.rearrangements import Rearrangements
from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_fusefs.running_mount import RunningMount
from cloudai_fusefs.sealed_cache import CACHE_SHARE, SealedCache
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.state_lock import own_state_directory
from cloudai_fusefs.tree_memory import TreeMemory
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader
from cloudai_fusefs.warmup import Warmup
from cloudai_fusefs.write_behind import WriteBehind
from cloudai_model.errors import CloudAIError, MasterUnavailable, NotFound, NotSupported, Unauthenticated
from cloudai_model.memory import collect_cycles_seldom, freeze_loaded_objects, keep_freed_memory
from cloudai_proto.storage.v1 import names_pb2 as names

log = logging.getLogger(__name__)

CONNECT_SECONDS_MAX: Final = 5.0
"""A master that is not there is said to be so within seconds."""

CALL_SECONDS_MAX: Final = 30.0
"""The deadline of one attempt: 4 MiB over a link of 1.2 Mbit/s."""

USAGE_SECONDS_MAX: Final = 5.0
"""How old the answer to `df` may be."""

USAGE_PATIENCE_SECONDS: Final = 1.0
"""Until `df` shows the last answer instead: a dead master must not keep `df -a` waiting."""

TIDY_SECONDS: Final = 30.0

FLUSH_SECONDS_MAX: Final = 2.0
"""Of an unmount, for what waits for the disk cache: at most 100 MiB."""


async def serve_mount(
    config: MountConfig,
    on_ready: Callable[[MountControl], None],
    on_unmounted: Callable[[], Awaitable[None]],
) -> None:
    """Mounts, calls `on_ready` once when the tree answers, and serves until the mount is gone.

    Returns after `umount`/`fusermount3 -u` from outside, once `on_unmounted` has: uploads go on meanwhile.
    Cancelled: unmounts and returns; what is not yet durable stays staged for the next mount. Raises
    MasterUnavailable, Unauthenticated or another CloudAIError within a few seconds when the master cannot be
    used, NotSupported when it lacks what an option asks for, OSError when the kernel refuses the mount or the
    state directory is another mount's.
    """
    keep_freed_memory()
    freeze_loaded_objects()
    collect_cycles_seldom()
    require_private(config.cache_dir)
    with own_state_directory(config.state_dir):
        async with GrpcMasterClient(
            config.address,
            token_provider=lambda: _read_token(config),
            insecure=config.insecure,
            root_certificates=config.ca_file.read_bytes() if config.ca_file is not None else None,
            call_deadline_seconds=CALL_SECONDS_MAX,
        ) as wire:
            capabilities = await _introduce(wire)
            if config.xattr and not capabilities.keeps_xattrs:
                raise NotSupported(
                    "the master keeps no extended attributes: mount without `xattr`, or upgrade it",
                    master_version=capabilities.version,
                )
            client = RetryingMasterClient(wire, timeo_seconds=config.timeo_seconds)
            # Closed when the tasks that use them have ended.
            with ExitStack() as open_parts:
                async with trio.open_nursery() as nursery:
                    await _serve(config, client, capabilities, nursery, open_parts, on_ready, on_unmounted)
                    nursery.cancel_scope.cancel()


async def _introduce(wire: GrpcMasterClient) -> names.GetCapabilitiesResponse:
    """The master's answer; a clock that is not its own is told, to whoever mounts where the token is refused."""
    began_seconds, began_at_ns = trio.current_time(), time.time_ns()

    def describe_clock(master_now_ns: int) -> str:
        if not master_now_ns:
            return ""
        round_trip_seconds = trio.current_time() - began_seconds
        ahead_seconds = find_ahead_seconds(master_now_ns, began_at_ns, round_trip_seconds)
        difference = describe_difference(ahead_seconds, round_trip_seconds)
        return f"this machine's clock is {difference}: {CLOCK_ADVICE}" if difference else ""

    with trio.move_on_after(CONNECT_SECONDS_MAX):
        try:
            capabilities = await wire.get_capabilities()
        except Unauthenticated as error:
            if wrong_clock := describe_clock(error.now_ns):
                raise Unauthenticated(f"{error.detail}; {wrong_clock}", now_ns=error.now_ns) from error
            raise
        if wrong_clock := describe_clock(capabilities.now_ns):
            log.warning(wrong_clock)
        return capabilities
    raise MasterUnavailable(timeout_seconds=CONNECT_SECONDS_MAX)


async def _serve(
    config: MountConfig,
    client: RetryingMasterClient,
    capabilities: names.GetCapabilitiesResponse,
    nursery: trio.Nursery,
    open_parts: ExitStack,
    on_ready: Callable[[MountControl], None],
    on_unmounted: Callable[[], Awaitable[None]],
) -> None:
    notifier = KernelNotifier()
    shares = divide_memory(config.memory_bytes_max)
    disk_cache = DiskChunkCache(
        config.cache_dir,
        scope=f"{config.address}/{capabilities.user}",
        bytes_max=config.cache_bytes_max,
        nursery=nursery,
        threads_max=shares.disk_threads_max,
    )
    sealed_cache = SealedCache(
        config.cache_dir,
        scope=config.address,
        bytes_max=int(config.cache_bytes_max * CACHE_SHARE),
        nursery=nursery,
    )
    memory = ChunkMemory(shares.kept_bytes)
    write_behind = WriteBehind(disk_cache, nursery, waiting_bytes_max=shares.write_behind_bytes)
    reader = ChunkReader(client, memory, disk_cache, write_behind, nursery, fetches_max=shares.fetches_max)
    range_reader = RangeReader(client, reader, memory, disk_cache, write_behind, nursery)
    uploader = Uploader(client, reader, notifier.tell, nursery)
    staging = uploader.staging = Staging(
        config.state_dir, reader, uploader.note_change, bytes_max=config.staging_bytes_max
    )
    open_parts.callback(staging.close)
    managed = ManagedTree()
    sync = TreeSync(client, managed, staging, sealed_cache, notifier.tell, nursery)
    namespace = Namespace(client, managed, sync, staging, uploader, read_only=config.read_only)
    rearrangements = Rearrangements(client, namespace, staging, uploader)
    managed_changes = ManagedChanges(client, managed, sync, namespace)
    files = OpenFiles(
        client,
        reader,
        range_reader,
        sealed_cache,
        staging,
        uploader,
        read_only=config.read_only,
        writes_pass_pages=shows_direct_writes(os.uname().release),
        timeo_seconds=config.timeo_seconds,
    )
    directories = OpenDirectories(namespace)
    references = KernelReferences(notifier.notify)
    tree_memory = TreeMemory(
        managed, sync, references.ask_back, files.note_let_go, names_max=config.names_max
    )
    usage = _Usage(client, capabilities.user)
    await usage.get()  # so that the first `df` needs no master
    patience = HandlerPatience(lambda: client.answered_at_seconds)
    late_answers = LateAnswers(notifier.tell)
    operations = Operations(
        managed,
        namespace,
        rearrangements,
        managed_changes,
        files,
        directories,
        usage.get,
        patience,
        late_answers,
        ExtendedAttributes(namespace, staging) if config.xattr else None,
        KernelAttributes(uid=config.uid, gid=config.gid, umask=config.umask),
        timeo_seconds=config.timeo_seconds,
    )
    control: MountControl = RunningMount(
        config,
        capabilities.user,
        client,
        managed,
        managed_changes,
        sync,
        uploader,
        Warmup(reader.fetcher, disk_cache, managed, namespace, sync, files),
        MountMeasures(
            client,
            reader.counters,
            memory,
            disk_cache,
            files,
            directories,
            managed,
            sync,
            tree_memory,
            uploader,
            operations.counters,
        ),
    )
    managed.take_users(await client.list_users())
    own_directory = managed.root.users.get(capabilities.user)
    if own_directory is not None:
        await sync.load_user(own_directory)
    if config.root_path:
        managed.make_root(await _find_part(namespace, config.root_path))
        control = PartControl(control, config.root_path, user=capabilities.user)
    _mount(operations, config)
    try:
        notifier.start()
        references.start()
        await sync.recover_runs()
        nursery.start_soon(_tidy_regularly, staging)
        nursery.start_soon(keep_running, "hurrying requests", patience.hurry)
        nursery.start_soon(keep_running, "late answers", late_answers.run)
        nursery.start_soon(keep_running, "letting go of trees", tree_memory.run)
        nursery.start_soon(_announce, config.mount_point, control, on_ready)
        with taking_requests(pyfuse3):
            await pyfuse3.main(max_tasks=HANDLERS_MAX)
        notifier.stop()  # nobody is there to be told
        references.stop()
        await on_unmounted()
        # What was read once is cached after a remount. A disk that hangs does not keep the mount.
        with trio.move_on_after(FLUSH_SECONDS_MAX):
            await reader.flush()
            await write_behind.flush()
    finally:
        notifier.stop()
        references.stop()
        pyfuse3.close(unmount=True)
        await staging.settling.settle_at_end()


async def _find_part(namespace: Namespace, path: str) -> Inode:
    try:
        return await namespace.find(path)
    except NotFound as error:
        raise NotFound("the master shows no such user, task or run") from error


async def _announce(
    mount_point: Path, control: MountControl, on_ready: Callable[[MountControl], None]
) -> None:
    # From a thread: the answer comes from this loop.
    device = (await trio.to_thread.run_sync(os.stat, mount_point)).st_dev
    turn_up_knobs(device)
    on_ready(control)


async def _tidy_regularly(staging: Staging) -> None:
    while True:
        await trio.sleep(TIDY_SECONDS)
        await staging.tidy()


class _Usage:
    """The user's usage, asked for at most every few seconds: `df` in a loop is not the master's concern."""

    def __init__(self, client: RetryingMasterClient, user: str) -> None:
        self._client = client
        self._user = user
        self._answer: names.GetUsageResponse | None = None
        self._asked_at_seconds = 0.0

    async def get(self) -> names.GetUsageResponse:
        """The last answer where the master is away; raises the client's errors while there is none."""
        if self._answer is None or time.monotonic() - self._asked_at_seconds > USAGE_SECONDS_MAX:
            self._asked_at_seconds = time.monotonic()
            patience_seconds = math.inf if self._answer is None else USAGE_PATIENCE_SECONDS
            try:
                with trio.move_on_after(patience_seconds):
                    self._answer = await self._client.get_usage(self._user)
            except CloudAIError:
                if self._answer is None:
                    raise
        assert self._answer is not None
        return self._answer


def _mount(operations: Operations, config: MountConfig) -> None:
    """Raises OSError with the words of fusermount3 or libfuse, which say them on standard error alone."""
    with os.fdopen(os.memfd_create("said"), "r", errors="replace") as said:
        standard_error = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            pyfuse3.init(operations, str(config.mount_point), _mount_options(config))
        except RuntimeError as error:
            said.seek(0)
            reason = said.read().strip().rpartition("\n")[2]
            raise PermissionError(
                errno.EPERM, reason or "the kernel refuses the mount", str(config.mount_point)
            ) from error
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


def _mount_options(config: MountConfig) -> set[str]:
    options = set(pyfuse3.default_options)
    # A task's name may hold what separates options.
    shown_source = re.sub(r"([\\,])", r"\\\1", config.shown_source or config.source)
    options |= {f"fsname={shown_source}", "subtype=cloudai", *config.kernel_words}
    if config.allow_other:
        options.add("allow_other")
    if config.read_only:
        options.add("ro")
    return options


def _read_token(config: MountConfig) -> str:
    if config.token_file is None:
        return config.token
    return config.token_file.read_text().strip()
