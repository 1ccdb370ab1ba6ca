"""Programs as people run them: shell tools with a bound on their time and their words checked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

TOOL_SECONDS_MAX = 100.0
"""The longest of them takes a few seconds, and other tests have the processors too."""


def run_tool(
    *arguments: str | bytes | Path, cwd: Path | None = None, status: int = 0, text_in: str = ""
) -> str:
    """What the program printed; fails when it ends otherwise than with `status`, or not at all in time.

    Bytes that are no UTF-8 come as surrogate escapes.
    """
    done = subprocess.run(
        arguments,
        cwd=cwd,
        # Without what `make test` gives: a make would take it for its parent's.
        env=without_make(os.environ) | {"LC_ALL": "C.UTF-8", "TZ": "UTC", "GIT_CONFIG_GLOBAL": os.devnull},
        input=text_in,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=TOOL_SECONDS_MAX,
        check=False,
    )
    said = f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == status, said.encode(errors="backslashreplace").decode()
    return done.stdout


def run_shell(script: str, *, cwd: Path, status: int = 0) -> str:
    """The same for a script of bash, whose pipes must not fail in the middle."""
    return run_tool("bash", "-euo", "pipefail", "-c", script, cwd=cwd, status=status)


def without_make(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(("MAKE", "MFLAGS"))}
