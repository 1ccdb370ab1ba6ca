"""What one mount has done and holds, gathered from its parts for `cloudai status` and the metrics."""

from __future__ import annotations

from typing import Final

import trio

from cloudai_fusefs.chunk_memory import ChunkMemory
from cloudai_fusefs.disk_cache import DiskChunkCache
from cloudai_fusefs.managed_tree import ManagedTree
from cloudai_fusefs.mount_control import MountCounters
from cloudai_fusefs.node import Node
from cloudai_fusefs.open_directories import OpenDirectories
from cloudai_fusefs.open_files import OpenFiles
from cloudai_fusefs.read_counters import ReadCounters
from cloudai_fusefs.request_counters import RequestCounters
from cloudai_fusefs.retrying_master_client import RetryingMasterClient
from cloudai_fusefs.tree_memory import TreeMemory
from cloudai_fusefs.tree_sync import TreeSync
from cloudai_fusefs.uploader import Uploader

NODES_AT_ONCE: Final = 1000
"""Looked at between two chances for others to run: less than a millisecond."""


class MountMeasures:
    """The MountCounters of one mount, made when they are asked for: counting costs the parts an addition."""

    def __init__(
        self,
        client: RetryingMasterClient,
        reads: ReadCounters,
        memory: ChunkMemory,
        disk_cache: DiskChunkCache,
        files: OpenFiles,
        directories: OpenDirectories,
        managed: ManagedTree,
        sync: TreeSync,
        tree_memory: TreeMemory,
        uploader: Uploader,
        requests: RequestCounters,
    ) -> None:
        self._client = client
        self._reads = reads
        self._memory = memory
        self._disk_cache = disk_cache
        self._files = files
        self._directories = directories
        self._managed = managed
        self._sync = sync
        self._tree_memory = tree_memory
        self._uploader = uploader
        self._requests = requests

    @property
    def fetched_bytes(self) -> int:
        return self._reads.fetched_bytes

    async def take(self) -> MountCounters:
        """See MountControl.counters."""
        staging = self._uploader.staging
        unread_count, failed_count = (
            len(staging.recovery.unread_records),
            len(staging.recovery.failed_records),
        )
        pending_count = unread_count + failed_count
        staged_bytes = looked_at_count = 0
        for tree in self._uploader.trees:
            pending_count += len(tree.removals)
            for node, pending in list(tree.pending.items()):
                looked_at_count += 1
                if looked_at_count % NODES_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                if node.first_edge is not None:
                    pending_count += 1
                    failed_count += pending.failure is not None
                    staged_bytes += _staged_bytes_of(node) if pending.content else 0
        reads, requests = self._reads, self._requests
        return MountCounters(
            connected=self._client.is_connected,
            watch_count=self._sync.watch_count,
            open_count=self._files.count,
            open_directory_count=self._directories.count,
            referenced_inode_count=requests.referenced_inode_count,
            known_inode_count=len(self._managed.inodes),
            let_go_count=self._tree_memory.let_go_count,
            memory_hits=reads.memory_hits,
            memory_misses=reads.memory_misses,
            disk_hits=reads.disk_hits,
            disk_misses=reads.disk_misses,
            memory_read_bytes=reads.memory_bytes,
            disk_read_bytes=reads.disk_bytes,
            fetched_bytes=reads.fetched_bytes,
            fetched_chunks=reads.fetched_chunks,
            fetched_ranges=reads.fetched_ranges,
            fetched_batches=reads.fetched_batches,
            damaged_chunks=reads.damaged_chunks,
            sent_bytes=self._uploader.sent_bytes,
            memory_bytes=self._memory.used_bytes,
            memory_bytes_max=self._memory.bytes_max,
            cache_bytes=self._disk_cache.stored_bytes,
            cache_bytes_max=self._disk_cache.bytes_max,
            cache_lacks_room=self._disk_cache.lacks_room,
            pending_count=pending_count,
            failed_count=failed_count,
            staged_bytes=staged_bytes,
            request_counts=dict(requests.requests),
            failure_counts=dict(requests.failures),
            unexpected_counts=dict(requests.unexpected),
        )


def _staged_bytes_of(node: Node) -> int:
    """What of the file the master has not got."""
    if node.staged is None:
        return node.size_bytes
    return min(node.staged.layout.changed_bytes, node.size_bytes)
