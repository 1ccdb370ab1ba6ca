"""`make soak`: a crowd of processes on two mounts for as long as is asked for, and what master and mounts hold between
its rounds. Fails when that grows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crowd.crowd import run_crowd, sweep_at_rest
from soak.gauges import Sample, compare_quarters, describe, find_growth, sample_mount, sample_process
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until
from support.tree_snapshot import place_in

USER: Final = "user-123"
TASK: Final = "soak"
OPTIONS: Final = "insecure,timeo=20,memory=32M"
"""Chunks in memory reach their budget while the soak warms up."""
ROUND_SECONDS: Final = 10.0
MEMBERS: Final = 6
REST_SECONDS_MAX: Final = 60.0
"""Until mounts agree."""
LARGE_BYTES: Final = 24 * 1024 * 1024


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when nothing has grown."""
    parser = argparse.ArgumentParser(
        prog="make soak SECONDS=...", description="A crowd, and what is held after it."
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="at least (3600)")
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="cloudai-soak-"))
    os.environ["CLOUDAI_RUNTIME_DIR"] = str(directory / "registry")
    (directory / "registry").mkdir(mode=0o700)
    master = MasterProcess(directory / "master")
    mounts: list[MountProcess] = []
    try:
        master.start()
        for name in ("one", "other"):
            token = master.make_token(USER)
            mount = MountProcess(directory / name, master.address, token, options=OPTIONS)
            mounts.append(mount)
            mount.start()
        failures = _soak(master, mounts, options.seconds)
    finally:
        for mount in mounts:
            mount.kill()
        master.kill()
    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    if not failures:
        print("nothing has grown, and nothing went wrong", flush=True)
    shutil.rmtree(directory)
    return 1 if failures else 0


def _soak(master: MasterProcess, mounts: list[MountProcess], seconds: float) -> list[str]:
    """What went wrong, one line each."""
    samples: dict[str, list[Sample]] = {name: [] for name in ("one", "other", "master")}
    failures: list[str] = []
    began_seconds = time.monotonic()
    number = 0
    while (elapsed_seconds := time.monotonic() - began_seconds) < seconds or number < 8:
        report = _make_round(mounts, number)
        number += 1
        failures += report
        for name, mount in zip(samples, mounts, strict=False):
            samples[name].append(sample_mount(mount))
        samples["master"].append(sample_process(master.pid))
        for name, taken in samples.items():
            print(f"{elapsed_seconds:6.0f} s {name:6} {describe(taken[-1])}", flush=True)
    for name, taken in samples.items():
        for quarter, sample in zip(("second", "last"), compare_quarters(taken), strict=True):
            print(f"{quarter:6} quarter {name:6} {describe(sample)}", flush=True)
        failures += [f"{name}: {growth}" for growth in find_growth(taken)]
    failures += [
        f"a traceback in the log of {mount.mount_point}"
        for mount in mounts
        if "Traceback" in mount.log_text()
    ]
    return failures


def _make_round(mounts: list[MountProcess], number: int) -> list[str]:
    """A run of its own, with a crowd in it and a large file that is written here and read there; removed afterwards."""
    name = f"2026-11-20_{number // 3600 % 24:02}-{number // 60 % 60:02}-{number % 60:02}"
    run = mounts[0].make_run(name, task=TASK)
    directories = [place_in(mounts[0], run, mount) for mount in mounts]
    for directory in directories:
        wait_until(directory.exists, "the run on each mount")
    content = os.urandom(LARGE_BYTES)
    (run / "large").write_bytes(content)
    mounts[0].wait_durable()
    wait_until((directories[1] / "large").exists, "the large file elsewhere")
    failures = [] if (directories[1] / "large").read_bytes() == content else [f"round {number}: other bytes"]
    report = run_crowd(directories, member_count=MEMBERS, seed=number, seconds=ROUND_SECONDS)
    failures += [f"round {number}: {surprise}" for surprise in report.surprises]
    for mount in mounts:
        mount.wait_durable()
    try:
        wait_until(
            lambda: _names(directories[0]) == _names(directories[1]),
            "the same names",
            seconds_max=REST_SECONDS_MAX,
        )
    except AssertionError:
        for directory in directories:
            print(directory, *_names(directory), sep="\n  ", flush=True)
        raise
    sweep_at_rest(run, seconds_max=REST_SECONDS_MAX)
    mounts[0].wait_durable()
    run.rmdir()
    wait_until(lambda: not directories[1].exists(), "the end of the run elsewhere")
    return failures


def _names(directory: Path) -> list[tuple[str, list[str], list[str]]]:
    return sorted(
        (os.path.relpath(place, directory), sorted(directories), sorted(files))
        for place, directories, files in os.walk(directory)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
