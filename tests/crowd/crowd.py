"""Many members at once, and what has to be true once they have ended."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crowd.member import MemberReport, MemberTask

TESTS: Final = Path(__file__).parents[1]

STUCK_SECONDS: Final = 60.0
"""Beyond its time a member has a call left, and a call takes no longer than `timeo`."""


@dataclass(kw_only=True)
class CrowdReport:
    call_count: int = 0
    refusal_count: int = 0
    longest_seconds: float = 0.0
    longest_call: str = ""
    surprises: list[str] = field(default_factory=list)


def run_crowd(directories: Sequence[Path], *, member_count: int, seed: int, seconds: float) -> CrowdReport:
    """So many processes for so long, dealt out to the directories. Fails when one is stuck or dies."""
    tasks = [
        MemberTask(
            directory=str(directories[number % len(directories)]),
            number=number,
            seed=seed,
            seconds=seconds,
            has_other_mounts=len(directories) > 1,
        )
        for number in range(member_count)
    ]
    members = [_start(task) for task in tasks]
    try:
        answers = [member.communicate(timeout=seconds + STUCK_SECONDS) for member in members]
    finally:
        for member in members:
            member.kill()
            member.wait()
    report = CrowdReport()
    for member, (printed, complaints) in zip(members, answers, strict=True):
        assert member.returncode == 0, complaints
        _add(report, MemberReport(**json.loads(printed)))
    return report


def sweep_at_rest(directory: Path, *, seconds_max: float) -> None:
    """Removes all that is in the directory. What mounts do not agree about yet they do in a minute: until then what is
    not as it was listed is looked at again. Raises as sweep.
    """
    end_seconds = time.monotonic() + seconds_max
    while True:
        try:
            sweep(directory)
        except OSError:
            if time.monotonic() > end_seconds:
                raise
            time.sleep(1)
        else:
            return


def sweep(directory: Path) -> int:
    """Removes all that is in the directory, by one look at each directory; how many names there were.

    Raises OSError where a name is not what it was listed as, or a directory from which all was removed is not empty.
    """
    count = 0
    for name in os.listdir(directory):
        path = directory / name
        count += 1
        if stat.S_ISDIR(path.lstat().st_mode):
            count += sweep(path)
            path.rmdir()
        else:
            path.unlink()
    return count


def _start(task: MemberTask) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crowd.member", task.to_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def _add(report: CrowdReport, member: MemberReport) -> None:
    report.call_count += member.call_count
    report.refusal_count += member.refusal_count
    report.surprises += member.surprises
    if member.longest_seconds > report.longest_seconds:
        report.longest_seconds, report.longest_call = member.longest_seconds, member.longest_call
