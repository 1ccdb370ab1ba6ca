"""The command line: `python -m cloudai_benchmarks`, or `make bench`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from cloudai_benchmarks.chart import draw_chart
from cloudai_benchmarks.contenders.contender import Source
from cloudai_benchmarks.contenders.selection import CONTENDER_NAMES, OURS, default_names, make_contenders
from cloudai_benchmarks.figures import LATENCY_UPLOAD_GIB
from cloudai_benchmarks.interrupts import Interrupts
from cloudai_benchmarks.machine import describe_machine
from cloudai_benchmarks.plan import Plan
from cloudai_benchmarks.printed_progress import PrintedProgress
from cloudai_benchmarks.registry import make_workloads
from cloudai_benchmarks.report import Report
from cloudai_benchmarks.result_file import ResultFile
from cloudai_benchmarks.results import Results
from cloudai_benchmarks.runner import Runner
from cloudai_benchmarks.shapes import UPLOAD_BYTES_DEFAULT
from cloudai_benchmarks.working_directory import working_directory
from cloudai_benchmarks.workloads import Workload

RESULTS_DIR: Final = Path(__file__).resolve().parents[1] / "results"
_PLAIN_WIDTH: Final = 220
"""Columns of a table that does not go to a terminal."""

_INTERRUPTED: Final = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds of everything.")
@click.option(
    "--workload",
    "workload_names",
    multiple=True,
    metavar="NAME",
    help="Only this one, those whose names begin so, or all that are `reads` or `writes`; may be repeated. See --list.",
)
@click.option(
    "--contender",
    "contender_names",
    multiple=True,
    type=click.Choice(CONTENDER_NAMES),
    help="Only this one; may be repeated.",
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Of sizes and counts: 0.05 for a quick try.",
)
@click.option(
    "--upload-gib",
    default=UPLOAD_BYTES_DEFAULT / 1024**3,
    show_default=True,
    type=click.FloatRange(0, 1024, min_open=True),
    help="What is uploaded, at scale 1, beside the writer of write-latency (its goals: 10); four times that on disk.",
)
@click.option("--seed", default="1", show_default=True, help="Of data, places and order.")
@click.option(
    "--work-dir",
    default=Path("/var/tmp"),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where data, servers and caches are while it runs: on a disk, with 20 GiB free at scale 1.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The JSON file; the chart beside it is named .png.  [default: benchmarks/results/TIME.json]",
)
@click.option(
    "--timeout",
    "job_seconds_max",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds of one job, after which it has failed.",
)
@click.option(
    "--idle-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="How long the daemon is watched doing nothing.",
)
@click.option("--list", "only_list", is_flag=True, help="Say what there is to measure, and nothing else.")
@click.option(
    "--show",
    "shown_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Print the report of an earlier run's JSON file, and nothing else.",
)
def main(
    rounds: int,
    workload_names: tuple[str, ...],
    contender_names: tuple[str, ...],
    scale: float,
    upload_gib: float,
    seed: str,
    work_dir: Path,
    output: Path | None,
    job_seconds_max: float,
    idle_seconds: float,
    only_list: bool,
    shown_file: Path | None,
) -> None:
    """Do the same work on this filesystem, on sshfs, on rclone and on local disk, and compare.

    Everything runs on this machine, on the loopback, and is gone afterwards. Exit status 1: something failed
    on ours.
    """
    upload_bytes = round(upload_gib * 1024**3)
    workloads = make_workloads(scale, upload_bytes=upload_bytes)
    if only_list:
        for workload in workloads.values():
            click.echo(
                f"{workload.name:<14} {workload.access:<7} {workload.title} ({', '.join(workload.phases)})"
            )
        return
    console = _make_console()
    if shown_file is not None:
        _print_report(ResultFile.read(shown_file), console)
        return
    plan = Plan(
        workloads=select_workloads(workloads, workload_names),
        round_count=rounds,
        scale=scale,
        upload_bytes=upload_bytes,
        seed=seed,
        job_seconds_max=job_seconds_max,
        idle_seconds=idle_seconds,
    )
    names = contender_names or default_names()
    options = {
        "rounds": rounds,
        "scale": scale,
        "upload_gib": upload_gib,
        "seed": seed,
        "contenders": list(names),
    }
    path = output or RESULTS_DIR / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(work_dir)
    interrupts = Interrupts()
    with working_directory(work_dir) as directory:
        source = Source(directory / "data")
        contenders = make_contenders(names, directory, source)
        with PrintedProgress(job_count=plan.job_count(contenders)) as progress:
            runner = Runner(plan, contenders, source, progress)
            was_interrupted = _run(runner, interrupts)
    file = ResultFile(
        machine=machine,
        options=options,
        titles={name: workload.title for name, workload in workloads.items()},
        results=Results(runner.measurements),
        daemon_costs=runner.daemon_costs,
    )
    file.write(path)
    _print_report(file, console)
    click.echo(f"\nwritten: {path}")
    if runner.measurements:
        _draw_chart(file, path.with_suffix(".png"))
    for line in runner.leftovers:
        click.echo(f"left behind: {line}", err=True)
    if was_interrupted:
        click.echo("interrupted: what is above was measured before", err=True)
        sys.exit(_INTERRUPTED)
    if any(each.contender in OURS for each in file.results.failures()):
        sys.exit(1)


def select_workloads(workloads: Mapping[str, Workload], names: Sequence[str]) -> list[Workload]:
    """Those that one of `names` means, all when there is none, in the order of the report."""
    for name in names:
        if not any(_is_meant(workload, name) for workload in workloads.values()):
            raise click.BadParameter(f"{name}: there are {', '.join(workloads)}", param_hint="--workload")
    return [
        workload
        for workload in workloads.values()
        if not names or any(_is_meant(workload, name) for name in names)
    ]


def _is_meant(workload: Workload, name: str) -> bool:
    return workload.access == name or workload.name.startswith(name)


def _run(runner: Runner, interrupts: Interrupts) -> bool:
    """Measures; whether it was interrupted. Nothing runs or is mounted afterwards in any case."""
    try:
        try:
            runner.make_source()
            runner.start_contenders()
            runner.measure_rounds()
            runner.measure_daemon()
        except KeyboardInterrupt:
            return True
        except OSError as error:  # of the benchmark's own files: contenders' errors are results
            raise click.ClickException(str(error)) from error
        finally:
            interrupts.hold()
    finally:
        runner.stop_contenders()
    return False


def _make_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def _print_report(file: ResultFile, console: Console) -> None:
    report = Report(
        file.machine,
        file.results,
        file.daemon_costs,
        file.titles,
        scale=file.options["scale"],
        # Files of a time without write-latency do not say.
        upload_gib=file.options.get("upload_gib", LATENCY_UPLOAD_GIB),
    )
    report.print_to(console)


def _draw_chart(file: ResultFile, path: Path) -> None:
    measured = {each.contender for each in file.results.measurements}
    contenders = [name for name in CONTENDER_NAMES if name in measured]
    machine = file.machine
    note = f"{machine.core_count} cores, {machine.work_dir_kind}, Linux {machine.kernel}, {machine.time}"
    draw_chart(file.results, contenders, file.titles, note, path)
    click.echo(f"written: {path}")
