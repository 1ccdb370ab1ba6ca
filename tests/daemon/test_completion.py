"""Completion of command lines by the shells, with a real bash and by what the others ask the programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM_DIR = Path(sys.executable).parent
ENVIRONMENT = {"PATH": f"{PROGRAM_DIR}:{os.environ['PATH']}"}


def completed_by_bash(line: str) -> set[str]:
    """What bash would offer at the end of the line."""
    words = line.split(" ")
    function = f"_{words[0].replace('-', '_')}_completion"
    script = f"""
        eval "$(cloudai completion bash)"
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        compopt() {{ printf '%s ' compopt "$@"; }}
        {function} {words[0]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT, timeout=60
    )
    return set(done.stdout.split("\n")) - {""}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cloudai um", {"umount"}),
        ("cloudai umount --ti", {"--timeout"}),
        ("cloudai umount /mnt/", {"compopt -o default "}),
        ("cloudai mount host /mnt -o insecure,sup", {"insecure,supervise"}),
        ("cloudai mount host /mnt -o tok", {"token_file="}),
        ("cloudai-master ser", {"serve"}),
    ],
)
def test_bash_completes(line: str, expected: set[str]) -> None:
    assert completed_by_bash(line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize("program", ["cloudai", "cloudai-master"])
def test_other_shells_are_told_how_to_ask(shell: str, program: str) -> None:
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()

    script = subprocess.run(
        [PROGRAM_DIR / "cloudai", "completion", shell], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert f"{variable}={shell}_complete" in script
    asked = {
        variable: f"{shell}_complete",
        "COMP_WORDS": f"{program} ",
        "COMP_CWORD": "1" if shell == "zsh" else "",
    }
    answer = subprocess.run(
        [PROGRAM_DIR / program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=ENVIRONMENT | asked,
    ).stdout
    assert ("mount" if program == "cloudai" else "serve") in answer
