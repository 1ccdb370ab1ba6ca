"""`make test-crash`: rounds of kill -9 with seeds that follow each other, until enough of them have counted.

The first round that fails ends it, and its seed is printed: `make test-crash ARGS="--seed N --rounds 1"` is
that round again, as exactly as processes allow.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crash.rounds import RoundReport, run_rounds


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when as many rounds as were asked for have counted and none has failed."""
    options = _parse(arguments)
    reports: list[RoundReport] = []
    began_seconds = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="cloudai-crash-"))
    rounds = run_rounds(directory, itertools.count(options.seed))
    try:
        for report in rounds:
            reports.append(report)
            _print_round(report)
            if _count(reports) >= options.rounds or time.monotonic() - began_seconds > options.seconds:
                break
    finally:
        rounds.close()
    _print_sums(reports, time.monotonic() - began_seconds)
    if any(report.failures for report in reports):
        print(f"what is left of the failed round is in {directory}")
        return 1
    shutil.rmtree(directory)
    if _count(reports) < options.rounds:
        print(f"time ran out: {_count(reports)} of the {options.rounds} rounds asked for have counted")
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-crash ARGS=...", description="Rounds of kill -9.")
    environment = os.environ
    add = parser.add_argument
    add("--rounds", type=int, default=environment.get("CRASH_ROUNDS", "200"), help="rounds that count (200)")
    add("--seed", type=int, default=environment.get("CRASH_SEED", "1"), help="of the first round (1)")
    add("--seconds", type=float, default=environment.get("CRASH_SECONDS", "3600"), help="at most (3600)")
    return parser.parse_args(arguments)


def _count(reports: Sequence[RoundReport]) -> int:
    return sum(report.counts for report in reports)


def _print_round(report: RoundReport) -> None:
    print(
        f"seed {report.plan.seed}: {report.plan.victim} at operation {report.plan.operation}: "
        f"{report.acknowledged_count} acknowledged, {report.staged.pending_count} pending "
        f"({report.staged.pending_files} with content), {report.compared_files} compared, "
        f"{report.required_files} required, {report.seconds:.1f} s"
        + ("" if report.counts else ", does not count")
        + ("" if not report.failures else ": FAILED"),
        flush=True,
    )
    for failure in report.failures:
        print(f"    {failure}", flush=True)
    if report.failures:
        print(f'once more: make test-crash ARGS="--seed {report.plan.seed} --rounds 1"', flush=True)


def _print_sums(reports: Sequence[RoundReport], seconds: float) -> None:
    victims = Counter(report.plan.victim for report in reports if report.counts)
    print(f"{_count(reports)} of {len(reports)} rounds counted, in {seconds:.0f} s: ", end="")
    print(", ".join(f"{count} {victim}" for victim, count in sorted(victims.items())))
    print(
        f"{sum(report.acknowledged_count for report in reports)} operations were acknowledged, "
        f"{sum(report.closed_count for report in reports)} closes and "
        f"{sum(report.synced_count for report in reports)} fsyncs among them; "
        f"{sum(report.staged.pending_count for report in reports)} changes were pending at a kill; "
        f"{sum(report.compared_files for report in reports)} files were compared, and "
        f"{sum(report.required_files for report in reports)} synced ones after the loss of a workstation"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
