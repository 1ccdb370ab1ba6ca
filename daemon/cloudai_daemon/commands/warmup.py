"""`cloudai warmup PATH...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import PATH, json_option, print_json, printable, say
from cloudai_daemon.control_client import ControlClient, DaemonUnreachable
from cloudai_daemon.control_protocol import REQUEST_BYTES_MAX, RemoteError, encode_line
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import locate
from cloudai_daemon.quantities import count_files, format_bytes
from cloudai_daemon.registry import RegistryEntry
from cloudai_fusefs.mount_control import CachedIf, WarmupProgress, WarmupReport

# A screenful; --json has more.
_NAMES_SHOWN_MAX = 20


@click.command("warmup")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option(
    "--verify",
    "cached_if",
    flag_value=CachedIf.DIGEST_MATCHES,
    default=CachedIf.LENGTH_MATCHES,
    type=CachedIf,
    help="Read what is cached already and compare it; what is damaged is fetched again.",
)
@json_option
def warmup_command(paths: tuple[Path, ...], cached_if: CachedIf, as_json: bool) -> None:
    """Bring files into the disk cache before they are read.

    All at and below each PATH. What is cached already, by its length, is not fetched again; damage in it is
    found when it is read, or now with --verify. Ctrl-C stops it; what has come by then stays. Exits with 2 when
    a file could not be had, and says which.
    """
    places: dict[Path, tuple[RegistryEntry, list[str]]] = {}
    for path in paths:
        place = locate(path)
        places.setdefault(place.entry.mount_point, (place.entry, []))[1].append(place.path)
    reports = [(entry, _warm_up(entry, below, cached_if)) for entry, below in places.values()]
    if as_json:
        print_json([{"mount_point": str(entry.mount_point), **asdict(report)} for entry, report in reports])
    failed_files = 0
    for entry, report in reports:
        failed_files += report.failed_files
        if not as_json:
            click.echo(describe_warmup(report))
            _print_failures(entry, report)
    if failed_files:
        raise CommandFailed(
            ExitCode.FAILED, f"{count_files(failed_files)} could not be brought into the cache"
        )


def describe_warmup(report: WarmupReport) -> str:
    """One line on what is in the cache now."""
    sizes = f"{count_files(report.files)}, {format_bytes(report.size_bytes)}"
    fetched = f"{format_bytes(report.fetched_bytes)} fetched" if report.fetched_bytes else "nothing to fetch"
    skipped = f"; {count_files(report.skipped_files)} being written left out" if report.skipped_files else ""
    return f"{sizes}: {fetched}{skipped}"


def _warm_up(entry: RegistryEntry, paths: list[str], cached_if: CachedIf) -> WarmupReport:
    request = {"id": 1, "method": "warmup", "params": {"paths": paths, "cached_if": cached_if}}
    if len(encode_line(request)) > REQUEST_BYTES_MAX:
        raise CommandFailed(
            ExitCode.USAGE, f"{len(paths)} paths are too many at once: name their directories"
        )
    try:
        with ControlClient.of_living(entry) as client, _open_display() as show:
            return client.warmup(paths, show, cached_if)
    except (DaemonUnreachable, RemoteError) as error:
        raise CommandFailed(ExitCode.FAILED, str(error)) from error


@contextmanager
def _open_display() -> Iterator[Callable[[WarmupProgress], None]]:
    """A progress bar on standard error if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # Imported here: rich takes 50 ms, and most commands print one line.
    from cloudai_daemon.progress_bar import WarmupBar

    with WarmupBar() as bar:
        yield bar.show


def _print_failures(entry: RegistryEntry, report: WarmupReport) -> None:
    for file in report.failed[:_NAMES_SHOWN_MAX]:
        say(f"{printable(str(entry.mount_point / file.path))}: {file.reason}")
    more_count = report.failed_files - min(len(report.failed), _NAMES_SHOWN_MAX)
    if more_count:
        say(f"and {more_count} more")
