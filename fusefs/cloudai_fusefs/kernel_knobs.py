"""The kernel's own limits of one FUSE mount, which the daemon raises where it may (as root, for the most part), and
what depends on its version.

They are files below /sys. Blocking, but nothing in them waits for the filesystem.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_fusefs.handler_patience import PATIENT_HANDLERS_MAX

log = logging.getLogger(__name__)

# A cold read of 1 GiB took half the time that it took with the kernel's 128 KiB, and 0-15 % less than with 1 MiB.
READ_AHEAD_KIB: Final = 4096

BACKGROUND_REQUESTS_MAX: Final = 384
"""Read-ahead of all readers together: behind so much of it that waits for the master, what is cached is not read
either. Eight cold streams took 1.33 s with 64, 1.49 s with libfuse's 12."""

assert BACKGROUND_REQUESTS_MAX < PATIENT_HANDLERS_MAX  # read-ahead that waits keeps nobody else from waiting

CONGESTION_REQUESTS: Final = BACKGROUND_REQUESTS_MAX * 3 // 4
"""From here on the kernel holds read-ahead back; its own choice is three quarters of the limit too."""

SHOWS_DIRECT_WRITES_SINCE: Final = (6, 18)
"""From here on the kernel drops its pages of a file after a write that went past them (upstream commit b359af8275a9);
before that a reader of the same place could leave old ones behind. What distributions took over into older kernels
cannot be told from here."""

SYS_DIR: Final = Path("/sys")

FUSECTL_MOUNT_COMMAND: Final = "mount -t fusectl fusectl /sys/fs/fuse/connections"


@dataclass(frozen=True)
class KernelKnob:
    """One number, and the least that it should be."""

    path: Path
    wanted: int

    @property
    def name(self) -> str:
        return self.path.name

    def read(self) -> int | None:
        """The number as it is; None when it cannot be seen."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return None

    def turn_up(self) -> None:
        """Makes it at least what is wanted; who raised it further keeps that. Raises OSError."""
        present = self.read()
        if present is None or present < self.wanted:
            # Opened for writing alone: the kernel's file is there or not, and nothing may be made.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(self.wanted).encode())
            finally:
                os.close(descriptor)


def shows_direct_writes(release: str) -> bool:
    """Whether the kernel of this release (as `uname -r` says it) shows all readers what is written past its pages."""
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and tuple(map(int, version.groups())) >= SHOWS_DIRECT_WRITES_SINCE


def read_ahead_knob(device: int, sys_dir: Path = SYS_DIR) -> KernelKnob:
    """How far the kernel reads ahead in a file, in KiB: the largest request that a buffered read makes."""
    name = f"{os.major(device)}:{os.minor(device)}"
    return KernelKnob(sys_dir / "class/bdi" / name / "read_ahead_kb", READ_AHEAD_KIB)


def background_knobs(device: int, sys_dir: Path = SYS_DIR) -> tuple[KernelKnob, KernelKnob]:
    """How many requests that nobody waits for are at the daemon at once, and from how many on fewer are made.

    There only while the fusectl filesystem is mounted.
    """
    connection = sys_dir / "fs/fuse/connections" / str(os.minor(device))
    return (
        KernelKnob(connection / "max_background", BACKGROUND_REQUESTS_MAX),
        KernelKnob(connection / "congestion_threshold", CONGESTION_REQUESTS),
    )


def turn_up_knobs(device: int, sys_dir: Path = SYS_DIR) -> None:
    """Raises what may be raised for the mount with this device number; what stays is a line in the log."""
    for knob in (read_ahead_knob(device, sys_dir), *background_knobs(device, sys_dir)):
        try:
            knob.turn_up()
        except OSError as error:
            log.info("the kernel's %s stays as it is: %s", knob.name, error.strerror)
