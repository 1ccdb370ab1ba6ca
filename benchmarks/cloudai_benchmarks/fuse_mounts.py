"""The kernel's side of a FUSE mount: found without touching it, taken away whatever its daemon does.

Nothing here calls stat on a mount point: that would wait for a daemon that may be dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_benchmarks.errors import BenchmarkError
from cloudai_benchmarks.processes import run_command, wait_until

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_UNMOUNT_SECONDS_MAX: Final = 20.0
_BUSY_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """One line of the mount table."""

    mount_point: Path
    device: str
    """major:minor, as in /sys/class/bdi."""
    kind: str

    @property
    def connection(self) -> Path:
        """The directory of its switches, there while the control filesystem is mounted."""
        return CONNECTIONS / self.device.partition(":")[2]


def mounts_below(directory: Path) -> list[Mounted]:
    """What is mounted at or below the directory, the deepest and latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        mount_point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if mount_point.is_relative_to(directory):
            found.append(Mounted(mount_point=mount_point, device=fields[2], kind=after.split(" ")[0]))
    return found[::-1]


def is_mounted(mount_point: Path) -> bool:
    return any(mounted.mount_point == mount_point for mounted in mounts_below(mount_point))


def set_read_ahead(mounted: Mounted, kib: int) -> None:
    """Raises OSError for somebody who is not root."""
    Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(kib))


def set_max_background(mounted: Mounted, count: int) -> None:
    """Nothing happens where the control filesystem is not mounted: nobody can have changed it there."""
    knob = mounted.connection / "max_background"
    if knob.exists():
        knob.write_text(str(count))


def abort(directory: Path) -> None:
    """Ends every request that waits in a FUSE mount below the directory. Never raises."""
    with suppress(BenchmarkError), _switches():
        for mounted in mounts_below(directory):
            if mounted.kind.startswith("fuse"):
                with suppress(OSError):
                    (mounted.connection / "abort").write_text("1")


@contextmanager
def _switches() -> Iterator[None]:
    """The connections' switches are there within. Raises CommandFailed where only root may have them."""
    if is_mounted(CONNECTIONS):
        yield
        return
    run_command("mount", "-t", "fusectl", "fusectl", CONNECTIONS)
    try:
        yield
    finally:
        run_command("umount", CONNECTIONS)


def unmount_below(directory: Path) -> None:
    """Takes away every mount below the directory, with force where it must. Never raises."""
    for mounted in mounts_below(directory):
        with suppress(BenchmarkError):
            unmount(mounted.mount_point)
    if not mounts_below(directory):
        return
    abort(directory)
    for mounted in mounts_below(directory):
        with suppress(BenchmarkError):
            run_command("fusermount3", "-u", "-z", mounted.mount_point, seconds_max=_UNMOUNT_SECONDS_MAX)


def unmount(mount_point: Path) -> None:
    """Returns when nothing is mounted there. Raises CommandFailed, TookTooLong when it is busy or hangs."""

    def try_once() -> bool:
        if is_mounted(mount_point):
            with suppress(BenchmarkError):
                run_command("fusermount3", "-u", mount_point, seconds_max=_UNMOUNT_SECONDS_MAX)
        return not is_mounted(mount_point)

    wait_until(try_once, f"unmounting {mount_point}", seconds_max=_BUSY_SECONDS_MAX)
