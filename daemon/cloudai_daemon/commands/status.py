"""`cloudai status [PATH]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cloudai_daemon.commands.parameters import PATH, json_option, print_json, printable
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import PendingFile, RemoteError, StatusReport
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import MountedPath, list_mounts, locate
from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_fusefs.mount_control import FileState, MountCounters

# A screenful; --json has up to a thousand.
_NAMES_SHOWN_MAX = 20


@dataclass(frozen=True, kw_only=True)
class _Answer:
    place: MountedPath
    report: StatusReport | None
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        entry = self.place.entry
        return {
            "mount_point": str(entry.mount_point),
            "pid": entry.process.pid,
            "path": self.place.path,
            "error": self.failure or None,
            **(self.report.to_json() if self.report else {"source": entry.source}),
        }


@click.command("status")
@click.argument("path", required=False, type=PATH)
@json_option
def status_command(path: Path | None, as_json: bool) -> None:
    """Show what is staged, uploading and durable: below PATH, or in every mount.

    Of a whole mount also where reads were answered from: memory, the disk cache, the master.
    """
    places = [locate(path)] if path else [MountedPath(entry=entry, path="") for entry in list_mounts()]
    answers = [_ask(place) for place in places]
    if as_json:
        print_json([answer.to_json() for answer in answers])
    elif not answers:
        click.echo("nothing is mounted")
    else:
        for answer in answers:
            _print_answer(answer)
    failures = [answer.failure for answer in answers if answer.failure]
    if failures:
        raise CommandFailed(ExitCode.FAILED, failures[0])


def _ask(place: MountedPath) -> _Answer:
    try:
        with ControlClient.of_living(place.entry) as client:
            return _Answer(place=place, report=client.status(place.path))
    except (DaemonUnreachable, RemoteError) as error:
        return _Answer(place=place, report=None, failure=str(error))


def _print_answer(answer: _Answer) -> None:
    entry, report = answer.place.entry, answer.report
    if report is None:
        click.echo(f"{entry.mount_point}  {entry.source}  does not answer")
        return
    connection = "connected" if report.connected else "the master does not answer"
    click.echo(f"{entry.mount_point}  {report.source}  as {report.user}, {connection}")
    _print_pending(report)
    for directory in report.set_aside:
        click.echo(
            f"  set aside: {directory}; its README says what and why; remove it when it is no longer needed"
        )
    if not answer.place.path:
        for line in describe_counters(report.counters):
            click.echo(f"  {line}")


def describe_counters(counters: MountCounters) -> list[str]:
    """Lines on what the mount holds and has done since it began."""
    memory = _describe_share(counters.memory_bytes, counters.memory_bytes_max)
    cache = _describe_share(counters.cache_bytes, counters.cache_bytes_max)
    full = "; its disk is full: nothing more is cached" if counters.cache_lacks_room else ""
    fetches = f"{counters.fetched_chunks} chunks, {counters.fetched_ranges} ranges"
    damaged = f", {counters.damaged_chunks} damaged" if counters.damaged_chunks else ""
    return [
        f"memory   {memory}, {_describe_looks(counters.memory_hits, counters.memory_misses)}",
        f"cache    {cache}, {_describe_looks(counters.disk_hits, counters.disk_misses)}{full}",
        f"fetched  {format_bytes(counters.fetched_bytes)}: {fetches}, {counters.fetched_batches} batches{damaged}",
        f"sent     {format_bytes(counters.sent_bytes)}",
        f"follows  {counters.watch_count} users and open runs, {counters.open_count} files open",
    ]


def _describe_share(size_bytes: int, limit_bytes: int) -> str:
    return f"{format_bytes(size_bytes)} of {format_bytes(limit_bytes)}"


def _describe_looks(hits: int, misses: int) -> str:
    looks = hits + misses
    share = f" ({100 * hits // looks} %)" if looks else ""
    return f"{hits} hits{share}, {misses} misses"


def _print_pending(report: StatusReport) -> None:
    if report.file is not None:
        click.echo(f"  {_describe_file(report.file)}")
        return
    durable = f", {count_files(report.durable_count)} durable" if report.durable_count else ""
    if not report.pending_count:
        click.echo(f"  everything is durable{durable.replace(' durable', '')}")
        return
    left_bytes = report.pending_bytes - report.uploaded_bytes
    failed = f", {report.failed_count} failed" if report.failed_count else ""
    files = count_files(report.pending_count)
    click.echo(f"  {files} not durable yet, {format_bytes(left_bytes)} to send{failed}{durable}")
    print_pending_files(report)


def print_pending_files(report: StatusReport) -> None:
    """A line for each of the first."""
    for file in report.pending[:_NAMES_SHOWN_MAX]:
        click.echo(f"  {_describe_file(file)}")
    more_count = report.pending_count - _NAMES_SHOWN_MAX
    if more_count > 0:
        click.echo(f"  and {more_count} more")


def _describe_file(file: PendingFile) -> str:
    sizes = f"{format_bytes(file.uploaded_bytes)} of {format_bytes(file.size_bytes)}"
    share = 100 * file.uploaded_bytes // file.size_bytes if file.size_bytes else 0
    state = f"{file.state} {share} %" if file.state == FileState.UPLOADING else file.state
    reason = f"  {file.reason}" if file.reason else ""
    return f"{state:<15}  {sizes:>22}  {printable(file.path)}{reason}"
