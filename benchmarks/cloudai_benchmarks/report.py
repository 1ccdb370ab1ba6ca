"""The results as tables: seconds, ratios with what is to be reached, CPU, and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cloudai_benchmarks.contenders.selection import CONTENDER_NAMES, LOCAL, OURS, RCLONE, SSHFS
from cloudai_benchmarks.figures import FIGURE_TARGETS, FIGURE_TITLES, LATENCY_P99_SECONDS, LATENCY_UPLOAD_GIB
from cloudai_benchmarks.machine import Machine
from cloudai_benchmarks.results import DaemonCosts, Results, Row, Summary
from cloudai_benchmarks.targets import IDLE_CPU_SHARE_MAX, MEMORY_OVER_BUDGET_BYTES_MAX, TARGETS

_PEERS = (SSHFS, RCLONE, LOCAL)
_MIB = 1024**2


class Report:
    """One benchmark run, for people."""

    def __init__(
        self,
        machine: Machine,
        results: Results,
        daemon_costs: DaemonCosts | None,
        titles: Mapping[str, str],
        *,
        scale: float,
        upload_gib: float,
    ) -> None:
        """`titles` are the workloads' by name; `upload_gib` is what was uploaded beside write-latency, at scale 1."""
        self._machine = machine
        self._results = results
        self._daemon_costs = daemon_costs
        self._titles = titles
        self._scale = scale
        self._upload_gib = upload_gib
        measured = {each.contender for each in results.measurements}
        self._contenders = [name for name in CONTENDER_NAMES if name in measured]

    def print_to(self, console: Console) -> None:
        self._print_machine(console)
        if not self._results.measurements:
            console.print("nothing was measured")
            return
        console.print(self._seconds_table(console))
        if any(name in OURS for name in self._contenders):
            console.print(self._ratio_table(console))
            if self._scale != 1:
                console.print(f"At scale {self._scale:g}; what is good enough is said of scale 1.")
        if any(each.figures for each in self._results.measurements):
            console.print(self._figure_table(console))
            self._print_upload(console)
        console.print(self._cpu_table(console))
        self._print_daemon_costs(console)
        self._print_failures(console)

    def _print_machine(self, console: Console) -> None:
        machine = self._machine
        console.print(
            f"{machine.time}, {machine.core_count} cores ({escape(machine.cpu)}), "
            f"{machine.memory_bytes / 1024**3:.0f} GiB, Linux {machine.kernel}, {machine.work_dir_kind}, "
            f"load {machine.load:.1f}"
        )
        console.print(escape("; ".join(f"{name}: {said}" for name, said in machine.versions.items())))

    def _seconds_table(self, console: Console) -> Table:
        table = _table(console, "Seconds: median (least..most)")
        table.add_column("work")
        for contender in self._contenders:
            table.add_column(contender, justify="right")
        for row in self._results.rows():
            summaries = [self._results.summarize(row, contender) for contender in self._contenders]
            table.add_row(self._title(row), *(describe_summary(summary) for summary in summaries))
        return table

    def _ratio_table(self, console: Console) -> Table:
        table = _table(console, "Time relative to the other's (and the most that is good enough)")
        table.add_column("work")
        table.add_column("contender")
        peers = [peer for peer in _PEERS if peer in self._contenders]
        for peer in peers:
            table.add_column(f"vs {peer}", justify="right")
        for row in self._results.rows():
            for contender in self._contenders:
                if contender in OURS:
                    ratios = [self._results.ratio(row, contender, peer) for peer in peers]
                    cells = [
                        describe_ratio(ratio, TARGETS.get(row, {}).get(peer))
                        for peer, ratio in zip(peers, ratios, strict=True)
                    ]
                    table.add_row(self._title(row), contender, *cells)
        return table

    def _figure_table(self, console: Console) -> Table:
        table = _table(console, "Other figures: median (and the most that is good enough)")
        table.add_column("work")
        table.add_column("figure")
        for contender in self._contenders:
            table.add_column(contender, justify="right")
        for workload in dict.fromkeys(row.workload for row in self._results.rows()):
            for name in self._results.figure_names(workload):
                cells = [self._figure(workload, contender, name) for contender in self._contenders]
                table.add_row(self._titles.get(workload, workload), FIGURE_TITLES.get(name, name), *cells)
        return table

    def _print_upload(self, console: Console) -> None:
        is_measured = any(LATENCY_P99_SECONDS in each.figures for each in self._results.measurements)
        if is_measured and self._upload_gib < LATENCY_UPLOAD_GIB:
            console.print(
                f"write-latency is beside {self._upload_gib:g} GiB; what is good enough is said of "
                f"{LATENCY_UPLOAD_GIB:g}: --upload-gib {LATENCY_UPLOAD_GIB:g}."
            )

    def _figure(self, workload: str, contender: str, name: str) -> str:
        values = self._results.figure_values(workload, contender, name)
        limit = FIGURE_TARGETS.get((workload, name)) if contender in OURS else None
        median = statistics.median(values) if values else None
        return "" if median is None and limit is None else describe_ratio(median, limit)

    def _cpu_table(self, console: Console) -> Table:
        table = _table(console, "CPU seconds, medians: client + server")
        table.add_column("work")
        contenders = [name for name in self._contenders if name != LOCAL]
        for contender in contenders:
            table.add_column(contender, justify="right")
        for row in self._results.rows():
            table.add_row(self._title(row), *(self._cpu(row, contender) for contender in contenders))
        return table

    def _cpu(self, row: Row, contender: str) -> str:
        found = [
            each
            for each in self._results.measurements
            if each.row == row and each.contender == contender and each.error is None
        ]
        if not found:
            return ""
        client = statistics.median(each.client_cpu_seconds for each in found)
        server = statistics.median(each.server_cpu_seconds for each in found)
        return f"{client:.2f} + {server:.2f}"

    def _print_daemon_costs(self, console: Console) -> None:
        costs = self._daemon_costs
        if costs is None:
            return
        memory = f"{costs.resident_bytes / _MIB:.0f} MiB in memory"
        memory += f" ({costs.resident_bytes_peak / _MIB:.0f} at most)"
        if costs.budget_bytes is not None:
            limit_bytes = costs.budget_bytes + MEMORY_OVER_BUDGET_BYTES_MAX
            memory += f", of {limit_bytes / _MIB:.0f}: {_verdict(costs.resident_bytes <= limit_bytes)}"
        idle = f"{costs.idle_cpu_seconds:.2f} s of CPU in {costs.idle_seconds:g} idle seconds: "
        idle += _verdict(costs.idle_cpu_seconds <= IDLE_CPU_SHARE_MAX * costs.idle_seconds)
        console.print(
            f"The daemon of {costs.contender} after all reading workloads on one mount: {memory}; {idle}"
        )
        for error in costs.errors:
            console.print(f"  failed meanwhile: {escape(error)}")

    def _print_failures(self, console: Console) -> None:
        places: dict[tuple[str, str], list[str]] = {}
        for each in self._results.failures():
            place = f"{each.workload} {each.phase} in round {each.round + 1}"
            places.setdefault((each.contender, each.error or ""), []).append(place)
        for (contender, error), failed in places.items():
            line = f"failed: {contender}: {', '.join(failed)}: {error}"
            console.print(escape(line), style="red", soft_wrap=True)

    def _title(self, row: Row) -> str:
        return f"{self._titles.get(row.workload, row.workload)}, {row.phase}"


def describe_summary(summary: Summary | None) -> str:
    """A cell such as `1.23 (1.10..1.41)`, `0.010` of one round, `failed 1 of 3`, or nothing."""
    if summary is None:
        return ""
    if summary.median_seconds is None:
        return f"failed {len(summary.errors)} of {summary.round_count}"
    text = format_number(summary.median_seconds)
    if summary.round_count > 1:
        text += f" ({format_number(min(summary.seconds))}..{format_number(max(summary.seconds))})"
    return text


def describe_ratio(ratio: float | None, target: float | None) -> str:
    """A cell such as `0.38 (0.40: met)`, `0.38` where nothing is to be reached, `-` without a ratio."""
    text = "-" if ratio is None else format_number(ratio)
    if target is None:
        return text
    verdict = "not measured" if ratio is None else _verdict(ratio <= target)
    return f"{text} ({target:g}: {verdict})"


def format_number(value: float) -> str:
    """Three digits that say something."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _table(console: Console, title: str) -> Table:
    # Elsewhere than on a terminal, as it goes into a page of documentation.
    return Table(title=title, box=box.SIMPLE if console.is_terminal else box.MARKDOWN, title_justify="left")
