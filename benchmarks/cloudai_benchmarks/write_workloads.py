"""The workloads that write: a large file, many small ones, checkpoints, logs, a clone, several writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloudai_benchmarks.commit_job import CommitAtOnce
from cloudai_benchmarks.commit_orders import FILES_PER_COMMIT
from cloudai_benchmarks.datasets import MIB
from cloudai_benchmarks.latency_job import SMALL_WRITE_BYTES, WriteBesideUpload
from cloudai_benchmarks.log_jobs import LINE_BYTES, LINES_PER_SECOND, FollowLog, WriteLog
from cloudai_benchmarks.mount_job import MountAgain, MountWithBacklog
from cloudai_benchmarks.shapes import WRITER_COUNT_MAX, Shapes
from cloudai_benchmarks.workloads import Phase, Workload, WriteJob, WriteWorkload, scale_count
from cloudai_benchmarks.write_jobs import (
    CloneRepository,
    CopyFile,
    CopyTrees,
    RemoveTree,
    WriteAndSync,
    WriteNextCheckpoint,
)
from cloudai_benchmarks.write_place import WritePlace

WRITER_COUNTS: Final = (1, 4, WRITER_COUNT_MAX)
_BOTH: Final = (Phase.RETURNS, Phase.STORED)
_RETURNS: Final = (Phase.RETURNS,)
_STORED: Final = (Phase.STORED,)

MakeJob = Callable[[WritePlace, Path, str], WriteJob]


def make_write_workloads(shapes: Shapes) -> list[Workload]:
    """All of them, in the order of the report."""
    large, small, tensors, upload, crowd = (
        shapes.large,
        shapes.small,
        shapes.tensors,
        shapes.upload,
        shapes.crowd,
    )
    (large_name,), (upload_name,) = large.names(), upload.names()
    size = f"{large.size_bytes // MIB:,} MiB"
    line_count = scale_count(10_000, shapes.scale)
    commit_count = scale_count(50, shapes.scale) * WRITER_COUNT_MAX * FILES_PER_COMMIT
    return [
        WriteWorkload(
            name="write-1g",
            title=f"write {size}, fsync",
            dataset=large,
            phases=_BOTH,
            written_bytes=large.size_bytes,
            make_job=lambda place, source, _: WriteAndSync(place, source, large_name),
        ),
        WriteWorkload(
            name="cp-1g",
            title=f"cp of {size}",
            dataset=large,
            phases=_BOTH,
            written_bytes=large.size_bytes,
            make_job=lambda place, source, _: CopyFile(place, source, large_name),
        ),
        WriteWorkload(
            name="cp-2000",
            title=f"cp -r of {small.file_count:,} files of 16 KiB",
            dataset=small,
            phases=_BOTH,
            written_bytes=small.size_bytes,
            make_job=lambda place, source, _: CopyTrees(place, source),
        ),
        WriteWorkload(
            name="checkpoint",
            title=f"next checkpoint of {tensors.size_bytes // MIB:,} MiB, 10 % changed",
            dataset=tensors,
            phases=_BOTH,
            written_bytes=tensors.size_bytes,
            is_prepared=True,
            make_job=lambda place, source, seed: WriteNextCheckpoint(place, source, tensors, seed),
        ),
        WriteWorkload(
            name="log-lines",
            title=f"{line_count:,} log lines of {LINE_BYTES} bytes, one write each",
            dataset=small,
            phases=_BOTH,
            written_bytes=LINE_BYTES * line_count,
            make_job=lambda place, source, seed: WriteLog(place, source, line_count, seed),
        ),
        WriteWorkload(
            name="log-follow",
            title=f"{line_count:,} log lines, {LINES_PER_SECOND} a second, read elsewhere",
            dataset=small,
            phases=_STORED,
            written_bytes=LINE_BYTES * line_count,
            with_follower=True,
            make_job=lambda place, source, seed: FollowLog(place, source, line_count, seed),
        ),
        WriteWorkload(
            name="rm-2000",
            title=f"rm -r of {small.file_count:,} files",
            dataset=small,
            phases=_BOTH,
            is_prepared=True,
            make_job=lambda place, source, _: RemoveTree(place, source),
        ),
        WriteWorkload(
            name="git-clone",
            title=f"git clone of {shapes.repository.file_count:,} files",
            dataset=shapes.repository,
            phases=_BOTH,
            make_job=lambda place, source, _: CloneRepository(place, source),
        ),
        WriteWorkload(
            name="write-latency",
            title=f"{upload.size_bytes // MIB:,} MiB uploaded beside writes of {SMALL_WRITE_BYTES // 1024} KiB",
            dataset=upload,
            phases=_STORED,
            make_job=lambda place, source, _: WriteBesideUpload(place, source, upload_name),
        ),
        *(
            WriteWorkload(
                name=f"writers-{count}",
                title=f"{crowd.file_count:,} files of 1 KiB by {count} mount{'s' if count > 1 else ''} at once",
                dataset=crowd,
                phases=_STORED,
                writer_count=count,
                file_count=crowd.file_count,
                make_job=lambda place, source, _: CopyTrees(place, source),
            )
            for count in WRITER_COUNTS
        ),
        *(
            WriteWorkload(
                name=f"commits-{count}",
                title=f"{commit_count:,} files committed by {count} client{'s' if count > 1 else ''} without a mount",
                dataset=crowd,
                phases=_STORED,
                needs_master=True,
                file_count=commit_count,
                make_job=_commit_job_maker(count, commit_count),
            )
            for count in WRITER_COUNTS
        ),
        WriteWorkload(
            name="mount-again",
            title=f"mount and ls of a run of {shapes.tree.file_count:,} files, no backlog",
            dataset=shapes.tree,
            phases=_RETURNS,
            needs_master=True,
            make_job=lambda place, source, _: MountAgain(place, source),
        ),
        WriteWorkload(
            name="mount-backlog",
            title=f"mount and ls of a run of {shapes.tree.file_count:,} files, all of them a backlog",
            dataset=shapes.tree,
            phases=_BOTH,
            needs_master=True,
            make_job=lambda place, source, _: MountWithBacklog(place, source),
        ),
    ]


def _commit_job_maker(client_count: int, file_count: int) -> MakeJob:
    return lambda place, source, seed: CommitAtOnce(place, source, client_count, file_count, seed)
