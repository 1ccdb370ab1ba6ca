"""How much memory a process takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def resident_bytes() -> int:
    """What this process takes."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def numbers_printed_by(program: str) -> list[int]:
    """By Python code in a process of its own: in this one, another test's memory would be counted as well."""
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [int(word) for word in process.stdout.split()]


class ResidentMemory:
    """How much more memory a process has had, at most, since this was made."""

    def __init__(self, pid: int) -> None:
        self._directory = Path("/proc") / str(pid)
        # 5: the kernel forgets the highest value so far.
        (self._directory / "clear_refs").write_text("5")
        self._before_bytes = self._bytes("VmRSS")

    def grown_bytes(self) -> int:
        return self._bytes("VmHWM") - self._before_bytes

    def _bytes(self, field: str) -> int:
        for line in (self._directory / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        raise AssertionError(f"no {field}")
