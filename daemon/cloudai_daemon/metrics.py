"""What a mount has done and holds, as Prometheus reads it.

The names are the interface: `cloudai_mount_` in front, a unit at the end, `_total` for what only grows. Imported
where metrics were asked for only: prometheus_client takes 50 ms.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from cloudai_fusefs.mount_control import MountCounters

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The format that every Prometheus takes."""


class MountMetrics:
    """The metrics of one mount, with those of its process."""

    def __init__(self, *, version: str, source: str, mount_point: str) -> None:
        # A label is UTF-8, a path is any bytes.
        place = os.fsencode(mount_point).decode(errors="replace")
        self._about = {"version": version, "source": source, "mount_point": place}

    def render(self, counters: MountCounters) -> bytes:
        """The page, in CONTENT_TYPE. Blocking: reads /proc."""
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(_Snapshot(self._about, counters))
        return generate_latest(registry)


class _Snapshot(Collector):
    """One moment of the counters."""

    def __init__(self, about: dict[str, str], counters: MountCounters) -> None:
        self._about = about
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("cloudai_mount", "What this mount is.", self._about)
        yield from _state(self._counters)
        yield from _reads(self._counters)
        yield from _requests(self._counters)


def _state(counters: MountCounters) -> Iterator[Metric]:
    yield _gauge("connected", "Whether the last call to the master was answered.", counters.connected)
    yield _gauge("watches", "Users and open runs that the master tells the news of.", counters.watch_count)
    yield _gauge("open_files", "Open file handles.", counters.open_count)
    yield _gauge("open_directories", "Open directory handles.", counters.open_directory_count)
    yield _gauge(
        "referenced_inodes", "Inodes that the kernel has not forgotten.", counters.referenced_inode_count
    )
    yield _gauge("known_inodes", "Inodes in memory.", counters.known_inode_count)
    yield _counter(
        "runs_let_go", "Sealed runs whose names left the memory.", [], [([], counters.let_go_count)]
    )
    yield _gauge("memory_bytes", "What chunks in memory take of its budget.", counters.memory_bytes)
    yield _gauge("memory_limit_bytes", "The budget of chunks in memory.", counters.memory_bytes_max)
    yield _gauge("cache_bytes", "What the disk cache takes, all mounts that share it.", counters.cache_bytes)
    yield _gauge("cache_limit_bytes", "The cache_size of this mount.", counters.cache_bytes_max)
    yield _gauge(
        "pending_files", "Names whose latest state is not yet at the master.", counters.pending_count
    )
    yield _gauge("failed_files", "Those of them that need a person.", counters.failed_count)
    yield _gauge("staged_bytes", "File contents that are not yet at the master.", counters.staged_bytes)


def _reads(counters: MountCounters) -> Iterator[Metric]:
    yield _counter(
        "read_bytes",
        "File contents answered from memory, read from the disk cache, fetched from the master.",
        ["source"],
        [
            (["memory"], counters.memory_read_bytes),
            (["disk"], counters.disk_read_bytes),
            (["master"], counters.fetched_bytes),
        ],
    )
    yield _counter(
        "cache_lookups",
        "Looks for a chunk in memory, and on disk for those that were not in memory.",
        ["cache", "result"],
        [
            (["memory", "hit"], counters.memory_hits),
            (["memory", "miss"], counters.memory_misses),
            (["disk", "hit"], counters.disk_hits),
            (["disk", "miss"], counters.disk_misses),
        ],
    )
    yield _counter(
        "fetches",
        "What came from the master: whole chunks, ranges of one, answers with several small files.",
        ["kind"],
        [
            (["chunk"], counters.fetched_chunks),
            (["range"], counters.fetched_ranges),
            (["batch"], counters.fetched_batches),
        ],
    )
    yield _counter(
        "damaged_chunks", "Answers that were not the chunk asked for.", [], [([], counters.damaged_chunks)]
    )
    yield _counter("sent_bytes", "File contents sent to the master.", [], [([], counters.sent_bytes)])


def _requests(counters: MountCounters) -> Iterator[Metric]:
    yield _counter(
        "requests",
        "Requests of the kernel.",
        ["handler"],
        [([handler], count) for handler, count in sorted(counters.request_counts.items())],
    )
    yield _counter(
        "request_failures",
        "Requests of the kernel that were answered with an error.",
        ["handler", "errno"],
        [(words.split(), count) for words, count in sorted(counters.failure_counts.items())],
    )
    yield _counter(
        "unexpected_errors",
        "Those of them that nobody foresaw: EIO to the program, a traceback in the log.",
        ["handler"],
        [([handler], count) for handler, count in sorted(counters.unexpected_counts.items())],
    )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cloudai_mount_{name}", text, value=value)


def _counter(
    name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"cloudai_mount_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
