"""A process whose wall clock is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


def shifted_clock(seconds: int, scratch: Path) -> dict[str, str]:
    """The environment in which a program finds the time that many seconds later than it is; earlier if negative."""
    library = scratch / "shifted_clock.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT_SECONDS": str(seconds)}
